"""Evaluates a Latent Program Network on tasks of strings, beside three baselines.

    python recipes/evaluate_strings.py --model_name_or_path outputs/strings --tasks string robustfill_NONE.jsonl

`tasks` are generators with strings and files or folders that `load_string_tasks` reads. The output folder
gets one JSON file for each: accuracy at every search budget (the mean latent is budget 0) with the largest number of
examples, and for every number of them (`results_by_num_examples`, drawn in a PNG file of the same name); the baselines
`nearest_pair` (copies the output of the most similar input) and `enumeration` (the smallest program of the space of
`tasks/strings.py`, or of `tasks/lists.py` for lists of integers, with the time per task that the search took, or `--seconds`). `--searches` adds other searches, all with
the same number of decoder evaluations. A task that the model cannot read counts as wrong. `--calibrate true` fits how
probably an answer is right on validation tasks of the first generator, and as many of programs seen in training, and writes
`calibration.json` into the folder of the model.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; see `use_cpu_cores`

import dataclasses
import random
import time
from pathlib import Path

import yaml
from transformers import AutoModel, AutoProcessor

from modeling_lpn import SearchConfig, TaskStream
from modeling_lpn.arguments import given, option, parse_recipe
from modeling_lpn.optional import require
from modeling_lpn.runs import load_pretrained, refuse_existing, run_recipe, use_cpu_cores, write_results
from modeling_lpn.tasks import plots
from modeling_lpn.tasks.arguments import SearchArguments, make_task, task_arguments
from modeling_lpn.tasks.enumeration import answer_by_enumeration, is_ambiguous, nearest_pair
from modeling_lpn.tasks.evaluation import BudgetResult, EvaluationOutput, evaluate_tasks
from modeling_lpn.tasks.fill import Calibration, answer_task
from modeling_lpn.tasks.generators import TASK_GENERATORS
from modeling_lpn.tasks.list_enumeration import answer_lists_by_enumeration, is_list_task
from modeling_lpn.tasks.metrics import compute_arc_scores
from modeling_lpn.tasks.stream import tasks_from_stream
from modeling_lpn.tasks.string_sources import load_string_tasks


@dataclasses.dataclass
class EvaluationArguments:
    model_name_or_path: str = option(dataclasses.MISSING, "Folder or Hub name of the model.")
    tasks: list[str] = option(["string"], "Generators with strings, files, folders.")
    split: str = option("test", "Programs of the generators: test (unseen) or train (seen, with other inputs).")
    num_tasks: int = option(200, "The first so many tasks of each.")
    num_examples: list[int] = option([3], "Demonstrations of a generated task; baselines get the largest number.")
    budgets: list[int] = option([0, 1, 5, 20, 100], "Gradient steps, or samples of a random or evolutionary search.")
    searches: list[str] = option(
        [],
        "Searches to compare at one budget, settings by commas: method=random,std=0.5 num_samples=3 rank_by=leave_one_out",
    )
    search_evaluations: int = option(101, "Decoder evaluations of a task in each of `searches`.")
    output_dir: str = option("outputs/strings/evaluation", "Where the results go.")
    batch_size: int = option(32, "Tasks solved at a time.")
    seed: int = option(1_000_000, "Seed of generated tasks and of the search.")
    seconds: float | None = option(
        None, "Time limit of the enumeration for a task; the time that the model took if not given."
    )
    max_size: int = option(4, "Operations of an enumerated program.")
    num_ambiguity_tasks: int = option(0, "Generated tasks to look for other programs of the same size on.")
    calibrate: bool = option(False, "Fit calibration.json of the model (a local folder) on validation tasks.")
    num_calibration_tasks: int = option(400, "Half of seen programs; half of all to fit, half to check.")
    plot: bool = option(True, "Draw accuracy against evaluations (needs matplotlib).")
    overwrite: bool = option(False, "Replace the results of an earlier evaluation in output_dir.")
    num_threads: int | None = option(None, "CPU threads; all cores if not given.")


def read_tasks(source: str, args, task_args, num_examples: int, split: str) -> list[dict]:
    if source not in TASK_GENERATORS:
        return load_string_tasks(source)[: args.num_tasks]
    task = make_task(source, task_args, num_pairs=max(args.num_examples) + 1, split=split)
    if not hasattr(task, "processor"):
        raise ValueError(f"generator {source!r} has no strings; evaluate it with recipes/evaluate_lpn.py")
    rows = tasks_from_stream(TaskStream(task, args.num_tasks, args.seed), args.num_tasks)
    return [{**row, "train": row["train"][:num_examples]} for row in rows]


def score(answers: dict, tasks: list[dict]) -> dict:
    return compute_arc_scores(answers, {task["task_id"]: [pair["output"] for pair in task["test"]] for task in tasks})


def enumerate_answers(task: dict, max_size: int, seconds: float) -> list[list[str]]:
    answer = answer_lists_by_enumeration if is_list_task(task) else answer_by_enumeration
    return answer(task, max_size, seconds)


def evaluate_baselines(args, tasks: list[dict], seconds: float) -> dict:
    baselines = {
        "nearest_pair": nearest_pair,
        "enumeration": lambda task: enumerate_answers(task, args.max_size, seconds),
    }
    found = {"enumeration_seconds": seconds}
    for name, answer in baselines.items():
        start = time.perf_counter()
        answers = {task["task_id"]: [[*attempts] for attempts in answer(task)] for task in tasks}
        found[name] = {
            "scores": score(answers, tasks),
            "seconds_per_task": (time.perf_counter() - start) / len(tasks),
        }
    return found


def evaluate_latent(args, model, processor, tasks: list[dict], search: SearchConfig, budgets) -> EvaluationOutput:
    """As [`evaluate_tasks`]; where no task at all can be read, every one of them is an error."""
    try:
        return evaluate_tasks(model, processor, tasks, search, budgets, args.batch_size, args.seed)
    except RuntimeError as error:
        wrong = score({}, tasks)
        results = [BudgetResult(budget, {}, wrong, 0.0, float("nan")) for budget in budgets]
        return EvaluationOutput(results, {task["task_id"]: str(error) for task in tasks}, {}, 0, {"total": 0.0})


def read_search(text: str, search: SearchConfig, evaluations: int) -> SearchConfig:
    """`search` with the settings of `text`, as many steps or samples as `evaluations` pay, and no more."""
    settings = {}
    for item in text.split(","):
        name, given_value, value = item.partition("=")
        if not given_value:
            raise ValueError(
                f"`searches` has {text!r}, where {item!r} is no setting; write name=value, with commas between"
            )
        settings[name.strip()] = yaml.safe_load(value)
    changed = search.override(**settings)
    if changed.spec.is_read("max_evaluations"):
        changed = changed.override(max_evaluations=evaluations)
    return changed.at_budget(evaluations)


def compare_searches(args, model, processor, tasks: list[dict], search: SearchConfig) -> dict:
    found = {}
    for text in args.searches:
        config = read_search(text, search, args.search_evaluations)
        output = evaluate_latent(args, model, processor, tasks, config, [config.budget])
        found[text] = {**summarise(output)[0], "search": config.to_dict()}
    return found


def draw_accuracy(file: Path, results: dict) -> None:
    """Accuracy against evaluations, a line for each number of examples."""
    rows = {number: sorted(rows, key=lambda row: row["num_evaluations"]) for number, rows in results.items()}
    names = {number: f"{number} example{'s' * (number != 1)}" for number in rows}
    evaluations = [row["num_evaluations"] for row in next(iter(rows.values()))]
    if min(evaluations) < 1 or len(set(evaluations)) < len(evaluations):
        return  # nothing was read, or the method knows no budget: there is no axis
    lines = {names[n]: [row["scores"]["top_1_strict_task_accuracy"] for row in rows[n]] for n in rows}
    plots.save_figure(plots.plot_accuracy_by_budget(evaluations, lines), file)


def summarise(output: EvaluationOutput) -> list[dict]:
    names = ("budget", "scores", "num_evaluations", "log_prob")
    return [{name: getattr(result, name) for name in names} for result in output.results]


def ambiguity(args, task_args) -> dict:
    """How many generated tasks have another program of the same size with another output for the test input."""
    task = make_task("string", task_args, num_pairs=max(args.num_examples) + 1, split=args.split)
    dice, num_tasks = random.Random(args.seed), args.num_ambiguity_tasks
    count = sum(is_ambiguous(*task.draw(dice)) for _ in range(num_tasks))
    return {"num_tasks": num_tasks, "num_examples": max(args.num_examples), "share_ambiguous": count / num_tasks}


def calibrate(args, task_args, model, processor, search: SearchConfig) -> Calibration:
    source = next(name for name in args.tasks if name in TASK_GENERATORS)
    scores, right = [], []
    other = dataclasses.replace(args, seed=args.seed + 1, num_tasks=args.num_calibration_tasks // 2)
    unseen, seen = (
        read_tasks(source, other, task_args, max(args.num_examples), split) for split in ("validation", "train")
    )
    for task in (task for pair in zip(unseen, seen, strict=True) for task in pair):
        answers, _ = answer_task(model, processor, task, search, num_candidates=1, seed=args.seed)
        scores.append(answers[0][0].scores)
        right.append(answers[0][0].text == task["test"][0]["output"])
    half = len(right) // 2
    fitted = Calibration.fit(scores[:half], right[:half])
    fitted.measured = {
        "tasks": source,
        "splits": ["validation", "train"],
        "fitted_on": half,
        **fitted.check(scores[half:], right[half:]),
    }
    fitted.save(args.model_name_or_path)
    return fitted


def check(args) -> list[Path]:
    files = [Path(args.output_dir, f"{Path(source).stem}.json") for source in args.tasks]
    if args.split not in ("train", "test"):
        raise ValueError(f"`split` is {args.split!r}; give test or train (validation tasks are for calibration)")
    for file in files:
        refuse_existing(file, args.overwrite)
    if args.plot:
        require("matplotlib", "plots", "`--plot true`")
    if args.calibrate and not (
        Path(args.model_name_or_path, "config.json").is_file() and set(args.tasks) & set(TASK_GENERATORS)
    ):
        raise ValueError(
            "`calibrate` needs a model in a local folder and a generator among `tasks`; leave it out or give both"
        )
    return files


def percent(row: dict) -> str:
    return f"{100 * row['scores']['top_1_strict_task_accuracy']:.1f} %"


def main():
    args, task_args, search_args = parse_recipe([EvaluationArguments, task_arguments(), SearchArguments])
    files = check(args)
    use_cpu_cores(args.num_threads)
    model = load_pretrained(AutoModel.from_pretrained, args.model_name_or_path).eval()
    processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    search = SearchConfig.of(model.config.search).override(**given(search_args, "search_"))
    for text in args.searches:
        read_search(text, search, args.search_evaluations)  # what is wrong is said before hours of work
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    extra = {"ambiguity": ambiguity(args, task_args)} if args.num_ambiguity_tasks else {}
    if args.calibrate:
        extra["calibration"] = dataclasses.asdict(calibrate(args, task_args, model, processor, search))
    for source, file in zip(args.tasks, files, strict=True):
        generated = source in TASK_GENERATORS
        results = {}
        for count in sorted(args.num_examples) if generated else [0]:
            tasks = read_tasks(source, args, task_args, count, args.split)
            output = evaluate_latent(args, model, processor, tasks, search, args.budgets)
            results[count if generated else "all"] = rows = summarise(output)
        compared = compare_searches(args, model, processor, tasks, search)
        baselines = evaluate_baselines(args, tasks, args.seconds or output.seconds["total"] / len(tasks) or 1.0)
        write_results(
            file,
            args.seed,
            arguments={**vars(args), "tasks": source, **given(task_args)},
            search=dataclasses.asdict(search),
            num_parameters=model.num_parameters(),
            num_tasks=len(tasks),
            errors=output.errors,
            seconds=output.seconds,
            results=rows,
            results_by_num_examples=results,
            results_by_search=compared,
            baselines=baselines,
            **(extra if generated else {}),
        )
        print(f"{source}: {len(tasks)} tasks, {len(output.errors)} of them unreadable for the model")
        for name, rows in results.items():
            print(f"  {name} examples: " + ", ".join(f"{percent(row)} at {row['budget']}" for row in rows))
        for text, row in compared.items():
            print(f"  {text}: {percent(row)} with {row['num_evaluations']:g} evaluations")
        if args.plot:
            draw_accuracy(file.with_suffix(".png"), results)
        for name in ("nearest_pair", "enumeration"):
            print(f"  {name}: {percent(baselines[name])}")


if __name__ == "__main__":
    run_recipe(main)
