"""Arguments of the recipes of Latent Program Networks."""

import dataclasses
from typing import Any

from ..arguments import RecipeTrainingArguments, arguments_from, given, option
from ..lpn.configuration_lpn import LPNConfig
from ..lpn.search_lpn import SearchConfig
from .generators import TASK_GENERATORS


ModelArguments = arguments_from(LPNConfig, "ModelArguments")
SearchArguments = arguments_from(SearchConfig, "SearchArguments", prefix="search_")
TrainSearchArguments = arguments_from(SearchConfig, "TrainSearchArguments", prefix="train_search_")


def task_arguments() -> type:
    """
    The settings of all task generators as flags `--task_...`, of those registered until now: call it where a parser is built.

    Returns:
        `type`: a dataclass for [`parse_recipe`].
    """
    return arguments_from(TASK_GENERATORS.values(), "TaskArguments", prefix="task_")


def make_task(name: str, options: Any, **overrides):
    """Builds the task generator `name` of `TASK_GENERATORS`.

    Args:
        name (`str`): a key of `TASK_GENERATORS`.
        options ([`task_arguments`]): its settings.
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
    for setting in settings:
        if setting not in known:
            raise ValueError(f"`task_{setting}` is no option of task {name!r}; it has {', '.join(known)}")
    return TASK_GENERATORS[name](**settings)


def validation_settings(name: str, options: Any) -> dict:
    """What makes generator `name` draw validation tasks: another split, where it has one and its settings allow it."""
    fields = [field.name for field in dataclasses.fields(TASK_GENERATORS[name])]
    whole = "held_out" in fields and not options.task_held_out
    return {"split": "validation"} if "split" in fields and not whole else {}


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
