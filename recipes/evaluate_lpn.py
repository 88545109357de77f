"""Evaluates a Latent Program Network by latent search at a list of budgets.

    accelerate launch recipes/evaluate_lpn.py --model_name_or_path outputs/arc --tasks arcagi:evaluation

A YAML file may come first; flags win over it, `--help` lists them. The output folder gets `results.json` (scores by name,
decoder evaluations, seconds, how it was made), `submission.json` for ARC Prize, and pictures. Several processes split
the tasks; the result is the same. Solved tasks are kept in `solved/` as they come: after a kill or Ctrl-C the same command
goes on from there.

`--choose_search true` chooses the settings of the search on validation tasks first (of a generator, others than those of
the evaluation): every combination of the budgets and of the `choose_*` lists over the saved settings. The evaluation uses
the best, `--save_search true` saves it into the `config.json` of the model, a local folder:

    python recipes/evaluate_lpn.py recipes/lpn/quickstart_eval.yaml --choose_search true --save_search true \\
        --budgets 5 20 50 100 --choose_lr 0.05 0.1 --choose_prior_weight 0 0.003 0.01 0.03 \\
        --choose_rank_by fit leave_one_out
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; see `use_cpu_cores`

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoModel, AutoProcessor

from modeling_lpn import SearchConfig, StringProcessor, TaskStream
from modeling_lpn.arguments import given, option, parse_recipe
from modeling_lpn.files import read_file
from modeling_lpn.runs import (
    end_together,
    load_pretrained,
    peak_memory,
    prepare_compilation,
    refuse_existing,
    report_leaks,
    run_recipe,
    stay_on_cpu,
    use_cpu_cores,
    write_results,
)
from modeling_lpn.tasks import plots
from modeling_lpn.tasks.arc import load_tasks
from modeling_lpn.tasks.arguments import SearchArguments, make_task, task_arguments
from modeling_lpn.tasks.evaluation import (
    SearchChoice,
    choose_search,
    evaluate_tasks,
    find_leaks_in,
    scores_without,
    search_grid,
)
from modeling_lpn.tasks.generators import TASK_GENERATORS
from modeling_lpn.tasks.latent_maps import map_latent_space
from modeling_lpn.tasks.metrics import make_submission
from modeling_lpn.tasks.stream import tasks_from_stream


@dataclasses.dataclass
class EvaluationArguments:
    model_name_or_path: str = option(dataclasses.MISSING, "Folder or Hub name of the model.")
    tasks: str = option("pattern", "A source like arcagi:evaluation, a file, a folder, or a task generator.")
    solutions: str | None = option(None, "Solutions file of an ARC Prize challenges file.")
    num_tasks: int | None = option(None, "Only the first so many tasks (of a generator: 200).")
    budgets: list[int] = option([0, 1, 5, 20, 100], "Gradient steps, or samples of a random or evolutionary search.")
    output_dir: str = option("outputs/evaluation", "Where the results go.")
    batch_size: int = option(32, "Tasks solved at a time.")
    seed: int = option(1_000_000, "Seed of generated tasks and of the search.")
    num_pictures: int = option(8, "Tasks to draw; 0 for no pictures at all.")
    num_maps: int = option(0, "Latent spaces to draw; one takes 3600 decoder evaluations.")
    attn_implementation: str = option("sdpa", "eager, sdpa or flex_attention.")
    torch_compile: bool = option(
        False, "torch.compile for the steps of a search, for tasks whose grids have one shape."
    )
    torch_compile_mode: str | None = option(None, "Its mode, on a GPU reduce-overhead.")
    training_tasks: list[str] | None = option(
        None, "Sources the model was trained on; by default the file that run.json of the model names."
    )
    leaks: str = option(
        "flag", "Evaluation tasks that occur in the training data: flag (scores with and without them), refuse."
    )
    overwrite: bool = option(False, "Replace the results of an earlier evaluation in output_dir.")
    choose_search: bool = option(False, "Choose search settings on validation tasks first.")
    validation_tasks: str | None = option(None, "Source of these tasks; by default the generator with another seed.")
    num_validation_tasks: int = option(200, "How many of them.")
    validation_seed: int = option(2_000_000, "Seed of generated validation tasks.")
    choose_lr: list[float] | None = option(None, "Learning rates to choose from.")
    choose_prior_weight: list[float] | None = option(None, "Pulls towards the prior to choose from.")
    choose_rank_by: list[str] | None = option(None, "Rankings to choose from: fit, leave_one_out.")
    save_search: bool = option(False, "Save the chosen settings into the config.json of the model.")
    use_cpu: bool = option(False, "Stay on the CPU where there is an accelerator.")
    num_threads: int | None = option(None, "CPU threads of a process; all cores if not given.")


def read_tasks(args, task_args, processor) -> list[dict]:
    if args.tasks not in TASK_GENERATORS:
        return load_tasks(args.tasks, args.solutions, processor)[: args.num_tasks]
    num_tasks = 200 if args.num_tasks is None else args.num_tasks
    return tasks_from_stream(TaskStream(make_task(args.tasks, task_args), num_tasks, args.seed), num_tasks)


def read_validation_tasks(args, task_args, processor) -> list[dict]:
    if args.validation_tasks is None and args.tasks not in TASK_GENERATORS:
        raise ValueError(
            "`choose_search` is true and `tasks` is no generator; say which `validation_tasks` to choose on"
        )
    if args.validation_tasks is None and args.validation_seed == args.seed:
        raise ValueError(f"`validation_seed` and `seed` are both {args.seed}; choose on other tasks than you judge by")
    source, seed = args.validation_tasks or args.tasks, args.validation_seed
    other = dataclasses.replace(args, tasks=source, solutions=None, num_tasks=args.num_validation_tasks, seed=seed)
    return read_tasks(other, task_args, processor)


def choose(args, task_args, model, processor, search) -> SearchChoice:
    """The best settings on the validation tasks, and all that were compared; see the flags `choose_*`."""
    lists = {"lr": args.choose_lr, "prior_weight": args.choose_prior_weight, "rank_by": args.choose_rank_by}
    candidates = search_grid(search, **{name: values for name, values in lists.items() if values})
    tasks = read_validation_tasks(args, task_args, processor)
    choice = choose_search(
        model, processor, tasks, candidates, args.budgets, batch_size=args.batch_size, seed=args.seed
    )
    for row in choice.rows:
        print(
            f"{100 * row['scores']['top_1_strict_task_accuracy']:7.2f}% {row['num_evaluations']:8.1f} {row['search']}"
        )
    print(f"chosen on {len(tasks)} validation tasks: {choice.search_config.to_dict()}")
    return choice


def check_leaks(args, tasks) -> dict:
    """Which tasks the model was trained on, by content: `compared_with`, `tasks`, and why, where nothing was compared."""
    sources, record = args.training_tasks or [], Path(args.model_name_or_path, "run.json")
    reason = "there is no record of the training; name its sources with --training_tasks"
    if not sources and args.tasks in TASK_GENERATORS:
        reason = f"the tasks are drawn by the generator {args.tasks!r}"
    elif not sources and record.is_file():
        trained = read_file(record).get("arguments", {})
        sources = [trained["task_path"]] if "task_path" in trained else []
        reason = f"the tasks of training were drawn by the generator {trained.get('task')!r}"
    if missing := [source for source in sources if not args.training_tasks and not Path(source).exists()]:
        sources, reason = [], f"{missing[0]}, which run.json names, is not here; say where it is with --training_tasks"
    found = find_leaks_in(tasks, sources)
    trained_as = {task_id: leak["training_tasks"][0] for task_id, leak in found.items()}
    report_leaks(trained_as, len(tasks), "tasks", args.leaks)
    return {"compared_with": sources, "not_compared": None if sources else reason, "tasks": found}


def print_table(output) -> None:
    names = list(output.results[0].scores)
    width = max(map(len, names), default=21)
    print(f"{'budget':>{width}} " + " ".join(f"{result.budget:8d}" for result in output.results))
    print(f"{'decoder evaluations':>{width}} " + " ".join(f"{r.num_evaluations:8.1f}" for r in output.results))
    print(f"{'log-likelihood (nats)':>{width}} " + " ".join(f"{r.log_prob:8.3f}" for r in output.results))
    for name in names:
        print(f"{name:>{width}} " + " ".join(f"{100 * result.scores[name]:7.2f}%" for result in output.results))


def summarise(output, args, task_args, search, tasks, model, compared, leaks) -> dict:
    results = [{name: value for name, value in vars(r).items() if name != "predictions"} for r in output.results]
    if leaks["tasks"]:
        for row, scores in zip(results, scores_without(tasks, output.results, leaks["tasks"]), strict=True):
            row["scores_without_leaks"] = scores
    for row, result in zip(results, output.results, strict=True):  # JSON has no infinity
        row["log_prob"] = row["log_prob"] if math.isfinite(row["log_prob"]) else None
        if args.tasks == "pattern":
            row["top_1_by_place"] = accuracy_by_place(tasks, result.predictions)
    return {
        "arguments": {**vars(args), **given(task_args)},
        "search": dataclasses.asdict(search),
        "compared_on_validation_tasks": compared,
        "num_parameters": model.num_parameters(),
        "num_tasks": len(tasks),
        "leaks": leaks,
        "errors": output.errors,
        "num_nonfinite": output.num_nonfinite,
        "seconds": output.seconds,
        "peak_memory_gb": peak_memory(),
        "results": results,
    }


def accuracy_by_place(tasks, predictions) -> dict[str, list[int]]:
    """Of every place where the pattern can lie in the test output, "row,column" of its corner: tasks solved, tasks."""
    places: dict[str, list[int]] = {}
    for task in tasks:
        (pair,) = task["test"]
        place = next(f"{r},{c}" for r, row in enumerate(pair["input"]) for c, color in enumerate(row) if color)
        grids = predictions.get(task["task_id"], [[None]])
        solved, seen = places.get(place, (0, 0))
        places[place] = [solved + (grids[0][0] == pair["output"]), seen + 1]
    return dict(sorted(places.items()))


def draw(output, best, tasks, args, model, processor, search) -> None:
    folder, drawn = Path(args.output_dir) / "pictures", [t for t in tasks if t["task_id"] in best.predictions]
    for task in drawn[: args.num_pictures]:
        name = task["task_id"]
        figure = plots.plot_task(task, best.predictions[name], f"Task {name}: predictions at budget {best.budget}")
        plots.save_figure(figure, folder / f"task_{name}.png")
    for task in drawn[: args.num_maps]:
        figure = plots.plot_latent_map(**map_latent_space(model, processor, task, search))
        plots.save_figure(figure, folder / f"latent_map_{task['task_id']}.png")
    if best.scores:
        ordered = sorted(output.results, key=lambda result: result.num_evaluations)
        lines = {
            "exact, best of two attempts": "top_2_strict_task_accuracy",
            "exact, first attempt": "top_1_strict_task_accuracy",
            "pixels, first attempt": "top_1_pixel_accuracy",
        }
        curves = {label: [row.scores[name] for row in ordered] for label, name in lines.items()}
        figure = plots.plot_accuracy_by_budget([row.num_evaluations for row in ordered], curves)
        plots.save_figure(figure, folder / "accuracy_by_budget.png")
    if search.spec.follows_path:
        truths = {t["task_id"]: [pair.get("output") for pair in t["test"]] for t in drawn}
        solved = [[grids[0] for grids in best.predictions[name]] == truth for name, truth in truths.items()]
        figure = plots.plot_search([output.trajectories[name] for name in truths], solved if best.scores else None)
        plots.save_figure(figure, folder / "search.png")


def write(output, args, task_args, search, tasks, model, processor, compared, leaks) -> None:
    folder, best = Path(args.output_dir), max(output.results, key=lambda result: result.budget)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(
        folder / "results.json", args.seed, **summarise(output, args, task_args, search, tasks, model, compared, leaks)
    )
    (folder / "submission.json").write_text(json.dumps(make_submission(best.predictions, tasks, fill=[[0]])) + "\n")
    if args.num_pictures:
        draw(output, best, tasks, args, model, processor, search.at_budget(best.budget))
    print_table(output)
    for task_id, error in output.errors.items():
        print(f"task {task_id} failed and counts as wrong: {error}")
    print(f"{len(tasks)} tasks in {output.seconds['total']:.1f} s; results, submission and pictures are in {folder}")


def main():
    args, task_args, search_args = parse_recipe([EvaluationArguments, task_arguments(), SearchArguments])
    refuse_existing(Path(args.output_dir, "results.json"), args.overwrite)
    if wrong := [budget for budget in args.budgets if budget < 0]:
        raise ValueError(f"`budgets` hold {wrong[0]}; a budget is a number of steps or samples, 0 or more")
    if args.torch_compile_mode and not args.torch_compile:
        raise ValueError(
            f"`torch_compile_mode` is {args.torch_compile_mode!r} and `torch_compile` false; set it, or leave the mode out"
        )
    accelerator = Accelerator(cpu=stay_on_cpu(args.use_cpu))
    if accelerator.device.type == "cpu":
        use_cpu_cores(args.num_threads)
    if args.save_search and not (args.choose_search and Path(args.model_name_or_path, "config.json").is_file()):
        raise ValueError(
            "`save_search` needs `choose_search` and a model in a local folder; leave it out or give both"
        )
    model = load_pretrained(
        AutoModel.from_pretrained, args.model_name_or_path, attn_implementation=args.attn_implementation
    )
    model = model.to(accelerator.device).eval()
    if args.torch_compile:
        prepare_compilation()
        model.compile_search(**({"mode": args.torch_compile_mode} if args.torch_compile_mode else {}))
    processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    if isinstance(processor, StringProcessor):
        raise ValueError(
            f"{args.model_name_or_path} is a model of strings; evaluate it with recipes/evaluate_strings.py"
        )
    tasks = read_tasks(args, task_args, processor)
    leaks = check_leaks(args, tasks)
    # The settings saved with the model, with those of the flags instead.
    search = SearchConfig.of(model.config.search).override(**given(search_args, "search_"))
    if args.torch_compile and search.method != "gradient":
        raise ValueError(
            f"`torch_compile` is true and the search method {search.method!r}, which takes no gradients and would not be "
            "compiled; leave it out"
        )
    compared: list[dict] = []
    if args.choose_search:
        choice = choose(args, task_args, model, processor, search)
        search, compared = choice.search_config, choice.rows
        if args.save_search and accelerator.is_main_process:
            file = Path(args.model_name_or_path, "config.json")  # nothing else of it changes
            settings = {**json.loads(file.read_text()), "search": search.to_dict()}
            file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    solved = Path(args.output_dir, "solved")
    if args.overwrite and accelerator.is_main_process:
        shutil.rmtree(solved, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        output = evaluate_tasks(
            model, processor, tasks, search, args.budgets, args.batch_size, args.seed, keep_in=solved
        )
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            print(f"stopped; solved tasks are kept in {solved}, the same command goes on without --overwrite")
        sys.exit(130)
    if accelerator.is_main_process:
        write(output, args, task_args, search, tasks, model, processor, compared, leaks)
        shutil.rmtree(solved)  # results.json has it all
    end_together(accelerator)


if __name__ == "__main__":
    run_recipe(main)
