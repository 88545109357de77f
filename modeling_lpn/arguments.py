"""Arguments of the recipes: a flat YAML file gives the defaults, the command line wins.

The values of a YAML file are parsed as if they were flags, so argparse gives them their types (`1e-4` is a float; YAML
alone reads it as text). Fields of [`LPNConfig`], [`CodeGen2Config`], [`SearchConfig`], the objectives and the task
generators become flags without being named here again.
"""

import ctypes
import dataclasses
import difflib
import inspect
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args, get_origin

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .configuration_codegen2 import CodeGen2Config
from .configuration_lpn import LPNConfig
from .objectives import OBJECTIVES
from .search_lpn import SearchConfig
from .tasks import TASK_GENERATORS


class _RecipeParser(HfArgumentParser):
    def error(self, message):
        # The usage text of some 200 flags would push the one line that matters off the screen.
        raise ValueError(f"{message} (see --help)")


class _FlatLoader(yaml.BaseLoader):
    """Reads every scalar as the text that stands in the file and refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"key `{twice[0]}` is given twice; keep one of the two")
        return super().construct_mapping(node, deep)


def _flags_of_recipe(path: Path, known: list[str]) -> list[str]:
    """The content of a YAML recipe as command-line flags."""
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("recipes")
        there = ", ".join(sorted(str(file) for file in folder.rglob("*.yaml"))) or "no .yaml file"
        raise FileNotFoundError(f"recipe {path} does not exist; {folder} holds: {there}")
    try:
        content = yaml.load(path.read_text(), Loader=_FlatLoader) or {}  # noqa: S506 (a BaseLoader builds text only)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"recipe {path} holds a {type(content).__name__}; write `key: value` lines")
    flags = []
    for key, value in content.items():
        _check_known(key, known, f"recipe {path}")
        values = value if isinstance(value, list) else [value]
        if not values or any(not isinstance(v, str) or v in ("", "~", "null") for v in values):
            raise ValueError(
                f"recipe {path}: `{key}` is {value!r}; recipes are flat, give a value or a list of values, "
                "and leave the key out for its default"
            )
        # One token where possible, so that a value that begins with a dash is not taken for a flag.
        flags += [f"--{key}={value}"] if isinstance(value, str) else [f"--{key}", *value]
    return flags


def _check_known(key: str, known: list[str], where: str) -> None:
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        cure = f"did you mean `{close[0]}`?" if close else "see --help for all of them"
        raise ValueError(f"{where}: `{key}` is no known argument; {cure}")


def parse_recipe(dataclass_types, argv: list[str] | None = None) -> tuple:
    """Parses `[recipe.yaml] [--flag value ...]` into dataclasses.

    Args:
        dataclass_types (`list[type]`): The dataclasses to fill; together they define what is known.
        argv (`list[str]`, *optional*): Arguments without the program name; `sys.argv[1:]` if not given.

    Returns:
        `tuple`: One instance of each dataclass.

    Raises:
        FileNotFoundError: The recipe does not exist.
        ValueError: A key or flag is unknown (the nearest known one is named), a value has the wrong type, or the file
            is not flat YAML.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _RecipeParser(list(dataclass_types), allow_abbrev=False)
    known = [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]
    recipe = []
    if argv and not argv[0].startswith("-"):
        recipe = _flags_of_recipe(Path(argv.pop(0)), known)
    *parsed, rest = parser.parse_args_into_dataclasses(
        recipe + argv, return_remaining_strings=True, look_for_args_file=False
    )
    for text in rest:
        if text.startswith("--"):
            _check_known(text[2:].split("=")[0], known, "command line")
    if rest:
        raise ValueError(
            f"command line: {rest[0]!r} belongs to no flag; write --name value, the recipe file comes first"
        )
    return tuple(parsed)


