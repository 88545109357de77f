# Copyright 2026 The modeling_lpn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What a batch of grid pairs is made of, known on the host, so that no device has to be asked (arXiv 2411.08706)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from .transformer_lpn import GridExtent


class PlanFacts(NamedTuple):
    """
    What is checked of a plan: its `shape` (tasks, pairs), the `fewest` real pairs of a task and which `task` that is, and for
    the two sides the smallest side of a grid, the most rows and the most columns.
    """

    shape: tuple[int, int]
    fewest: int
    task: int
    limits: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False)
class GridPlan:
    """
    Shapes and mask of a batch of demonstrations on the host, as a collator knows them. A model that gets them beside the
    tensors does not wait for its device to learn what there is to compute.

    `torch.compile` takes what the methods give for constants: a function that was compiled for a plan serves others of the
    same `key`, and only those, which [`facts`] sees to.

    Args:
        input_shapes, output_shapes (`np.ndarray` of shape `(batch, pairs, 2)`): Rows and columns.
        pair_mask (`np.ndarray` of shape `(batch, pairs)`, bool): Which pairs are real.
        num_colors (`int`, *optional*):
            All colours, those of the padding too, are known to be below this. A model of fewer colours, or one that is not
            told, looks at the grids.
    """

    input_shapes: np.ndarray
    output_shapes: np.ndarray
    pair_mask: np.ndarray
    num_colors: int | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        content = [np.ascontiguousarray(part) for part in (self.input_shapes, self.output_shapes, self.pair_mask)]
        digest = hashlib.sha256(b"".join(part.tobytes() for part in content)).hexdigest()
        object.__setattr__(self, "key", f"{self.pair_mask.shape} {digest}")

    @classmethod
    def of(cls, input_shapes: torch.Tensor, output_shapes: torch.Tensor, pair_mask: torch.Tensor) -> "GridPlan":
        """The plan of tensors, by one transfer from their device."""
        flat = torch.cat([input_shapes.flatten(), output_shapes.flatten(), pair_mask.flatten().to(input_shapes)])
        host = flat.cpu().numpy()
        sizes = host[: 2 * input_shapes.numel()].reshape(2, *input_shapes.shape)
        return cls(sizes[0], sizes[1], host[2 * input_shapes.numel() :].reshape(pair_mask.shape) > 0)

    @torch.compiler.assume_constant_result
    def facts(self, key: str) -> PlanFacts:
        """What is to be checked first; `key` is that of the plan, which a compiled function compares from now on."""
        limits = [
            (int(sizes.min()), *sizes.max(0).tolist()) for sizes in (self.sizes[:, 0], self.sizes[:, 1]) if len(sizes)
        ]
        tasks, pairs = self.pair_mask.shape
        return PlanFacts((tasks, pairs), int(self.num_pairs.min()), int(self.num_pairs.argmin()), tuple(limits))

    @cached_property
    def sizes(self) -> np.ndarray:
        """Rows and columns of input and output of the real pairs `(real pairs, 2, 2)`."""
        return np.stack([self.input_shapes[self.pair_mask], self.output_shapes[self.pair_mask]], 1)

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Task and place within it of every real pair."""
        tasks, places = self.pair_mask.nonzero()
        return tasks, places

    @cached_property
    def num_pairs(self) -> np.ndarray:
        """Real pairs of every task `(batch,)`."""
        return self.pair_mask.sum(1)

    def tasks(self, start: int, end: int) -> "GridPlan":
        """The plan of some of the tasks."""
        part = slice(start, end)
        return GridPlan(self.input_shapes[part], self.output_shapes[part], self.pair_mask[part], self.num_colors)

    @torch.compiler.assume_constant_result
    def real_pairs(self, device: torch.device) -> torch.Tensor | None:
        """Where the real pairs are among all `(real pairs,)`; `None` if all are."""
        return None if self.pair_mask.all() else to_device(self.pair_mask.reshape(-1).nonzero()[0], device)

    @torch.compiler.assume_constant_result
    def grouping(
        self, rows: str, device: torch.device, as_one: bool = False, pairs: np.ndarray | slice | None = None
    ) -> "Grouping":
        """
        `pairs` (all if not given), all or none of a task, in groups; each under the row of its task (`rows="of_task"`), its own (`"own"`), or
        those of the other pairs of its task, in whose making it took part (`"of_others"`).
        """
        pairs = slice(None) if pairs is None else pairs
        tasks = self.places[0][pairs]
        if rows == "own":
            return grouping_of(self.sizes[pairs], device, as_one=as_one)
        return grouping_of(
            self.sizes[pairs], device, partner_rows(tasks) if rows == "of_others" else tasks[:, None], as_one
        )

    @torch.compiler.assume_constant_result
    def without_own(
        self, device: torch.device, pairs: np.ndarray | slice | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows without one pair each: their tasks `(rows,)` and which pairs of it they are made of `(rows, pairs)`."""
        tasks, places = (place if pairs is None else place[pairs] for place in self.places)
        mask = self.pair_mask[tasks] & (np.arange(self.pair_mask.shape[1]) != places[:, None])
        return to_device(tasks, device), to_device(mask, device)


