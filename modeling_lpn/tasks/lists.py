"""Functions on lists of integers, after DeepCoder (Balog et al., 2017, arXiv 1611.01989), written as strings.

They compute what those of ExeDec (Shi et al., 2024) do: division rounds down, and a negative number of items to take or drop
counts from the end, as in Python.
"""

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ..lpn.processing_lpn import StringProcessor
from .pairs import require_integer
from .strings import PATIENCE, encode_tasks, smallest_size, split_of


Value = int | list[int]

MAPS: dict[str, Callable[[int], int]] = {
    "+1": lambda x: x + 1,
    "-1": lambda x: x - 1,
    "*2": lambda x: x * 2,
    "*3": lambda x: x * 3,
    "*4": lambda x: x * 4,
    "/2": lambda x: x // 2,
    "/3": lambda x: x // 3,
    "/4": lambda x: x // 4,
    "*(-1)": lambda x: -x,
    "**2": lambda x: x * x,
}
PREDICATES: dict[str, Callable[[int], bool]] = {
    ">0": lambda x: x > 0,
    "<0": lambda x: x < 0,
    "even": lambda x: x % 2 == 0,
    "odd": lambda x: x % 2 == 1,
}
PAIRINGS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "min": min,
    "max": max,
}
# name: (kinds of its arguments, function); an argument is a list `l`, an integer `i` or a key of a table above.
FUNCTIONS: dict[str, tuple[str, Callable[..., Value]]] = {
    "head": ("l", lambda x: x[0]),
    "last": ("l", lambda x: x[-1]),
    "minimum": ("l", min),
    "maximum": ("l", max),
    "sum": ("l", sum),
    "reverse": ("l", lambda x: x[::-1]),
    "sort": ("l", sorted),
    "take": ("il", lambda n, x: x[:n]),
    "drop": ("il", lambda n, x: x[n:]),
    "access": ("il", lambda n, x: x[n] if n >= 0 else x[len(x)]),
    "map": ("ml", lambda name, x: [MAPS[name](value) for value in x]),
    "filter": ("pl", lambda name, x: [value for value in x if PREDICATES[name](value)]),
    "count": ("pl", lambda name, x: sum(1 for value in x if PREDICATES[name](value))),
    "scan": ("zl", lambda name, x: list(accumulate(x, PAIRINGS[name]))),
    "zip": ("zll", lambda name, x, y: [PAIRINGS[name](*both) for both in zip(x, y, strict=False)]),
}
TABLES: dict[str, Sequence[str]] = {"m": tuple(MAPS), "p": tuple(PREDICATES), "z": tuple(PAIRINGS)}
SCALARS = {"head", "last", "minimum", "maximum", "sum", "access", "count"}  # give an integer, the others a list
READERS = {kind: [name for name, (wanted, _) in FUNCTIONS.items() if kind in wanted] for kind in "li"}

# A statement: name of a function, then its arguments; an integer k is the k-th value (inputs first), text is a table's key.
Statement = tuple
Program = tuple[Statement, ...]


def run_program(program: Program, inputs: Sequence[Value]) -> Value:
    """
    Value of the last statement.

    Raises:
        `IndexError`, `ValueError`: a function has no value there, such as the head of an empty list.
    """
    values = list(inputs)
    for name, *arguments in program:
        values.append(FUNCTIONS[name][1](*[x if isinstance(x, str) else values[x] for x in arguments]))
    return values[-1]


def read_values(text: str) -> list[Value]:
    """
    The values of `[1 -3 2] 2`: `[[1, -3, 2], 2]`.

    Raises:
        `ValueError`: the text holds anything else.
    """
    found = re.findall(r"\[[-0-9 ]*\]|[^\s\[\]]+|[\[\]]", text)
    return [list(map(int, item[1:-1].split())) if item[:1] == "[" and len(item) > 1 else int(item) for item in found]


def write_value(value: Value) -> str:
    """`[1 -3 2]` for a list, `7` for an integer."""
    return f"[{' '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def without_unread_inputs(program: Program, num_inputs: int) -> Program:
    """The same function of the inputs that it reads, numbered anew: what says whether two programs are one."""
    read = {argument for _, *arguments in program for argument in arguments if isinstance(argument, int)}
    kept = [place for place in range(num_inputs + len(program)) if place >= num_inputs or place in read]
    new = {old: place for place, old in enumerate(kept)}
    return tuple((name, *(new.get(argument, argument) for argument in arguments)) for name, *arguments in program)


def count_symbols(value: Value) -> int:
    """How many symbols of [`list_alphabet`] write a value: `[1 -3]` is five."""
    return max(2, 2 * len(value) + 1) if isinstance(value, list) else 1


def list_alphabet(max_value: int) -> list[str]:
    """Brackets, a space and every integer to `max_value` as a symbol: for a [`StringProcessor`]."""
    return ["[", "]", " ", *map(str, range(-max_value, max_value + 1))]