def arguments_from(sources: type | Iterable[type], name: str, prefix: str = "", skip: tuple = ()) -> type:
    """Makes a dataclass of optional arguments out of the fields that configuration classes declare themselves.

    Every field defaults to `None`, "not given": [`given`] then leaves the default to the source.

    Args:
        sources (`type` or iterable of them): Dataclasses; fields that they only inherit are left out. Where several have
            a field of one name, it becomes one argument.
        name (`str`): Name of the new class.
        prefix (`str`): Goes before every field name.
        skip (`tuple[str]`): Fields to leave out.

    Returns:
        `type`: The dataclass.
    """
    fields = {}
    for source in [sources] if isinstance(sources, type) else sources:
        hints = inspect.get_annotations(source, eval_str=True)
        for field in dataclasses.fields(source):
            if field.name in skip or field.name not in hints or field.name in fields:
                continue
            default = "" if field.default is dataclasses.MISSING else f" (its default: {field.default})"
            metadata = {"help": f"`{field.name}` of {source.__name__}{default}".replace("%", "%%")}
            kind = list[str] if get_origin(hints[field.name]) is Sequence else hints[field.name]
            kind = list[get_args(kind)[0]] if get_origin(kind) is tuple else kind
            kind = float if {float, int} <= set(get_args(kind)) else kind  # a parser knows one type for each argument
            fields[field.name] = (prefix + field.name, kind | None, dataclasses.field(default=None, metadata=metadata))
    made = dataclasses.make_dataclass(name, list(fields.values()))
    made.__module__ = __name__
    return made


def option(default, text: str):
    """A field of a recipe's arguments with its help text; a list becomes the default of each new instance."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def given(arguments, prefix: str = "") -> dict:
    """The arguments of a class from [`arguments_from`] that were given, by their names without `prefix`."""
    values = dataclasses.asdict(arguments)
    return {name[len(prefix) :]: value for name, value in values.items() if value is not None}


def use_cpu_cores(num_threads: int | None = None) -> int:
    """Sets torch's CPU threads; `accelerate launch` and `torchrun` leave every process with one.

    Args:
        num_threads (`int`, *optional*): threads of this process. By default the machine's cores that this process may
            use, divided by the processes of the launch on this machine.

    Returns:
        `int`: the number that was set.
    """
    if num_threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(num_threads)
    _keep_freed_memory()
    return num_threads


def _keep_freed_memory() -> None:
    """
    Tells glibc to keep the memory of freed tensors. By default it returns large blocks to the kernel at once, which then
    zeroes new pages for the next step: up to a quarter of a training step of a small model.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names of mallopt(3)
    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, size in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            libc.mallopt(option, size)
    except (OSError, AttributeError):
        pass  # no glibc here: nothing to tell


def stay_on_cpu(use_cpu: bool = False) -> bool:
    """Whether a run stays on the CPU: asked for by flag or by `accelerate launch --cpu`, or there is nothing else.

    transformers and accelerate want to be told even then: else they refuse `bf16`, and two processes on a machine without
    an accelerator silently become two runs of one process each.
    """
    launched = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return use_cpu or launched or not torch.accelerator.is_available()


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint to continue from.

    Args:
        args (`TrainingArguments`): `resume_from_checkpoint` is a folder, `"auto"` for the last checkpoint in `output_dir`
            if there is one, or `None`.

    Returns:
        `str`, *optional*: its folder.

    Raises:
        ValueError: `output_dir` holds checkpoints of an earlier run, and nothing says to continue it.
    """
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if args.resume_from_checkpoint == "auto":
        return last
    if args.resume_from_checkpoint is None and last is not None:
        raise ValueError(
            f"{args.output_dir} holds checkpoints of an earlier run (the last: {Path(last).name}); continue it with "
            "--resume_from_checkpoint auto, or choose another --output_dir"
        )
    return args.resume_from_checkpoint


def end_together(accelerator) -> None:
    """Waits until all processes of a launch are done, then dissolves their group; the last act of a recipe.

    A process that ends while another still writes takes the whole launch down with it.

    Args:
        accelerator (`accelerate.Accelerator`): that of the run.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # gloo's thread frees what it keeps of the barrier a moment later, and needs the interpreter lock for that. torch
        # 2.13 waits for that thread while holding the lock when it tears down the group: without a pause it may hang.
        time.sleep(0.5)
    accelerator.end_training()