class PairGroup(NamedTuple):
    """
    Pairs `entries` of similar length that are computed together, how far their grids reach, and the rows of latents that each
    is decoded with `(pairs, k)`.
    """

    entries: torch.Tensor | slice
    input_extent: GridExtent
    output_extent: GridExtent
    rows: torch.Tensor


class Grouping(NamedTuple):
    """Pairs in groups, and where each pair is in the groups one after another (`None`: in order)."""

    groups: list[PairGroup]
    order: torch.Tensor | None

    def restore_order(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Results of groups, one row a pair, in the order of the pairs."""
        joined = values[0] if len(values) == 1 else torch.cat(list(values))
        return joined if self.order is None else joined.index_select(0, self.order)


def grouping_of(
    sizes: np.ndarray,
    device: torch.device,
    rows: np.ndarray | None = None,
    as_one: bool = False,
    written: bool = False,
) -> Grouping:
    """
    Groups pairs of similar length and with as many rows.

    Args:
        sizes (`np.ndarray` of shape `(pairs, 2, 2)`): Rows and columns of input and output.
        device (`torch.device`): Where they are computed. A kernel launch costs as much as some hundred tokens on a CPU, and as
            many thousands on a GPU.
        rows (`np.ndarray` of shape `(pairs, most rows)`, *optional*):
            The rows of latents that each pair is decoded with, -1 behind the last; pair `k` with row `k` by default.
        as_one (`bool`): Puts all together, so that a token stands at the same place in every pair.
        written (`bool`): They are written cell by cell, so that a group costs as much as thousands of tokens anywhere.
    """
    rows = np.arange(len(sizes))[:, None] if rows is None else rows
    overhead, max_tokens = (256, 2**13) if device.type == "cpu" else (2**14, 2**18)
    if as_one:
        overhead = max_tokens = 2**62
    if written:
        overhead = max_tokens
    counts = (rows >= 0).sum(1)
    found = group_pairs(sizes, overhead, max_tokens, counts)
    groups = []
    for entries in found:
        chosen = entries if isinstance(entries, slice) else to_device(entries, device)
        own = to_device(rows[entries][:, : counts[entries][0]], device)
        groups.append(PairGroup(chosen, *_extents(sizes[entries]), own))
    moved = [entries for entries in found if not isinstance(entries, slice)]
    return Grouping(groups, to_device(np.argsort(np.concatenate(moved)), device) if moved else None)


def group_pairs(sizes: np.ndarray, overhead: int, max_tokens: int, counts: np.ndarray) -> list[np.ndarray | slice]:
    """
    Groups pairs of similar length, so that padding a group to its longest member wastes little: the entries of each group.

    Args:
        sizes (`np.ndarray` of shape `(pairs, 2, 2)`): Rows and columns of input and output.
        overhead (`int`): Padding tokens that one more group is worth.
        max_tokens (`int`): Tokens of a group at most (a single longer pair still makes a group).
        counts (`np.ndarray` of shape `(pairs,)`): Latents that a pair is decoded with; the same in a group.
    """
    if len(sizes) and (sizes == sizes[0]).all() and (counts == counts[0]).all():
        # They stay in order: slices, with nothing to look up or to put back.
        # No number of numpy, of which torch.compile makes a tensor.
        width = max(1, int(max_tokens // (sizes[0].prod(-1).sum() * max(1, counts[0]))))
        return [slice(start, min(start + width, len(sizes))) for start in range(0, len(sizes), width)]
    lengths = sizes.prod(-1)
    order = np.lexsort((-lengths.sum(1), counts))
    groups: list[np.ndarray | slice] = []
    start = 0
    waste, longest = 0, np.zeros(2, dtype=int)
    for end, (size, count) in enumerate(zip(lengths[order], counts[order], strict=True)):
        longest = np.maximum(longest, size)
        waste += (longest.sum() - size.sum()) * count
        other = count != counts[order[start]]
        too_many = (end - start + 1) * longest.sum() * count > max_tokens
        if end > start and (other or waste > overhead or too_many):
            groups.append(order[start:end])
            start, waste, longest = end, 0, size
    return [*groups, order[start:]] if len(sizes) else []


def _extents(sizes: np.ndarray) -> tuple[GridExtent, GridExtent]:
    """Extents of the two sides of pairs `(pairs, 2, 2)`."""
    lengths, extents = sizes.prod(-1), []
    for side in range(2):
        alike = (sizes[:, side] == sizes[0, side]).all()
        shape = (int(sizes[0, side, 0]), int(sizes[0, side, 1])) if alike else None
        longest = int(lengths[:, side].max())
        extents.append(GridExtent(longest, bool((lengths[:, side] < longest).any()), shape))
    return extents[0], extents[1]


def partner_rows(tasks: np.ndarray) -> np.ndarray:
    """For every pair of a list sorted by task: the other pairs of its task `(pairs, most partners)`, -1 behind the last."""
    counts = np.bincount(tasks)[tasks] - 1
    first = np.searchsorted(tasks, tasks)
    others = np.arange(counts.max(initial=0))
    place = np.arange(len(tasks)) - first
    rows = first[:, None] + others + (others >= place[:, None])
    return np.where(others < counts[:, None], rows, -1)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An index on the device, without waiting for it."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


__all__ = ["GridPlan", "Grouping", "PairGroup", "group_pairs", "grouping_of", "to_device"]
