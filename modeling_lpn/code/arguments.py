"""Arguments of the recipes of code models."""

import dataclasses

from ..arguments import RecipeTrainingArguments, arguments_from, option
from ..codegen2.configuration_codegen2 import CodeGen2Config
from .objectives import OBJECTIVES


CodeGen2Arguments = arguments_from(
    CodeGen2Config,
    "CodeGen2Arguments",
    skip=("bos_token_id", "eos_token_id", "pad_token_id", "eom_token_id", "use_cache"),
)


def objective_arguments() -> type:
    """
    The settings of all objectives as flags, of those registered until now: call it where a parser is built.

    Returns:
        `type`: a dataclass for [`parse_recipe`]. An objective's name goes before its settings, so that one which calls
        a field `max_length` does not break the others' flags.
    """
    kinds = [
        arguments_from(kind, f"{kind.__name__}Arguments", prefix=f"{name}_", skip=("splitter",))
        for name, kind in OBJECTIVES.items()
        if dataclasses.is_dataclass(kind)  # another factory has no settings
    ]
    return dataclasses.make_dataclass("ObjectiveArguments", [], bases=tuple(kinds))


@dataclasses.dataclass
class CodeTrainingArguments(RecipeTrainingArguments):
    """`TrainingArguments` for code models: AdamW (0.9, 0.95), weight decay 0.1, cosine schedule; see [`CodeTrainer`]."""

    learning_rate: float = option(3e-4, "Peak learning rate.")
    weight_decay: float = option(0.1, "Weight decay, on weight matrices.")
    adam_beta2: float = option(0.95, "Second momentum of AdamW.")
    lr_scheduler_type: str = option("cosine", "Learning rate schedule of transformers by name.")
    warmup_steps: float = option(0.02, "Steps of linear warm-up (below 1: share of all steps).")
    logging_steps: float = option(20, "Log the losses every so many steps.")
