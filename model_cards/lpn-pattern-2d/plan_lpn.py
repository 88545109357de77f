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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from .transformer_lpn import GridExtent


@dataclass(frozen=True, eq=False)
class GridPlan:
    """
    Shapes and mask of a batch of demonstrations on the host, as a collator knows them. A model that gets them beside the
    tensors does not wait for its device to learn what there is to compute.

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

    @classmethod
    def of(cls, input_shapes: torch.Tensor, output_shapes: torch.Tensor, pair_mask: torch.Tensor) -> "GridPlan":
        """The plan of tensors, by one transfer from their device."""
        flat = torch.cat([input_shapes.flatten(), output_shapes.flatten(), pair_mask.flatten().to(input_shapes)])
        host = flat.cpu().numpy()
        sizes = host[: 2 * input_shapes.numel()].reshape(2, *input_shapes.shape)
        return cls(sizes[0], sizes[1], host[2 * input_shapes.numel() :].reshape(pair_mask.shape) > 0)

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


class PairGroup(NamedTuple):
    """Pairs `entries` of similar length that are computed together, and how far their grids reach."""

    entries: np.ndarray | slice
    input_extent: GridExtent
    output_extent: GridExtent


def group_pairs(
    sizes: np.ndarray, overhead: int, max_tokens: int, counts: np.ndarray | None = None
) -> list[PairGroup]:
    """
    Groups pairs of similar length, so that padding a group to its longest member wastes little.

    Args:
        sizes (`np.ndarray` of shape `(pairs, 2, 2)`): Rows and columns of input and output.
        overhead (`int`): Padding tokens that one more group is worth.
        max_tokens (`int`): Tokens of a group at most (a single longer pair still makes a group).
        counts (`np.ndarray` of shape `(pairs,)`, *optional*): Latents that a pair is decoded with; the same in a group.
    """
    counts = np.ones(len(sizes), dtype=int) if counts is None else counts
    if len(sizes) and (sizes == sizes[0]).all() and (counts == counts[0]).all():
        return _groups_of_equals(sizes, max(1, max_tokens // (sizes[0].prod(-1).sum() * max(1, counts[0]))))
    lengths = sizes.prod(-1)
    order = np.lexsort((-lengths.sum(1), counts))
    groups, start = [], 0
    waste, longest = 0, np.zeros(2, dtype=int)
    for end, (size, count) in enumerate(zip(lengths[order], counts[order], strict=True)):
        longest = np.maximum(longest, size)
        waste += (longest.sum() - size.sum()) * count
        other = count != counts[order[start]]
        too_many = (end - start + 1) * longest.sum() * count > max_tokens
        if end > start and (other or waste > overhead or too_many):
            groups.append(_group(sizes, order[start:end]))
            start, waste, longest = end, 0, size
    return [*groups, _group(sizes, order[start:])] if len(sizes) else []


def _groups_of_equals(sizes: np.ndarray, width: int) -> list[PairGroup]:
    """Pairs that are all alike stay in order: slices of them, with nothing to look up or to put back."""
    extents = _extents(sizes[:1])
    return [PairGroup(slice(start, min(start + width, len(sizes))), *extents) for start in range(0, len(sizes), width)]


def _group(sizes: np.ndarray, entries: np.ndarray) -> PairGroup:
    return PairGroup(entries, *_extents(sizes[entries]))


def _extents(sizes: np.ndarray) -> list[GridExtent]:
    """Extents of the two sides of pairs `(pairs, 2, 2)`."""
    lengths, extents = sizes.prod(-1), []
    for side in range(2):
        alike = (sizes[:, side] == sizes[0, side]).all()
        shape = (int(sizes[0, side, 0]), int(sizes[0, side, 1])) if alike else None
        longest = int(lengths[:, side].max())
        extents.append(GridExtent(longest, bool((lengths[:, side] < longest).any()), shape))
    return extents


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


def restore_order(values: Sequence[torch.Tensor], groups: Sequence[PairGroup], device: torch.device) -> torch.Tensor:
    """Results of groups, one row a pair, in the order of the pairs."""
    joined = values[0] if len(values) == 1 else torch.cat(list(values))
    if isinstance(groups[0].entries, slice):
        return joined
    order = np.concatenate([group.entries for group in groups])
    return joined.index_select(0, to_device(np.argsort(order), device))


__all__ = ["GridPlan", "PairGroup", "group_pairs", "partner_rows", "restore_order", "to_device"]