ModelArguments = arguments_from(LPNConfig, "ModelArguments")
SearchArguments = arguments_from(SearchConfig, "SearchArguments", prefix="search_")
TrainSearchArguments = arguments_from(SearchConfig, "TrainSearchArguments", prefix="train_search_")
CodeGen2Arguments = arguments_from(
    CodeGen2Config,
    "CodeGen2Arguments",
    skip=("bos_token_id", "eos_token_id", "pad_token_id", "eom_token_id", "use_cache"),
)
ObjectiveArguments = arguments_from(OBJECTIVES.values(), "ObjectiveArguments", skip=("splitter",))
TaskArguments = arguments_from(TASK_GENERATORS.values(), "TaskArguments", prefix="task_")


def make_task(name: str, options: TaskArguments, **overrides):
    """Builds the task generator `name` of `TASK_GENERATORS`.

    Args:
        name (`str`): a key of `TASK_GENERATORS`.
        options (`TaskArguments`): its settings.
        overrides: settings that win.

    Returns:
        [`TaskGenerator`]

    Raises:
        ValueError: The name is unknown, or an option is none of this generator's.
    """
    if name not in TASK_GENERATORS:
        raise ValueError(f"`task` is {name!r}; known: {', '.join(TASK_GENERATORS)}")
    settings = {**given(options, "task_"), **overrides}
    known = [field.name for field in dataclasses.fields(TASK_GENERATORS[name])]
    for option in settings:
        if option not in known:
            raise ValueError(f"`task_{option}` is no option of task {name!r}; it has {', '.join(known)}")
    return TASK_GENERATORS[name](**settings)


@dataclasses.dataclass
class RecipeTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what both families need: a stream that keeps its order, and a CPU where there is no more."""

    optim: str = option("adamw_torch", "Optimiser of transformers by name.")
    save_total_limit: int | None = option(2, "Checkpoints to keep.")
    train_sampling_strategy: str = option("sequential", "Order of the stream, which is random in itself.")
    remove_unused_columns: bool = option(False, "Must stay off: the collator reads what the model does not.")
    ddp_find_unused_parameters: bool | None = option(
        False, "Whether some parameters get no gradient in several processes."
    )

    def __post_init__(self):
        self.use_cpu = stay_on_cpu(self.use_cpu)
        if self.use_cpu:
            self.dataloader_pin_memory = False  # there is nothing to pin memory for, and torch warns about it
        super().__post_init__()


@dataclasses.dataclass
class LPNTrainingArguments(RecipeTrainingArguments):
    """`TrainingArguments` with the optimiser of the published LPN training code as default.

    AdamW (0.9, 0.999, 1e-8) with weight decay 1e-4 on every parameter, gradient clipping at 1.0, learning rate 4e-4
    warmed up over 99 steps and then constant; see [`LPNTrainer`].
    """

    learning_rate: float = option(4e-4, "Learning rate after the warm-up.")
    weight_decay: float = option(1e-4, "Weight decay, on every parameter.")
    lr_scheduler_type: str = option("constant_with_warmup", "Learning rate schedule of transformers by name.")
    warmup_steps: float = option(99, "Steps of linear warm-up (below 1: share of all steps).")
    max_steps: int = option(1000, "Optimiser steps; the data never ends.")
    per_device_train_batch_size: int = option(128, "Tasks per device and step.")
    logging_steps: float = option(100, "Log the losses every so many steps.")


@dataclasses.dataclass
class CodeTrainingArguments(RecipeTrainingArguments):
    """`TrainingArguments` for code models: AdamW (0.9, 0.95), weight decay 0.1, cosine schedule; see [`CodeTrainer`]."""

    learning_rate: float = option(3e-4, "Peak learning rate.")
    weight_decay: float = option(0.1, "Weight decay, on weight matrices.")
    adam_beta2: float = option(0.95, "Second momentum of AdamW.")
    lr_scheduler_type: str = option("cosine", "Learning rate schedule of transformers by name.")
    warmup_steps: float = option(0.02, "Steps of linear warm-up (below 1: share of all steps).")
    logging_steps: float = option(20, "Log the losses every so many steps.")
