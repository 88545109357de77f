"""Evaluates a Latent Program Network by latent search at a list of budgets.

    accelerate launch recipes/evaluate_lpn.py --model_name_or_path outputs/arc --tasks arcagi:evaluation

A YAML file may come first; flags win over it, `--help` lists them. The output folder gets `results.json` (scores by name,
decoder evaluations, seconds, how it was made), `submission.json` for ARC Prize, and pictures. Several processes split
the tasks; the result is the same.
"""

import dataclasses
import json
import math
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoModel, AutoProcessor

from modeling_lpn import SearchConfig, TaskStream
from modeling_lpn.arguments import given, option, parse_recipe
from modeling_lpn.runs import describe_run, end_together, stay_on_cpu, use_cpu_cores
from modeling_lpn.tasks import plots
from modeling_lpn.tasks.arc import load_tasks
from modeling_lpn.tasks.arguments import SearchArguments, TaskArguments, make_task
from modeling_lpn.tasks.evaluation import evaluate_tasks, search_at_budget
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
    budgets: list[int] = option([0, 1, 5, 20, 100], "Gradient steps, or samples of a random search.")
    output_dir: str = option("outputs/evaluation", "Where the results go.")
    batch_size: int = option(32, "Tasks solved at a time.")
    seed: int = option(1_000_000, "Seed of generated tasks and of the search.")
    num_pictures: int = option(8, "Tasks to draw; 0 for no pictures at all.")
    num_maps: int = option(0, "Latent spaces to draw; one takes 3600 decoder evaluations.")
    attn_implementation: str = option("sdpa", "eager, sdpa or flex_attention.")
    use_cpu: bool = option(False, "Stay on the CPU where there is an accelerator.")
    num_threads: int | None = option(None, "CPU threads of a process; all cores if not given.")


def read_tasks(args, task_args, processor) -> list[dict]:
    if args.tasks not in TASK_GENERATORS:
        return load_tasks(args.tasks, args.solutions, processor)[: args.num_tasks]
    num_tasks = 200 if args.num_tasks is None else args.num_tasks
    return tasks_from_stream(TaskStream(make_task(args.tasks, task_args), num_tasks, args.seed), num_tasks)


def print_table(output) -> None:
    names = list(output.results[0].scores)
    width = max(map(len, names), default=21)
    print(f"{'budget':>{width}} " + " ".join(f"{result.budget:8d}" for result in output.results))
    print(f"{'decoder evaluations':>{width}} " + " ".join(f"{r.num_evaluations:8.1f}" for r in output.results))
    print(f"{'log-likelihood (nats)':>{width}} " + " ".join(f"{r.log_prob:8.3f}" for r in output.results))
    for name in names:
        print(f"{name:>{width}} " + " ".join(f"{100 * result.scores[name]:7.2f}%" for result in output.results))


def summarise(output, args, task_args, search, tasks, model) -> dict:
    results = [{name: value for name, value in vars(r).items() if name != "predictions"} for r in output.results]
    for row in results:  # JSON has no infinity
        row["log_prob"] = row["log_prob"] if math.isfinite(row["log_prob"]) else None
    return {
        **describe_run(args.seed),
        "arguments": {**vars(args), **given(task_args)},
        "search": vars(search),
        "num_parameters": model.num_parameters(),
        "num_tasks": len(tasks),
        "errors": output.errors,
        "num_nonfinite": output.num_nonfinite,
        "seconds": output.seconds,
        "results": results,
    }


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
    if search.method == "gradient":
        truths = {t["task_id"]: [pair.get("output") for pair in t["test"]] for t in drawn}
        solved = [[grids[0] for grids in best.predictions[name]] == truth for name, truth in truths.items()]
        figure = plots.plot_search([output.trajectories[name] for name in truths], solved if best.scores else None)
        plots.save_figure(figure, folder / "search.png")


def write(output, args, task_args, search, tasks, model, processor) -> None:
    folder, best = Path(args.output_dir), max(output.results, key=lambda result: result.budget)
    folder.mkdir(parents=True, exist_ok=True)
    results = json.dumps(summarise(output, args, task_args, search, tasks, model), allow_nan=False, indent=1)
    (folder / "results.json").write_text(results + "\n")
    (folder / "submission.json").write_text(json.dumps(make_submission(best.predictions, tasks, fill=[[0]])) + "\n")
    if args.num_pictures:
        draw(output, best, tasks, args, model, processor, search_at_budget(search, best.budget))
    print_table(output)
    for task_id, error in output.errors.items():
        print(f"task {task_id} failed and counts as wrong: {error}")
    print(f"{len(tasks)} tasks in {output.seconds['total']:.1f} s; results, submission and pictures are in {folder}")


def main():
    args, task_args, search_args = parse_recipe([EvaluationArguments, TaskArguments, SearchArguments])
    accelerator = Accelerator(cpu=stay_on_cpu(args.use_cpu))
    if accelerator.device.type == "cpu":
        use_cpu_cores(args.num_threads)
    model = AutoModel.from_pretrained(args.model_name_or_path, attn_implementation=args.attn_implementation)
    model = model.to(accelerator.device).eval()
    processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    tasks = read_tasks(args, task_args, processor)
    search = SearchConfig(**given(search_args, "search_"))
    output = evaluate_tasks(model, processor, tasks, search, args.budgets, args.batch_size, args.seed)
    if accelerator.is_main_process:
        write(output, args, task_args, search, tasks, model, processor)
    end_together(accelerator)


if __name__ == "__main__":
    main()
