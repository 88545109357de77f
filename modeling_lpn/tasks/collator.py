"""The collator of grid tasks: lists of tasks to batches of tensors, with augmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..lpn.plan_lpn import GridPlan
from ..lpn.processing_lpn import LPNProcessor, mask_of_counts, pad_grids, stack_grids


SYMMETRIES = ("none", "rotations", "all")


def apply_symmetry(grids: np.ndarray, shapes: np.ndarray, symmetry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Turns and mirrors grids that lie at the top-left of a common canvas, and puts them back there.

    Args:
        grids: `(batch, pairs, side, side)`, 0 outside the grids. The canvas is square, for turned grids to fit.
        shapes: `(batch, pairs, 2)`, (rows, cols) of each grid.
        symmetry: `(batch,)` int in 0..7, one per task: `symmetry % 4` clockwise quarter turns, after a left-right
            mirror if `symmetry >= 4`.

    Returns:
        The transformed grids and shapes, of the same sizes.
    """
    turns, mirrored = symmetry % 4, symmetry >= 4
    # Each of the eight is a transposition followed by reversals: one clockwise turn transposes, then reverses the
    # columns. A mirror before the turns reverses what becomes the rows if there is a transposition, else the columns.
    swap = turns % 2 == 1
    reverse_rows = (turns >= 2) ^ (mirrored & swap)
    reverse_cols = ((turns == 1) | (turns == 2)) ^ (mirrored & ~swap)
    grids, shapes = grids.copy(), np.where(swap[:, None, None], shapes[..., ::-1], shapes)
    grids[swap] = grids[swap].swapaxes(2, 3)
    for axis, chosen in ((2, reverse_rows), (3, reverse_cols)):
        # Reversing only the first `length` lines leaves the padding where it is, at the end.
        length = shapes[chosen, :, axis - 2, None]
        line = np.arange(grids.shape[axis])
        source = np.where(line < length, length - 1 - line, line)
        source = source[..., None] if axis == 2 else source[..., None, :]
        grids[chosen] = np.take_along_axis(grids[chosen], source, axis=axis)
    return grids, shapes


def draw_color_maps(seeds: Sequence[int], vocab_size: int = 10) -> np.ndarray:
    """Permutations of the colours with 0, the background, fixed: `(len(seeds), vocab_size)`, a new colour for every
    old one. Row i depends on `seeds[i]` only."""
    maps = np.zeros((len(seeds), vocab_size), dtype=np.uint8 if vocab_size <= 256 else np.int64)
    for row, seed in zip(maps, seeds, strict=True):
        row[1:] = np.random.Generator(np.random.PCG64(seed)).permutation(vocab_size - 1) + 1
    return maps


