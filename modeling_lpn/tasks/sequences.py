"""The sequence task: programs of a few rules on sequences of the integers 0 to 4, all rules and pairs at array speed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .pairs import require_integer
from .strings import SPLITS, smallest_size


NUM_VALUES = 5
KINDS = ("replace", "shift", "rotate", "swap", "follow")
# An odd multiplier of 64 bits (the golden ratio) for a hash of programs.
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def rule_table(length: int) -> np.ndarray:
    """
    Every rule on sequences of `length` values as a row `(kind, a, b, c)`, int64, with unused parameters 0:

    - `replace a b`: every a becomes b;
    - `shift a`: a is added to every value, modulo 5;
    - `rotate a`: the sequence turns a places to the left;
    - `swap a b`: the values at the places a < b change places;
    - `follow a b c`: every b right after an a becomes c (judged by the sequence before the rule).
    """
    values = range(NUM_VALUES)
    rules = [(0, a, b, 0) for a in values for b in values if a != b]
    rules += [(1, a, 0, 0) for a in range(1, NUM_VALUES)]
    rules += [(2, a, 0, 0) for a in range(1, length)]
    rules += [(3, a, b, 0) for a in range(length) for b in range(a + 1, length)]
    rules += [(4, a, b, c) for a in values for b in values for c in values if b != c]
    return np.array(rules)


def spread_rules(table: np.ndarray, count: int) -> np.ndarray:
    """`count` rows of a [`rule_table`] `(rules, 4)`, as many of each kind as there are, always the same ones; `(count, 4)`."""
    order = np.random.default_rng(0).permutation(len(table))
    rank = np.empty(len(table), dtype=np.int64)  # of a rule in its kind
    for kind in range(len(KINDS)):
        own = order[table[order, 0] == kind]
        rank[own] = np.arange(len(own))
    return table[np.sort(np.lexsort((table[:, 0], rank))[:count])]


def apply_rules(sequences: np.ndarray, rules: np.ndarray) -> np.ndarray:
    """
    Applies one rule a task.

    Args:
        sequences: `(tasks, pairs, length)` of values 0 to 4.
        rules: `(tasks, 4)`, rows of [`rule_table`].

    Returns:
        New sequences of the same shape and type.
    """
    length = sequences.shape[2]
    kind, first, second, third = (rules[:, index, None, None] for index in range(4))
    place = np.arange(length)
    source = np.where(kind == 2, (place + first) % length, place)
    swapped = np.where(place == first, second, np.where(place == second, first, place))
    source = np.where(kind == 3, swapped, source)
    moved = np.take_along_axis(sequences, np.broadcast_to(source, sequences.shape), axis=2)
    after = np.zeros(sequences.shape, dtype=bool)
    after[:, :, 1:] = sequences[:, :, :-1] == first
    changed = np.where((kind == 0) & (sequences == first), second, moved)
    changed = np.where(kind == 1, (sequences + first) % NUM_VALUES, changed)
    return np.where((kind == 4) & after & (sequences == second), third, changed).astype(sequences.dtype)


@dataclass
class SequenceTask:
    """
    The integer sequences of the LPN paper (arXiv 2411.08706, appendix B.7, table 2): a program is 3 to 5 parameterised rules
    of five kinds, applied one after the other. The paper names more than 100 million programs; 40 rules, the default, give
    105 million. Its code is not public: the rules of [`rule_table`] are ours, so that scores are not comparable one to one.

    Values are the colours 0 to 4 of grids of one row. Programs of two splits are disjoint.

    Args:
        num_pairs (`int`, defaults to 4): Pairs per task.
        length (`int`, defaults to 10): Values of a sequence, 2 to 255.
        min_rules, max_rules (`int`, defaults to 3 and 5): Rules of a program.
        num_distinct_rules (`int`, defaults to 40): Rules that programs are made of, of each kind as many as there are; at most
            those of [`rule_table`] (178 for 10 values).
        split (`str`, defaults to `"train"`): `"train"`, `"validation"` or `"test"` (1 program in 20 each for the latter two).

    Raises:
        `ValueError`: bad arguments.
    """

    num_pairs: int = 4
    length: int = 10
    min_rules: int = 3
    max_rules: int = 5
    num_distinct_rules: int = 40
    split: str = "train"

    def __post_init__(self):
        require_integer("num_pairs", self.num_pairs, 1)
        require_integer("length", self.length, 2, 255)
        require_integer("min_rules", self.min_rules, 1)
        require_integer("max_rules", self.max_rules, self.min_rules)
        smallest_size(self.split, self.max_rules)
        table = rule_table(self.length)
        require_integer("num_distinct_rules", self.num_distinct_rules, 1, len(table))
        self.rules = spread_rules(table, self.num_distinct_rules)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draws `num_tasks` tasks: grids `(num_tasks, num_pairs, 1, length)` uint8, their shapes, and `program`
        `(num_tasks, max_rules)`, rows of `self.rules` or -1 after the last rule."""
        program = self._draw_programs(num_tasks, rng)
        inputs = rng.integers(0, NUM_VALUES, (num_tasks, self.num_pairs, self.length), dtype=np.uint8)
        outputs = inputs
        for rule in program.T:
            outputs = np.where(rule[:, None, None] < 0, outputs, apply_rules(outputs, self.rules[rule]))
        shapes = np.broadcast_to(np.array([1, self.length]), (num_tasks, self.num_pairs, 2))
        return {
            "program": program,
            "input_grids": inputs[:, :, None],
            "output_grids": outputs[:, :, None],
            "input_shapes": shapes,
            "output_shapes": shapes,
        }

    def _draw_programs(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        found = np.empty((0, self.max_rules), dtype=np.int64)
        while len(found) < num_tasks:
            count = 32 + num_tasks * (2 if self.split == "train" else 25)
            drawn = rng.integers(0, len(self.rules), (count, self.max_rules))
            size = rng.integers(self.min_rules, self.max_rules + 1, count)
            drawn[np.arange(self.max_rules) >= size[:, None]] = -1
            found = np.concatenate([found, drawn[splits_of(drawn) == SPLITS.index(self.split)]])
        return found[:num_tasks]


def splits_of(programs: np.ndarray) -> np.ndarray:
    """Which of `SPLITS` each program `(count, rules)` belongs to, by a hash: `(count,)`, 1 and 2 for 1 in 20 each."""
    state = np.zeros(len(programs), dtype=np.uint64)
    for rule in programs.T:
        state = (state ^ (rule + 1).astype(np.uint64)) * MULTIPLIER
        state ^= state >> np.uint64(29)
    number = state % np.uint64(20)
    return np.where(number == 1, 1, np.where(number == 2, 2, 0))


__all__ = ["KINDS", "SequenceTask", "apply_rules", "rule_table", "splits_of", "spread_rules"]
