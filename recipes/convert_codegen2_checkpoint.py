"""
Rewrites a released CodeGen2 checkpoint into a clean `codegen2` repository, or one of those back into a release.

    python recipes/convert_codegen2_checkpoint.py Salesforce/codegen2-1B_P outputs/codegen2-1B
    python recipes/convert_codegen2_checkpoint.py outputs/codegen2-1B outputs/released --layout released
    python recipes/convert_codegen2_checkpoint.py outputs/codegen2-1B outputs/stock --layout stock

`codegen2` writes the weights as safetensors with the config, the stop tokens and the tokenizer repaired, and the code
that `trust_remote_code=True` needs. `released` writes the same tensors, bit for bit, under a `codegen` config that
states its `mp_num`. `stock` regroups the fused projection for transformers' built-in `CodeGenForCausalLM`, which reads
every checkpoint as `mp_num` 4 and so runs the released 1B and 3.7B wrong.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM, prepare_codegen2_tokenizer
from modeling_lpn.codegen2.modeling_codegen2 import regroup_qkv
from modeling_lpn.runs import run_recipe


SNIPPET = '''def fibonacci(n):
    """Return the n-th Fibonacci number."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
'''
STOCK_MP_NUM = 4


@torch.no_grad()
def snippet_loss(source, tokenizer, **kwargs):
    model = CodeGen2ForCausalLM.from_pretrained(source, **kwargs).eval()
    ids = tokenizer(SNIPPET, return_tensors="pt")["input_ids"].to(model.device)
    return model(ids, labels=ids).loss.item()


def check_grouping(source, tokenizer, config):
    """Refuses a grouping that reads Python worse than another one: nothing else tells a wrong one."""
    n_head, chosen = config.n_head, config.mp_num
    losses = {
        mp_num: snippet_loss(source, tokenizer, mp_num=mp_num) for mp_num in {4, 8, chosen} if n_head % mp_num == 0
    }
    best = min(losses, key=losses.get)
    table = ", ".join(f"mp_num {mp_num}: {loss:.2f}" for mp_num, loss in sorted(losses.items()))
    print(f"loss on a Python function: {table}")
    if losses[best] < losses[chosen] - 0.5:
        raise ValueError(
            f"`mp_num` {chosen} gives a loss of {losses[chosen]:.2f} on a Python function, `mp_num` {best} one of "
            f"{losses[best]:.2f}: the projection is grouped by {best}. Pass --mp_num {best} (or --skip_check)."
        )


def load_tokenizer(source):
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        tokenizer = None
    if tokenizer is None or not tokenizer.encode(SNIPPET):  # without its files transformers makes an empty one
        print(f"{source} holds no tokenizer: none is written, and the grouping is not checked")
        return None
    return prepare_codegen2_tokenizer(tokenizer) if "<mask_1>" in tokenizer.get_vocab() else tokenizer


def released_config(config, mp_num):
    names = [
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "rotary_dim",
        "n_inner",
        "activation_function",
    ]
    names += ["resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "use_cache"]
    names += ["bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"]
    released = {name: getattr(config, name) for name in names}
    released |= {"model_type": "codegen", "architectures": ["CodeGenForCausalLM"], "n_ctx": config.n_positions}
    if mp_num == 8:  # the key by which other loaders tell 8 groups from 4
        released["head_dim"] = config.n_embd // config.n_head
    return released | {"mp_num": mp_num, "dtype": str(config.dtype).removeprefix("torch.")}


def write_release(model, output, mp_num):
    output.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if mp_num != model.config.mp_num:
        for name, weight in state.items():
            if name.endswith("attn.qkv_proj.weight"):
                state[name] = regroup_qkv(weight, model.config.mp_num, mp_num)
    with tempfile.TemporaryDirectory(dir=output) as folder:  # only the weights of it are wanted
        model.save_pretrained(folder, state_dict=state)
        for file in Path(folder).glob("model*.safetensors*"):
            file.rename(output / file.name)
    (output / "config.json").write_text(json.dumps(released_config(model.config, mp_num), indent=2) + "\n")
    model.generation_config.save_pretrained(output)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", help="Hub id or folder of a release or of a codegen2 repository")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--layout", choices=["codegen2", "released", "stock"], default="codegen2")
    parser.add_argument(
        "--mp_num", type=int, help="groups of the source's fused projection, where its config lacks it"
    )
    parser.add_argument("--skip_check", action="store_true", help="do not compare the groupings' losses on Python")
    arguments = parser.parse_args(argv)
    if Path(arguments.source).resolve() == arguments.output.resolve():
        raise ValueError(
            f"{arguments.output} is the source as well and would be overwritten while it is read; give another folder."
        )
    given = {} if arguments.mp_num is None else {"mp_num": arguments.mp_num}
    tokenizer = load_tokenizer(arguments.source)
    if tokenizer is not None and not arguments.skip_check:
        check_grouping(arguments.source, tokenizer, CodeGen2Config.from_pretrained(arguments.source, **given))
    model = CodeGen2ForCausalLM.from_pretrained(arguments.source, **given)
    if tokenizer is not None:
        tokenizer.save_pretrained(arguments.output)
    if arguments.layout == "codegen2":
        model.save_pretrained(arguments.output)
        again = CodeGen2ForCausalLM.from_pretrained(arguments.output).state_dict()
        differing = [name for name, value in model.state_dict().items() if not torch.equal(value, again[name])]
        if differing:
            raise ValueError(f"{arguments.output} holds other values than {arguments.source}: {differing[:3]} ...")
    else:
        write_release(model, arguments.output, STOCK_MP_NUM if arguments.layout == "stock" else model.config.mp_num)
    print(f"wrote {arguments.output} ({arguments.layout}, source mp_num {model.config.mp_num})")


if __name__ == "__main__":
    run_recipe(main)
