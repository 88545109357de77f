"""Loads a model folder and computes on a fixed input, in a process of its own: [`hub.verify`] compares two of them.

    python -P reload.py request.json answer.json

The request has `folder`, `package` (load by the installed package, or as a user without it, by the code in the folder),
`auto_class`, `kind` (a key of `PROBES`), `inputs`. The answer has the `model` class, `keys` that did not fit, `outputs`.
Nothing here imports the package before `main` does: one of the two processes has to do without it.
"""

import json
import sys
from pathlib import Path


def grids(model, processor, inputs: dict) -> dict:
    """Encoder, search and decoder of a Latent Program Network."""
    output = model.generate(**processor(inputs["task"], return_tensors="pt"), search_config=inputs["search"])
    return {
        "latents": output.search_output.latents,
        "log_probs": output.search_output.log_probs,
        "grids": output.output_grids,
    }


def text(model, tokenizer, inputs: dict) -> dict:
    """Logits of a code model, and what it writes where it writes."""
    encoded = tokenizer(inputs["text"], return_tensors="pt")
    outputs = {"logits": model(**encoded).logits if "For" in type(model).__name__ else model(**encoded)[0]}
    if model.can_generate():
        outputs["tokens"] = model.generate(**encoded, max_new_tokens=4, do_sample=False)
    return outputs


PROBES = {"grids": grids, "text": text}


def answer(request: dict) -> dict:
    """The answer to a request, see the docstring of the module."""
    import torch
    import transformers

    trust = {"trust_remote_code": not request["package"]}
    auto_class = getattr(transformers, request["auto_class"])
    preprocessor = transformers.AutoProcessor if request["kind"] == "grids" else transformers.AutoTokenizer
    torch.manual_seed(0)
    model, keys = auto_class.from_pretrained(request["folder"], output_loading_info=True, **trust)
    processor = preprocessor.from_pretrained(request["folder"], **trust)
    with torch.no_grad():
        outputs = PROBES[request["kind"]](model.eval(), processor, request["inputs"])
    if not request["package"]:  # with it, too, transformers takes the pipelines of a folder for code to be trusted
        for task in getattr(model.config, "custom_pipelines", None) or {}:
            transformers.pipeline(task, model=request["folder"], **trust)
    return {
        "model": f"{type(model).__module__}.{type(model).__name__}",
        "keys": {reason: sorted(map(str, names)) for reason, names in keys.items() if names},
        "outputs": {name: value.double().tolist() for name, value in outputs.items()},
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if request["package"]:
        import modeling_lpn  # noqa: F401 (registers the classes)
    else:
        sys.modules["modeling_lpn"] = None  # type: ignore[assignment]  # importing it fails, installed or not
    Path(sys.argv[2]).write_text(json.dumps(answer(request)), encoding="utf-8")


if __name__ == "__main__":
    main()
