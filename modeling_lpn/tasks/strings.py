"""Tasks on strings as people have them in spreadsheets: names, dates, phone numbers, paths, codes, prices.

The program space follows RobustFill (Devlin et al., 2017, arXiv 1703.07469) and FlashFill (Gulwani, 2011). A program is a
concatenation of *parts*. A part is a constant, or a chain of *steps*, each a function from string to string, applied to the
whole input. A program is written as nested tuples, e.g. `Last, F.` out of `First Last`:

    ((("token", "word", -1),), (("constant", ", "),), (("token", "capital", 0),), (("constant", "."),))

The number of operations, constants included, is the *size* of a program.
"""

import itertools
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..lpn.processing_lpn import StringProcessor
from ..optional import require
from .pairs import require_integer


Step = tuple
Part = tuple[Step, ...]
Program = tuple[Part, ...]

TOKENS = {
    "word": re.compile("[A-Za-z]+"),
    "number": re.compile("[0-9]+"),
    "capital": re.compile("[A-Z]"),
    "alphanumeric": re.compile("[A-Za-z0-9]+"),
    "punctuation": re.compile("[^A-Za-z0-9 ]"),
}
DELIMITERS = " ,.-/:;@_#$()\\"
CONSTANTS = (
    " ",
    ", ",
    "-",
    "/",
    ".",
    ":",
    "_",
    "; ",
    "#",
    "(",
    ")",
    "$",
    "Mr. ",
    "Dr. ",
    "ID-",
    "No. ",
    "@",
    "+",
    "&",
)
# Draws after which another size is tried. Sizes would else not be equally frequent: long programs fail more often.
PATIENCE = 64
SPLITS = ("train", "validation", "test")


class NoOutput(Exception):
    """A step has no output for a string: there is no such token, or no such delimiter."""


def _token(text: str, kind: str, index: int) -> str:
    found = TOKENS[kind].findall(text)
    if not -len(found) <= index < len(found):
        raise NoOutput
    return found[index]


def _field(text: str, delimiter: str, index: int) -> str:
    fields = text.split(delimiter)
    if len(fields) == 1 or not -len(fields) <= index < len(fields):
        raise NoOutput
    return fields[index]


def _after(text: str, delimiter: str) -> str:
    return _partition(text, delimiter)[1]


def _before(text: str, delimiter: str) -> str:
    return _partition(text, delimiter)[0]


def _partition(text: str, delimiter: str) -> tuple[str, str]:
    start, found, rest = text.partition(delimiter)
    if not found:
        raise NoOutput
    return start, rest


def _replace(text: str, old: str, new: str) -> str:
    if old not in text:
        raise NoOutput
    return text.replace(old, new)


def _join(text: str, kind: str, separator: str) -> str:
    found = TOKENS[kind].findall(text)
    if len(found) < 2:
        raise NoOutput
    return separator.join(found)


def _reverse(text: str, delimiter: str, separator: str) -> str:
    fields = text.split(delimiter)
    if len(fields) == 1:
        raise NoOutput
    return separator.join(reversed(fields))


# What a step does to the string before it; `constant` ignores it.
STEPS: dict[str, Callable[..., str]] = {
    "constant": lambda text, value: value,
    "token": _token,
    "slice": lambda text, start, end: text[start:end],
    "field": _field,
    "before": _before,
    "after": _after,
    "join": _join,
    "reverse": _reverse,
    "replace": _replace,
    "lower": str.lower,
    "upper": str.upper,
    "title": str.title,
    "trim": str.strip,
}
EXTRACTORS = ("token", "token", "token", "slice", "field", "before", "after", "join", "reverse")
TRANSFORMS = ("lower", "upper", "title", "slice", "replace")


def run_part(part: Part, text: str) -> str:
    """Applies the steps of a part in order. Raises [`NoOutput`] where one of them has none."""
    for name, *arguments in part:
        text = STEPS[name](text, *arguments)
    return text


def run_program(program: Program, text: str) -> str:
    """Output of a program, see the module docstring. Raises [`NoOutput`] where a step has none."""
    return "".join(run_part(part, text) for part in program)


