"""Writes tasks of EleutherAI's lm-evaluation-harness with the sentinels of a model, which its own infilling tasks leave out.

    python recipes/lm_eval_tasks.py --model_name_or_path model_cards/codegen2-python-1m --holes outputs/holes.jsonl
    lm_eval --model hf --model_args pretrained=model_cards/codegen2-python-1m --include_path outputs/lm_eval \\
        --tasks infill_holes --batch_size 16

`--benchmarks` chooses among `holes` (a JSON lines file with `prefix`, `suffix`, `middle`), `santacoder_fim` and
`humaneval_infill`, whose programs lm-eval runs. See `docs/lm_eval.md`.
"""

import dataclasses
import json
from pathlib import Path

import yaml

from modeling_lpn.arguments import option, parse_recipe
from modeling_lpn.code.corpora import load_corpus
from modeling_lpn.code.evaluation import make_infill_cases
from modeling_lpn.code.trainer import load_code_tokenizer
from modeling_lpn.codegen2.infilling_codegen2 import ORDERS, InfillFormat, find_format, infill_layout
from modeling_lpn.runs import refuse_existing, run_recipe


@dataclasses.dataclass
class TaskArguments:
    model_name_or_path: str = option(dataclasses.MISSING, "Folder or Hub name; its tokenizer is read.")
    infill_format: str = option("auto", "Family of its sentinels, a key of INFILL_FORMATS, or auto.")
    benchmarks: list[str] = option(["holes"], "holes, santacoder_fim, humaneval_infill.")
    holes: str = option("outputs/holes.jsonl", "File of holes, for `holes`.")
    validation_files: list[str] = option([], "Make that file from holes in these sources first.")
    num_cases: int = option(500, "How many of them.")
    max_span_tokens: int = option(8, "Their longest span.")
    context_tokens: int | None = option(
        None, "Tokens around a hole; all if not given, which lm-eval cuts on the left."
    )
    max_new_tokens: int = option(64, "Longest span to write.")
    output_dir: str = option("outputs/lm_eval", "Where the tasks go.")
    seed: int = option(0, "Of the holes.")
    overwrite: bool = option(False, "Replace the file of holes.")


# Where a benchmark lies, and what its columns are called: prefix, suffix, middle.
SOURCES = {
    "holes": ({"dataset_path": "json", "test_split": "train"}, ("prefix", "suffix", "middle")),
    "santacoder_fim": (
        {"dataset_path": "bigcode/santacoder-fim-task", "test_split": "train"},
        ("prompt", "suffix", "canonical_solution"),
    ),
    "humaneval_infill": (
        {
            "dataset_path": "loubnabnl/humaneval_infilling",
            "dataset_name": "HumanEval-SingleLineInfilling",
            "test_split": "test",
        },
        ("prompt", "suffix", "canonical_solution"),
    ),
}
UTILS = '''"""Scores of `infill_*` tasks: those of modeling_lpn."""

from modeling_lpn.code.metrics import infill_scores


def process_results(doc, results):
    scores = infill_scores([results[0]], [doc["{middle}"]])
    return {{name: scores[name] for name in ("exact_match", "edit_similarity")}}
'''
RUN_UTILS = '''"""Programs of `infill_humaneval_infill` are run by lm-eval's own task."""

from lm_eval.tasks.humaneval_infilling.utils import build_predictions, pass_at_k  # noqa: F401
'''


def prompt_template(names: InfillFormat, prefix: str, suffix: str) -> str:
    """The prompt of a family as a Jinja template over the columns of a prefix and a suffix."""
    if names.dummy_prefix:
        raise ValueError(
            "the tokenizer of this family puts a space before every text, so that no prompt in one text is what it was trained "
            "on; evaluate it with recipes/evaluate_codegen2.py"
        )
    before, after = (f"{{{{{column}}}}}" for column in (prefix, suffix))
    start = names.start or ""
    if names.mask:
        first, second = (names.mask.format(names.first_mask + number) for number in (0, 1))
        between = names.end_of_text + names.separator if names.separator else second
        return f"{start}{before}{first}{after}{between}{first}"
    parts = {"<prefix>": names.prefix, "<suffix>": names.suffix, "<middle>": names.middle}
    parts |= {"before": before, "after": after}
    return start + "".join(parts[part] for part in ORDERS[names.order])