@dataclass
class ListTask:
    """
    Functions on one or two lists of integers, or a list and an integer, as strings: `[1 -3 2] 2` to `[1 -3]`. A program is
    1 to `max_size` statements, each with the value before it among its arguments; a second input may be left unread, as in
    ExeDec. A list of a task is empty now and then, and its values are of one of the ranges 0 to 4, 0 to 9, -9 to 9 and all.

    Args:
        num_pairs (`int`, defaults to 4): Pairs per task, at least 2.
        max_length (`int`, defaults to 32): Longest text of the inputs together and of an output, at least 16, in integers,
            brackets and spaces.
        max_size (`int`, defaults to 4): Statements of a program at most.
        max_items (`int`, defaults to 5): Longest list of an input.
        max_value (`int`, defaults to 50): Largest absolute value, 5 to 125.
        output_step (`int`, defaults to 8): See [`StringProcessor`].
        split (`str`, defaults to `"train"`): `"train"`, `"validation"` or `"test"`; their programs are disjoint.

    Raises:
        `ValueError`: bad arguments.
    """

    num_pairs: int = 4
    max_length: int = 32
    max_size: int = 4
    max_items: int = 5
    max_value: int = 50
    output_step: int = 8
    split: str = "train"

    def __post_init__(self):
        require_integer("num_pairs", self.num_pairs, 2)
        require_integer("max_length", self.max_length, 16, 255)
        require_integer("max_size", self.max_size, 1)
        require_integer("max_items", self.max_items, 1)
        require_integer("max_value", self.max_value, 5, 125)  # symbols of a byte
        self._min_size = smallest_size(self.split, self.max_size)
        ranges = ((0, 4), (0, 9), (-9, 9), (-self.max_value, self.max_value))
        self._ranges = [(max(low, -self.max_value), min(high, self.max_value)) for low, high in ranges]
        self.processor = StringProcessor(self.max_length, list_alphabet(self.max_value), self.output_step)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draws `num_tasks` tasks: grids `(num_tasks, num_pairs, 1, cols)` uint8, their shapes, and `program` (list)."""
        dice = random.Random(int(rng.integers(2**63)))
        return encode_tasks([self.draw(dice) for _ in range(num_tasks)], self.processor)

    def draw(self, dice: random.Random) -> tuple[Program, list[str], list[str]]:
        """One task: its program, inputs and outputs."""
        for attempt in itertools.count():
            if attempt % PATIENCE == 0:
                size = dice.randint(self._min_size, self.max_size)
            kinds = ("l", "l", "ll", "li")[int(dice.random() * 4)]
            program = self._draw_program(dice, kinds, size)
            if program is None or split_of(without_unread_inputs(program, len(kinds)), size) != self.split:
                continue
            for _ in range(3):
                if pairs := self._draw_pairs(dice, program, kinds):
                    return program, *pairs
        raise AssertionError("unreachable")

    def _draw_value(self, dice: random.Random, bounds: tuple[int, int]) -> Value:
        draw, (low, high) = dice.random, bounds
        return [low + int(draw() * (high - low + 1)) for _ in range(int(draw() * (self.max_items + 1)))]

    def _draw_program(self, dice: random.Random, kinds: str, size: int) -> Program | None:
        """A program whose statements each read the value before, the first of them a list; `None` where one cannot be had."""
        types, program, draw = kinds, [], dice.random
        latest = kinds.index("l")
        for _ in range(size):
            names = READERS[types[latest]]
            name = names[int(draw() * len(names))]
            wanted = FUNCTIONS[name][0]
            slots = [slot for slot, kind in enumerate(wanted) if kind == types[latest]]
            slot = slots[int(draw() * len(slots))]
            arguments = [
                latest if index == slot else self._draw_argument(dice, kind, types)
                for index, kind in enumerate(wanted)
            ]
            if None in arguments:
                return None
            program.append((name, *arguments))
            types, latest = types + ("i" if name in SCALARS else "l"), len(types)
        return tuple(program)

    @staticmethod
    def _draw_argument(dice: random.Random, kind: str, types: str) -> int | str | None:
        choices = TABLES.get(kind) or [place for place, type_ in enumerate(types) if type_ == kind]
        return choices[int(dice.random() * len(choices))] if choices else None

    def _draw_pairs(self, dice: random.Random, program: Program, kinds: str) -> tuple[list[str], list[str]] | None:
        """Inputs and outputs of a program; `None` as soon as one is undefined or large, if one is long, or all are the same."""
        drawn, values, largest = [], [], self.max_value
        bounds = [self._ranges[int(dice.random() * len(self._ranges))] for _ in kinds]
        try:
            for _ in range(self.num_pairs):
                given = [
                    int(dice.random() * 6) if kind == "i" else self._draw_value(dice, bound)
                    for kind, bound in zip(kinds, bounds, strict=True)
                ]
                value = run_program(program, given)
                items = value if isinstance(value, list) else [value]
                if items and not -largest <= min(items) <= max(items) <= largest:
                    return None
                drawn.append(given)
                values.append(value)
        except (IndexError, ValueError):
            return None
        inputs = [" ".join([write_value(value) for value in given]) for given in drawn]
        outputs = [write_value(value) for value in values]
        # Symbols of a text: an integer or a bracket, and the space between two.
        lengths = [sum(map(count_symbols, given)) + len(given) - 1 for given in drawn] + list(
            map(count_symbols, values)
        )
        good = max(lengths) <= self.max_length and outputs != inputs and len(set(outputs)) > 1
        return (inputs, outputs) if good else None


__all__ = ["FUNCTIONS", "ListTask", "list_alphabet", "read_values", "run_program", "write_value"]