def program_size(program: Program) -> int:
    """Number of operations."""
    return sum(map(len, program))


def split_of(program: Any, size: int) -> str:
    """
    Which split a program of `size` operations belongs to: 1 in 20 is for validation, 1 in 20 for test, by a checksum of how
    it is written. Programs of one operation are all for training: there are few of them, and all others are made of them.
    """
    if size == 1:
        return "train"
    number = zlib.crc32(repr(program).encode()) % 20
    return {0: "validation", 1: "test"}.get(number, "train")


def smallest_size(split: str, max_size: int) -> int:
    """Operations of a program of a split at least. Raises `ValueError` where there is none of up to `max_size`."""
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; give one of {', '.join(SPLITS)}")
    smallest = 1 if split == "train" else 2
    if max_size < smallest:
        raise ValueError(
            f"`split` is {split!r} and `max_size` is {max_size}, but programs of one operation are all for training; allow"
            " 2 or more"
        )
    return smallest


# A column of data: what stands in braces is drawn anew for every row from the field of that name.
TEMPLATES = {
    "name": (
        "{first} {last}",
        "{last}, {first}",
        "{first} {capital}. {last}",
        "{title} {first} {last}",
        "{last} {first}",
    ),
    "email": (
        "{lower_first}.{lower_last}@{domain}",
        "{lower_last}{dd}@{domain}",
        "{lower_first}_{lower_last}@{domain}",
    ),
    "phone": ("({ddd}) {ddd}-{dddd}", "{ddd}-{ddd}-{dddd}", "{ddd}.{ddd}.{dddd}", "+{d} {ddd} {ddd} {dddd}"),
    "date": ("{day}/{month}/{year}", "{year}-{month}-{day}", "{day} {mon} {year}", "{month_name} {day}, {year}"),
    "time": ("{hour}:{dd60}", "{hour}:{dd60}:{dd60}", "{mon} {day} {hour}:{dd60}"),
    "address": (
        "{dd} {last} {street}",
        "{ddd} {last} {street}, {city}",
        "{city}, {state} {ddddd}",
        "{city} ({state})",
    ),
    "path": (
        "/{word}/{word}/{word}.{extension}",
        "{word}/{word}_{dd}.{extension}",
        "{drive}:\\{word}\\{word}.{extension}",
    ),
    "code": ("{AA}-{dddd}", "{AA}{dd}-{ddd}", "{AAA}/{year}/{ddd}", "{dddd}-{AA}-{d}", "#{ddd}{AA}"),
    "price": ("${ddd}.{dd}", "{dd}.{dd} {currency}", "{currency} {d},{ddd}.{dd}", "{word}: ${dd}.{dd}"),
    "words": (
        "{word} {word} {word}",
        "{word}, {word}, {word}",
        "{word};{word};{word}",
        "{word}-{word}",
        "{word}_{word}_{dd}",
    ),
}


@cache
def _fields() -> dict[str, tuple[str, ...]]:
    """The values of every field; names, cities and words are those that Faker (MIT licence) ships."""
    faker = require("faker.providers.person.en_US", "data", "StringTask (its names, cities and words)")
    require("faker.providers.address.en_US", "data", "StringTask")
    require("faker.providers.lorem.en_US", "data", "StringTask")
    person, address = faker.providers.person.en_US.Provider, faker.providers.address.en_US.Provider
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    first, last = tuple(person.first_names), tuple(person.last_names)
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    fields: dict[str, Sequence[str]] = {
        "first": first,
        "last": last,
        "lower_first": [name.lower() for name in first],
        "lower_last": [name.lower() for name in last],
        "capital": letters,
        "title": ("Mr.", "Mrs.", "Ms.", "Dr.", "Prof."),
        "domain": ("example.com", "example.org", "mail.net", "uni.edu", "post.co.uk", "work.io"),
        "word": faker.providers.lorem.en_US.Provider.word_list,
        "city": [name + suffix for name in first[:200] for suffix in address.city_suffixes],
        "street": address.street_suffixes[:40],
        "state": address.states_abbr,
        "extension": ("txt", "csv", "pdf", "py", "docx", "jpg", "tar.gz"),
        "drive": "CDE",
        "currency": ("USD", "EUR", "GBP", "CHF", "JPY"),
        "AA": [a + b for a in letters for b in letters],
        "AAA": [a + b + c for a in letters for b in letters for c in letters],
        "day": [f"{day:02d}" for day in range(1, 29)],
        "month": [f"{month:02d}" for month in range(1, 13)],
        "month_name": months,
        "mon": [name[:3] for name in months],
        "year": [str(year) for year in range(1950, 2030)],
        "hour": [f"{hour:02d}" for hour in range(24)],
        "dd60": [f"{minute:02d}" for minute in range(60)],
        **{"d" * width: [f"{n:0{width}d}" for n in range(10**width)] for width in range(1, 6)},
    }
    return {name: tuple(values) for name, values in fields.items()}