def task(benchmark: str, args: TaskArguments, names: InfillFormat, stops: list[int]) -> dict:
    """The YAML of a task, without its functions."""
    place, (prefix, suffix, middle) = SOURCES[benchmark]
    content = {"task": f"infill_{benchmark}", **place}
    if benchmark == "holes":
        content["dataset_kwargs"] = {"data_files": str(Path(args.holes).resolve())}
    content |= {"output_type": "generate_until", "num_fewshot": 0, "target_delimiter": ""}
    content |= {"doc_to_text": prompt_template(names, prefix, suffix), "doc_to_target": f"{{{{{middle}}}}}"}
    # By id: lm-eval takes special tokens out of a text before it looks for strings to stop at, and a batch goes on until all of
    # its rows have stopped. `until` may not be empty.
    how = {
        "until": [names.end_of_text],
        "eos_token_id": stops,
        "max_gen_toks": args.max_new_tokens,
        "do_sample": False,
    }
    content |= {"generation_kwargs": how, "metadata": {"version": 1.0}}
    if benchmark == "humaneval_infill":
        content |= {"unsafe_code": True, "doc_to_target": "{{test}}\ncheck({{entry_point}})"}
    else:
        metrics = ("exact_match", "edit_similarity")
        content["metric_list"] = [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics
        ]
    return content


FUNCTIONS = {
    "scored": "process_results: !function {module}.process_results\n",
    "run": (
        "metric_list:\n- metric: !function {module}.pass_at_k\n  aggregation: mean\n  higher_is_better: true\n  k: [1]\n"
        "filter_list:\n- name: create_test\n  filter:\n  - function: custom\n    filter_fn: !function {module}.build_predictions\n"
    ),
}


def write_task(benchmark: str, content: dict, folder: Path) -> Path:
    module, middle = f"infill_{benchmark}", SOURCES[benchmark][1][2]
    runs = benchmark == "humaneval_infill"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    text += FUNCTIONS["run" if runs else "scored"].format(module=module)
    (folder / f"{module}.py").write_text(RUN_UTILS if runs else UTILS.format(middle=middle))
    path = folder / f"{module}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_holes(args: TaskArguments, tokenizer) -> None:
    refuse_existing(args.holes, args.overwrite)
    rows = [row for source in args.validation_files for row in load_corpus(source)]
    options = {"max_span_tokens": args.max_span_tokens, "context_tokens": args.context_tokens}
    cases = make_infill_cases(rows, args.num_cases, args.seed, tokenizer=tokenizer, **options)
    Path(args.holes).parent.mkdir(parents=True, exist_ok=True)
    Path(args.holes).write_text("".join(json.dumps(dataclasses.asdict(case)) + "\n" for case in cases))


def main():
    (args,) = parse_recipe([TaskArguments])
    if unknown := set(args.benchmarks) - set(SOURCES):
        raise ValueError(f"`benchmarks` has {min(unknown)!r}; known: {', '.join(SOURCES)}")
    tokenizer = load_code_tokenizer(args.model_name_or_path)
    names = find_format(args.infill_format, tokenizer)
    layout = infill_layout(tokenizer, names)
    if args.validation_files:
        write_holes(args, tokenizer)
    if "holes" in args.benchmarks and not Path(args.holes).is_file():
        raise FileNotFoundError(f"there is no file {args.holes}; give `holes`, or `validation_files` to make it from")
    (folder := Path(args.output_dir)).mkdir(parents=True, exist_ok=True)
    stops = [*layout.stops, *sorted(layout.ends - set(layout.stops))]
    for benchmark in args.benchmarks:
        print(f"wrote {write_task(benchmark, task(benchmark, args, names, stops), folder)}")


if __name__ == "__main__":
    run_recipe(main)