@dataclass
class DataCollatorForGridTasks:
    """
    Batches grid tasks for [`LPNModel`], with augmentation. Takes items of a [`TaskStream`] and rows in ARC's JSON
    form, of which it uses the training pairs.

    One transform is drawn per task and shared by all its grids, so that the task stays one program; it depends on the
    item's `seed` only, so it is the same for any number of workers and processes. The symmetry is `seed % 8` for
    `symmetries="all"` and `seed % 4` for `"rotations"`: an odd seed exchanges rows and columns either way.

    Args:
        processor ([`LPNProcessor`]): Limits for the grids of rows, and the number of colours.
        num_pairs (`int`, *optional*): Keeps the first `num_pairs` pairs of every task. By default all are kept;
            `pair_mask` tells tasks with different numbers of pairs.
        symmetries (`str`, defaults to `"none"`): `"rotations"` for the four rotations (the official implementation),
            `"all"` for the eight rotations and reflections.
        permute_colors (`bool`, defaults to `False`): Permutes all colours but 0.

    Returns (when called): `dict` of `input_grids`, `output_grids` `(batch, pairs, rows, cols)` int64, `input_shapes`,
        `output_shapes` `(batch, pairs, 2)` int64, `pair_mask` `(batch, pairs)` bool, and `plan`, the [`GridPlan`] that
        saves the model from asking its device for shapes and mask. The canvas is the largest grid of the batch.

    Raises:
        `ValueError`: bad arguments, an empty batch, a malformed row, or augmentation of an example without `seed`.
    """

    processor: LPNProcessor = field(default_factory=LPNProcessor)
    num_pairs: int | None = None
    symmetries: str = "none"
    permute_colors: bool = False

    def __post_init__(self):
        if self.symmetries not in SYMMETRIES:
            raise ValueError(f"`symmetries` is {self.symmetries!r}; give one of {', '.join(SYMMETRIES)}")
        if self.num_pairs is not None and (not isinstance(self.num_pairs, int) or self.num_pairs < 1):
            raise ValueError(
                f"`num_pairs` is {self.num_pairs!r}; give an integer of at least 1, or None for all pairs"
            )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not examples:
            raise ValueError("There are no examples to collate (an empty list); give at least one")
        items = [self._item(example, index) for index, example in enumerate(examples)]
        grids = {side: [item[f"{side}_grids"][: self.num_pairs] for item in items] for side in ("input", "output")}
        shapes = {side: [item[f"{side}_shapes"][: self.num_pairs] for item in items] for side in ("input", "output")}
        canvas = np.concatenate(shapes["input"] + shapes["output"]).max(axis=0)
        seeds = self._seeds(examples) if self.permute_colors or self.symmetries != "none" else None
        if self.symmetries != "none":
            canvas = np.repeat(canvas.max(), 2)
        padded = {side: pad_grids(grids[side], shapes[side], tuple(canvas)) for side in grids}
        self._check_limits(canvas, max(int(side_grids.max()) for side_grids, _ in padded.values()))
        if seeds is not None:
            padded = {side: self._augment(*padded[side], seeds) for side in padded}
        pair_mask = mask_of_counts([len(task) for task in shapes["input"]])
        rows, cols = np.max([side_shapes.max(axis=(0, 1)) for _, side_shapes in padded.values()], axis=0)
        batch = {}
        for name, index in (("grids", 0), ("shapes", 1)):
            for side in ("input", "output"):
                array = padded[side][index]
                array = array[:, :, :rows, :cols] if name == "grids" else array
                batch[f"{side}_{name}"] = torch.from_numpy(array.astype(np.int64))
        shapes_of = [padded[side][1].astype(np.int64) for side in ("input", "output")]
        plan = GridPlan(*shapes_of, pair_mask, num_colors=self.processor.vocab_size)
        return {**batch, "pair_mask": torch.from_numpy(pair_mask), "plan": plan}

    def _item(self, example: Mapping[str, Any], index: int) -> Mapping[str, Any]:
        """The example as stacked arrays: stream items are that already, rows are validated first."""
        if "input_grids" in example:
            return example
        pairs = self.processor.validate_task(example, task_id=f"{index} of the batch", require_test=False)["train"]
        item = {}
        for side, grids in zip(("input", "output"), zip(*pairs, strict=True), strict=True):
            item[f"{side}_grids"], item[f"{side}_shapes"] = stack_grids(grids)
        return item

    def _check_limits(self, canvas: np.ndarray, highest: int) -> None:
        """Stream items are not validated grid by grid, but a generator may be set up larger than the model."""
        limits = self.processor
        if canvas[0] > limits.max_rows or canvas[1] > limits.max_cols or highest >= limits.vocab_size:
            raise ValueError(
                f"The batch has grids of up to {canvas[0]} x {canvas[1]} cells and colours up to {highest}, over the"
                f" processor's {limits.max_rows} x {limits.max_cols} and {limits.vocab_size - 1}; generate smaller"
                " tasks, or use a processor (and model) with larger limits; turned grids need both sides"
            )

    def _seeds(self, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
        for example in examples:
            seed = example.get("seed")
            if not isinstance(seed, int | np.integer) or seed < 0:
                raise ValueError(
                    f"Task {example.get('task_id')!r} has seed {seed!r}, but augmentation is drawn from it; read tasks"
                    " through TaskStream, give rows an integer `seed` of at least 0, or turn augmentation off"
                )
        return np.array([example["seed"] for example in examples], dtype=np.int64)

    def _augment(self, grids: np.ndarray, shapes: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.symmetries != "none":
            grids, shapes = apply_symmetry(grids, shapes, seeds % (8 if self.symmetries == "all" else 4))
        if self.permute_colors:
            maps = draw_color_maps(seeds, self.processor.vocab_size)
            offsets = np.arange(len(maps))[:, None, None, None] * maps.shape[1]
            grids = maps.reshape(-1)[grids + offsets]
        return grids, shapes


__all__ = [
    "DataCollatorForGridTasks",
    "apply_symmetry",
    "draw_color_maps",
]