@cache
def _templates(kinds: tuple[str, ...]) -> list[list[tuple[str, ...]]]:
    """Each template of these kinds as a list of choices, one after the other; a literal is a single choice."""
    fields = _fields()
    return [
        [fields[piece] if index % 2 else (piece,) for index, piece in enumerate(re.split(r"\{(\w+)\}", template))]
        for kind in kinds
        for template in TEMPLATES[kind]
    ]


def draw_program(dice: random.Random, example: str, size: int) -> Program:
    """Draws a program of `size` operations whose delimiters and token numbers make sense for the string `example`."""
    parts: list[Part] = []
    for _ in range(size):
        fixed = parts and parts[-1][0][0] == "constant"
        if parts and not fixed and len(parts[-1]) < 3 and dice.random() < 0.4:
            parts[-1] = (*parts[-1], _draw_step(dice, example, TRANSFORMS))
        elif not fixed and size > 1 and dice.random() < 0.35:
            parts.append((("constant", dice.choice(CONSTANTS)),))
        else:
            names = EXTRACTORS if dice.random() < 0.85 else (*TRANSFORMS, "trim")
            parts.append((_draw_step(dice, example, names),))
    return tuple(parts)


def _draw_step(dice: random.Random, example: str, names: Sequence[str]) -> Step:
    name = names[int(dice.random() * len(names))]
    if name == "token":
        kinds = [kind for kind, pattern in TOKENS.items() if pattern.search(example)] or ["word"]
        return name, kinds[int(dice.random() * len(kinds))], (0, 0, 1, -1, -1, 2, -2)[int(dice.random() * 7)]
    if name == "slice":
        start = int(dice.random() * 4)
        return (name, start, start + 1 + int(dice.random() * 4)) if dice.random() < 0.6 else (name, -1 - start, None)
    if name == "join":
        return (
            name,
            ("word", "number", "capital", "alphanumeric")[int(dice.random() * 4)],
            dice.choice(("", "-", ".", " ")),
        )
    if name in ("field", "before", "after", "reverse", "replace"):
        there = [character for character in DELIMITERS if character in example] or [" "]
        delimiter = there[int(dice.random() * len(there))]
        if name == "field":
            return name, delimiter, (0, 1, -1, -2)[int(dice.random() * 4)]
        if name in ("before", "after"):
            return name, delimiter
        return name, delimiter, dice.choice(("", " ", "-", "/", "_", ", "))
    return (name,)


