"""Trains a Latent Program Network.

    accelerate launch recipes/train_lpn.py recipes/lpn/pattern_2d.yaml --output_dir outputs/pattern_2d --seed 1

The YAML file gives defaults, flags win, `--help` lists them. A run that was stopped goes on with
`--resume_from_checkpoint auto` and ends with the weights of a run that was not. The output folder gets the model, the
processor, checkpoints (`--save_steps`), `trainer_state.json` with every logged number, and `run.json`, which says how it
was made.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch reads it; see `use_cpu_cores`

import dataclasses
import logging
import shlex
from pathlib import Path

from transformers import AutoModel, set_seed

from modeling_lpn import (
    DataCollatorForGridTasks,
    LPNConfig,
    LPNModel,
    LPNProcessor,
    SearchConfig,
    StringProcessor,
    TaskStream,
)
from modeling_lpn.arguments import given, option, parse_recipe
from modeling_lpn.optimizers import muon_and_settings
from modeling_lpn.runs import (
    ThreadChoice,
    TimeBudget,
    cores_of_process,
    end_together,
    find_checkpoint,
    is_finished,
    load_pretrained,
    prepare_compilation,
    remove_checkpoints,
    report_leaks,
    run_recipe,
    use_cpu_cores,
    write_results,
)
from modeling_lpn.tasks.arc import load_tasks
from modeling_lpn.tasks.arguments import (
    LPNTrainingArguments,
    ModelArguments,
    SearchArguments,
    TrainSearchArguments,
    make_task,
    task_arguments,
    validation_settings,
)
from modeling_lpn.tasks.evaluation import find_leaks_in
from modeling_lpn.tasks.stream import tasks_from_stream
from modeling_lpn.tasks.trainer import LPNTrainer


@dataclasses.dataclass
class RunArguments:
    task: str = option("pattern", "Task generator to train on, a key of TASK_GENERATORS.")
    model_name_or_path: str | None = option(None, "Model to start from; a new one if not given.")
    attn_implementation: str = option("sdpa", "eager, sdpa or flex_attention.")
    compile_layers: bool = option(False, "torch.compile for every transformer layer (pays on a GPU).")
    train_search_from: int = option(0, "Step from which the training loss searches; the mean of latents before.")
    symmetries: str = option("none", "Augmentation: none, rotations or all (with reflections).")
    permute_colors: bool = option(False, "Augmentation: permute the colours 1 to 9.")
    group_by: str | None = option(None, "tokens: batches of tasks of similar length.")
    eval_tasks: str | None = option(None, "Source of the tasks to evaluate; generated tasks if not given.")
    leaks: str = option("flag", "Tasks of eval_tasks that occur in the training data: flag, refuse.")
    num_eval_tasks: int = option(100, "How many of them.")
    eval_seed: int = option(1_000_000, "Seed of generated evaluation tasks.")
    eval_budgets: list[int] = option([0, 5, 20], "Search budgets to evaluate.")
    num_threads: int | None = option(
        None,
        "CPU threads of a process; the fastest of one, half and all cores, tried in the first steps, if not given.",
    )

    def __post_init__(self):
        if wrong := [budget for budget in self.eval_budgets if budget < 0]:
            raise ValueError(f"`eval_budgets` hold {wrong[0]}; a budget is a number of steps or samples, 0 or more")


def build_model(run, model_args):
    settings = given(model_args)
    if run.model_name_or_path is not None:
        # Settings of the recipe win over those of the checkpoint; a size that does not fit its weights is an error.
        settings["attn_implementation"] = run.attn_implementation
        return load_pretrained(AutoModel.from_pretrained, run.model_name_or_path, **settings)
    return LPNModel._from_config(LPNConfig(**settings), attn_implementation=run.attn_implementation)


def build_processor(run, task_args, config: LPNConfig) -> LPNProcessor:
    processor = getattr(make_task(run.task, task_args), "processor", None)
    if processor is None:
        return LPNProcessor(config.max_rows, config.max_cols, config.vocab_size)
    for name in ("max_rows", "max_cols", "vocab_size"):
        if getattr(processor, name) != getattr(config, name):
            raise ValueError(
                f"`{name}` is {getattr(config, name)}, but task {run.task!r} has grids with {getattr(processor, name)}; set"
                f" `{name}: {getattr(processor, name)}`"
            )
    return processor


def build_train_stream(run, task_args, args) -> TaskStream:
    seed = args.seed if args.data_seed is None else args.data_seed
    if seed == run.eval_seed:
        raise ValueError(f"the training data and `eval_seed` have the same seed {seed}; give different ones")
    num_items = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    options = {"group_by": run.group_by, "batch_size": args.train_batch_size, "turned": run.symmetries != "none"}
    return TaskStream(make_task(run.task, task_args), num_items, seed, **options)


def build_eval_tasks(run, task_args, args, processor) -> list[dict] | None:
    if args.eval_strategy == "no":
        return None
    if run.num_eval_tasks < 1:
        raise ValueError(
            f"`num_eval_tasks` is {run.num_eval_tasks} while `eval_strategy` is {args.eval_strategy.value}; give at least"
            " 1, or set `eval_strategy` to no"
        )
    if run.eval_tasks is not None:
        return load_tasks(run.eval_tasks, processor=processor)[: run.num_eval_tasks]
    held_out = validation_settings(run.task, task_args)
    stream = TaskStream(make_task(run.task, task_args, **held_out), run.num_eval_tasks, run.eval_seed)
    return tasks_from_stream(stream, run.num_eval_tasks)


def check_leaks(run, task_args, tasks) -> dict | None:
    """Which evaluation tasks of a source are trained on, by content, where the generator draws from a file."""
    if run.eval_tasks is None or tasks is None:
        report_leaks({}, 0, "tasks", run.leaks)
        return None
    source = given(task_args).get("task_path")
    found = find_leaks_in(tasks, [source] if source else [])
    trained_as = {task_id: leak["training_tasks"][0] for task_id, leak in found.items()}
    report_leaks(trained_as, len(tasks), "tasks", run.leaks)
    reason = None if source else f"the tasks of training are drawn by the generator {run.task!r}"
    return {"compared_with": [source] if source else [], "not_compared": reason, "tasks": found}


def argument_types() -> list[type]:
    """Of `parse_recipe`: the run, model, task, search in training, search that is saved with the model, and training."""
    return [
        RunArguments,
        ModelArguments,
        task_arguments(),
        TrainSearchArguments,
        SearchArguments,
        LPNTrainingArguments,
    ]


def evaluation_command(run, task_args, processor, folder: str) -> str:
    """What evaluates the model on tasks like those it was trained on, where these are generated."""
    recipe = "evaluate_strings" if isinstance(processor, StringProcessor) else "evaluate_lpn"
    command = ["accelerate", "launch", f"recipes/{recipe}.py", "--model_name_or_path", folder]
    settings = given(task_args)
    if "task_path" not in settings:
        command += ["--tasks", run.task]
        for name, value in settings.items():
            command += [f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return shlex.join(command)


def main():
    run, model_args, task_args, train_search, search, args = parse_recipe(argument_types())
    logging.basicConfig(level=logging.INFO if args.should_log else logging.WARNING)
    if args.device.type == "cpu":
        use_cpu_cores(run.num_threads)
    checkpoint = find_checkpoint(args, args.overwrite)
    if is_finished(checkpoint, args):
        return
    set_seed(args.seed)
    model = build_model(run, model_args)
    # Saved with the model: its users search as it was evaluated.
    model.config.search = {**(model.config.search or {}), **given(search, "search_")} or None
    if run.compile_layers or args.torch_compile:
        prepare_compilation()
    if run.compile_layers:
        model.compile_layers()
    config = model.config
    processor = build_processor(run, task_args, config)
    train_search = given(train_search, "train_search_")
    eval_tasks = build_eval_tasks(run, task_args, args, processor)
    leaks = check_leaks(run, task_args, eval_tasks)
    trainer = LPNTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorForGridTasks(
            processor, symmetries=run.symmetries, permute_colors=run.permute_colors
        ),
        train_dataset=build_train_stream(run, task_args, args),
        eval_dataset=eval_tasks,
        processing_class=processor,
        train_search=SearchConfig(**train_search) if train_search else None,
        train_search_from=run.train_search_from,
        eval_search=SearchConfig.of(model.config.search),
        eval_budgets=run.eval_budgets,
        optimizer_cls_and_kwargs=muon_and_settings(model, args) if args.muon else None,
    )
    trainer.add_callback(budget := TimeBudget(args.max_minutes))
    if run.num_threads is None and args.device.type == "cpu":
        trainer.add_callback(ThreadChoice(cores_of_process()))
    if args.overwrite:
        remove_checkpoints(args)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # it is pushed when its record is there
    trainer.save_state()
    if args.should_save:
        write_results(
            Path(args.output_dir, "run.json"),
            args.seed,
            num_parameters=model.num_parameters(),
            arguments={**vars(run), **given(task_args), "train_search": train_search, **args.to_sanitized_dict()},
            metrics=result.metrics,
            steps=trainer.state.global_step,
            seconds=budget.seconds,
            leaks=leaks,
            ended_by_time_budget=budget.ended,
        )
        print(f"evaluate it: {evaluation_command(run, task_args, processor, args.output_dir)}")
    if args.push_to_hub:
        trainer.push_to_hub()
    end_together(trainer.accelerator)


if __name__ == "__main__":
    run_recipe(main)
