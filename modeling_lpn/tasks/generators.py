"""Generators of tasks, in batches, for training.

A generator is a class with a `num_pairs` field and a method

    sample(num_tasks, rng) -> {"input_grids", "output_grids", "input_shapes", "output_shapes", ("task_id"), ("program")}

whose grids are `(num_tasks, num_pairs, rows, cols)` uint8, zero outside the grids, and whose shapes are
`(num_tasks, num_pairs, 2)` int64 = (rows, cols). It draws only from `rng`. A generator of strings has a `processor`, the
[`StringProcessor`] that reads its grids; one whose programs are split has a `split` field. Its line in `TASK_GENERATORS` makes recipes
find it and the property tests cover it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .lists import ListTask
from .pairs import PairTask, require_integer
from .sequences import SequenceTask
from .strings import StringTask


class TaskGenerator(Protocol):
    """What [`TaskStream`] needs of a generator, see the module docstring."""

    num_pairs: int

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, Any]: ...


@dataclass
class PatternTask:
    """
    The pattern task of the LPN paper (arXiv 2411.08706, section 5.1): a task is one square pattern of random colours;
    an input is black with a single blue cell (colour 1), its output has the pattern pasted with the top-left corner
    there. The official generator draws the same distribution with Python's `random`.

    Args:
        num_pairs (`int`, defaults to 4): Pairs per task.
        num_rows, num_cols (`int`, defaults to 10): Sides of every grid, in cells, at most 255.
        pattern_size (`int`, defaults to 4): Side of the pattern, in cells.
        density (`float`, defaults to 1.0): Probability that a cell of the pattern is coloured (uniformly 1 to 9);
            the others are black. Below 1 the corner cell of the pattern may be black as well.

    Raises:
        `ValueError`: a size is not an integer in range, the pattern is larger than the grid, or `density` is outside
        0..1.
    """

    num_pairs: int = 4
    num_rows: int = 10
    num_cols: int = 10
    pattern_size: int = 4
    density: float = 1.0

    def __post_init__(self):
        require_integer("num_pairs", self.num_pairs, 1)
        require_integer("num_rows", self.num_rows, 1, 255)
        require_integer("num_cols", self.num_cols, 1, 255)
        require_integer("pattern_size", self.pattern_size, 1)
        if self.pattern_size > min(self.num_rows, self.num_cols):
            raise ValueError(
                f"`pattern_size` is {self.pattern_size}, larger than the {self.num_rows} x {self.num_cols} grid; give"
                " a pattern that fits in the grid"
            )
        if not 0 <= self.density <= 1:
            raise ValueError(f"`density` is {self.density!r}; it is a probability, give a number from 0 to 1")

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws `num_tasks` tasks: grids `(num_tasks, num_pairs, num_rows, num_cols)` uint8 and their shapes."""
        size, rows, cols = self.pattern_size, self.num_rows, self.num_cols
        pattern = rng.integers(1, 10, (num_tasks, 1, size * size), dtype=np.uint8)
        if self.density < 1:
            pattern *= rng.random(pattern.shape) < self.density
        row = rng.integers(0, rows - size + 1, (num_tasks, self.num_pairs))
        col = rng.integers(0, cols - size + 1, (num_tasks, self.num_pairs))
        # Scattering into the flat array touches only the cells of the patterns, not the whole grids.
        grid_starts = np.arange(num_tasks * self.num_pairs).reshape(num_tasks, self.num_pairs) * (rows * cols)
        corners = grid_starts + row * cols + col
        offsets = (np.arange(size)[:, None] * cols + np.arange(size)).reshape(-1)
        input_grids = np.zeros((num_tasks, self.num_pairs, rows, cols), dtype=np.uint8)
        output_grids = np.zeros_like(input_grids)
        input_grids.reshape(-1)[corners] = 1
        output_grids.reshape(-1)[corners[..., None] + offsets] = pattern
        shapes = np.broadcast_to(np.array([rows, cols]), (num_tasks, self.num_pairs, 2))
        return {
            "input_grids": input_grids,
            "output_grids": output_grids,
            "input_shapes": shapes,
            "output_shapes": shapes,
        }


TASK_GENERATORS: dict[str, Callable[..., TaskGenerator]] = {
    "pattern": PatternTask,
    "pairs": PairTask,
    "sequence": SequenceTask,
    "string": StringTask,
    "list": ListTask,
}

__all__ = ["TASK_GENERATORS", "PatternTask", "TaskGenerator"]