@dataclass
class StringTask:
    """
    Transformations of one column of strings, see the module docstring; a task draws a kind of data and a program of 1 to
    `max_size` operations. Programs whose outputs are empty, too long, the inputs themselves or all the same are drawn
    again, as are steps that change nothing. `split` tells programs apart by a checksum, so that those of two splits are
    disjoint.

    Args:
        num_pairs (`int`, defaults to 4): Pairs per task, at least 2.
        max_length (`int`, defaults to 64): Longest input and output, in characters, at least 16.
        max_size (`int`, defaults to 4): Operations of a program at most.
        kinds (`Sequence[str]`): Kinds of data, keys of `TEMPLATES`; all of them by default.
        output_step (`int`, defaults to 8): See [`StringProcessor`].
        split (`str`, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.

    Raises:
        `ImportError`: Faker is not installed (its lists of names and words are used).
        `ValueError`: bad arguments.
    """

    num_pairs: int = 4
    max_length: int = 64
    max_size: int = 4
    kinds: Sequence[str] = tuple(TEMPLATES)
    output_step: int = 8
    split: str = "train"

    def __post_init__(self):
        require_integer("num_pairs", self.num_pairs, 2)
        require_integer("max_length", self.max_length, 16, 255)
        require_integer("max_size", self.max_size, 1)
        self._min_size = smallest_size(self.split, self.max_size)
        if not self.kinds or isinstance(self.kinds, str) or set(self.kinds) - set(TEMPLATES):
            raise ValueError(f"`kinds` is {self.kinds!r}; give a list of some of {', '.join(TEMPLATES)}")
        self.processor = StringProcessor(self.max_length, output_step=self.output_step)
        self._columns = _templates(tuple(self.kinds))

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draws `num_tasks` tasks: grids `(num_tasks, num_pairs, 1, cols)` uint8, their shapes, and `program` (list)."""
        dice = random.Random(int(rng.integers(2**63)))
        return encode_tasks([self.draw(dice) for _ in range(num_tasks)], self.processor)

    def draw(self, dice: random.Random) -> tuple[Program, list[str], list[str]]:
        """One task: its program, inputs and outputs."""
        for attempt in itertools.count():
            if attempt % PATIENCE == 0:
                size = dice.randint(self._min_size, self.max_size)
            inputs = self._draw_inputs(dice)
            for _ in range(4 if inputs else 0):
                program = draw_program(dice, inputs[0], size)
                if split_of(program, size) == self.split and (outputs := self._outputs(program, inputs)):
                    return program, inputs, outputs
        raise AssertionError("unreachable")

    def _draw_inputs(self, dice: random.Random) -> list[str]:
        column, draw = self._columns[int(dice.random() * len(self._columns))], dice.random
        untidy = draw() < 0.05
        inputs = []
        for _ in range(self.num_pairs):
            text = "".join([choices[int(draw() * len(choices))] for choices in column])
            text = " " * int(draw() * 3) + text + " " * int(draw() * 3) if untidy else text
            if len(text) > self.max_length:
                return []
            inputs.append(text)
        return inputs

    def _outputs(self, program: Program, inputs: list[str]) -> list[str]:
        """Outputs of a program that is worth asking for; else nothing."""
        outputs = [""] * len(inputs)
        try:
            for part in program:
                texts = inputs
                for name, *arguments in part:
                    before, step = texts, STEPS[name]
                    texts = [step(text, *arguments) for text in texts]
                    if texts == before:
                        return []
                outputs = [output + text for output, text in zip(outputs, texts, strict=True)]
        except NoOutput:
            return []
        lengths = list(map(len, outputs))
        good = min(lengths) and max(lengths) <= self.max_length and outputs != inputs and len(set(outputs)) > 1
        return outputs if good else []


def encode_tasks(tasks: Sequence[tuple[Any, list[str], list[str]]], processor: StringProcessor) -> dict[str, Any]:
    """Tasks `(program, inputs, outputs)`, as many pairs each, as the arrays that a generator gives."""
    batch: dict[str, Any] = {"program": [program for program, _, _ in tasks]}
    for side, part in (("input", 1), ("output", 2)):
        texts = [text for task in tasks for text in task[part]]
        grids, shapes = processor.encode(texts, is_output=side == "output")
        batch[f"{side}_grids"] = grids.reshape(len(tasks), -1, *grids.shape[1:])
        batch[f"{side}_shapes"] = shapes.reshape(len(tasks), -1, 2)
    return batch


__all__ = [
    "STEPS",
    "TEMPLATES",
    "NoOutput",
    "StringTask",
    "draw_program",
    "encode_tasks",
    "program_size",
    "run_part",
    "run_program",
    "smallest_size",
    "split_of",
]
