"""Arguments of the recipes: a flat YAML file gives the defaults, the command line wins.

The values of a YAML file are parsed as if they were flags, so argparse gives them their types (`1e-4` is a float; YAML
alone reads it as text). The families' configurations, objectives and task generators become flags by [`arguments_from`]
in `tasks/arguments.py` and `code/arguments.py`, without being named again.
"""

import dataclasses
import difflib
import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args, get_origin

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .files import NoAliases, parse_yaml
from .runs import stay_on_cpu


class _RecipeParser(HfArgumentParser):
    def error(self, message):
        # The usage text of some 200 flags would push the one line that matters off the screen.
        raise ValueError(f"{message} (see --help)")


class _FlatLoader(NoAliases, yaml.BaseLoader):
    """Reads every scalar as the text that stands in the file and refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
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
        content = parse_yaml(path, _FlatLoader) or {}
    except ValueError as error:
        raise ValueError(f"recipe {error}") from error
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
            kind = _without_none(hints[field.name])
            kind = list[str] if get_origin(kind) is Sequence else kind
            kind = list[get_args(kind)[0]] if get_origin(kind) is tuple else kind
            kind = float if {float, int} <= set(get_args(kind)) else kind  # a parser knows one type for each argument
            fields[field.name] = (prefix + field.name, kind | None, dataclasses.field(default=None, metadata=metadata))
    made = dataclasses.make_dataclass(name, list(fields.values()))
    made.__module__ = __name__
    return made


def _without_none(hint):
    """`X` of `X | None`; anything else as it is."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0] if len(parts) == 1 and type(None) in get_args(hint) else hint


def option(default, text: str):
    """A field of a recipe's arguments with its help text; a list becomes the default of each new instance."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def given(arguments, prefix: str = "") -> dict:
    """The arguments of a class from [`arguments_from`] that were given, by their names without `prefix`."""
    values = dataclasses.asdict(arguments)
    return {name[len(prefix) :]: value for name, value in values.items() if value is not None}


@dataclasses.dataclass
class RecipeTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what both families need: a stream that keeps its order, and a CPU where there is no more."""

    optim: str = option("adamw_torch", "Optimiser of transformers by name.")
    muon: bool = option(False, "Muon for the matrices of the layers, AdamW for the rest, both at learning_rate.")
    save_total_limit: int | None = option(2, "Checkpoints to keep.")
    train_sampling_strategy: str = option("sequential", "Order of the stream, which is random in itself.")
    remove_unused_columns: bool = option(False, "Must stay off: the collator reads what the model does not.")
    ddp_find_unused_parameters: bool | None = option(
        False, "Whether some parameters get no gradient in several processes."
    )

    overwrite: bool = option(False, "Begin anew where an earlier run lies in output_dir.")
    max_minutes: float | None = option(None, "Minutes after which training ends, with what it has learned until then.")

    def __post_init__(self):
        if self.eval_on_start and self.eval_strategy == "no":
            raise ValueError("`eval_on_start` is True while `eval_strategy` is no; leave one of the two out")
        if self.load_best_model_at_end and self.eval_strategy == "no":
            raise ValueError(
                "`load_best_model_at_end` is True while `eval_strategy` is no, so that no model is known to be the best;"
                " set `eval_strategy` to steps or epoch, or leave it out"
            )
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"`max_minutes` is {self.max_minutes}; give a positive number of minutes")
        self.use_cpu = stay_on_cpu(self.use_cpu)
        if self.use_cpu:
            self.dataloader_pin_memory = False  # there is nothing to pin memory for, and torch warns about it
        super().__post_init__()
