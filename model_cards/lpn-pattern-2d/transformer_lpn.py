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
"""Encoder and decoder of the Latent Program Network (arXiv 2411.08706): tokens, layers, cached decoding."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    causal_mask_function,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_lpn import LPNConfig, LPNStackConfig


Rotary = tuple[torch.Tensor, torch.Tensor] | None  # see `LPNStack.rotary`; each `(batch or 1, length, head_dim)`

# Queries of an output at a time, on a CPU: fewer save more keys and cost more calls, and the kernel works on 64 or 256 at once.
CAUSAL_BLOCK = 256
# Scores of the shared layer at a time, by device: 8 MB, which stay in a CPU's caches; elsewhere 64 MB.
SHARED_SCORES = {"cpu": 2**21}


class AttentionSegment(NamedTuple):
    """
    Queries `start..end` of the hidden states attend to the keys before `key_end` under `mask` (`None`: to all of them), which
    has the form that attention `implementation` wants.
    """

    start: int
    end: int
    key_end: int
    mask: torch.Tensor | None
    implementation: str


class GridTokens(NamedTuple):
    """
    Packed tokens of a few sequences without those that depend on a latent. `mask` `(batch, length)` is `None` where
    nothing is padding; `positions` `(batch or 1, length, 2)` holds row and column of a cell and -1 for other tokens; `copied`
    are the input cells of a prefix, for [`LPNCopyHead`].
    """

    embeds: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    copied: "CopiedCells | None" = None


class CopiedCells(NamedTuple):
    """Input cells that [`LPNCopyHead`] points at: colours `(batch, cells)` and which are real (`None`: all)."""

    colors: torch.Tensor
    mask: torch.Tensor | None

    def take(self, index: torch.Tensor | slice) -> "CopiedCells":
        return CopiedCells(self.colors[index], None if self.mask is None else self.mask[index])

    def repeat(self, times: int) -> "CopiedCells":
        return CopiedCells(*(None if part is None else part.repeat_interleave(times, 0) for part in self))


class WritingCosts(NamedTuple):
    """
    What it costs to write output cells, in steps of one grid: `row`, a further grid in a step; `begin`, a pass over drafted
    cells, and `cell`, each of its cells; `tokens`, as many as a pass may have at little more cost than one; `least`, the cells of
    a grid from which on passes pay.
    """

    row: float
    begin: float
    cell: float
    tokens: int
    least: int

    def steps(self, counts: torch.Tensor) -> float:
        """What the rest costs by steps: `counts` `(2, batch)` are the known cells of each grid and all it has, on the host."""
        known, sizes = counts[:, counts[0] < counts[1]]
        if not len(known):
            return 0.0
        first = known.min()
        return float((1 - self.row) * (sizes.max() - first) + self.row * (sizes - first).sum())


# By device. Of a CPU measured on one core, models of width 64 to 128 and 16 to 900 cells; a GPU waits for launches more than for work.
WRITING_COSTS = {"cpu": WritingCosts(row=1 / 24, begin=1.8, cell=1 / 60, tokens=16, least=40)}
ACCELERATOR_COSTS = WritingCosts(row=2**-12, begin=1.8, cell=2**-12, tokens=2**10, least=2)
# Drafted cells of a grid in a pass, at least.
LEAST_WINDOW = 8
# What passes may have cost more than they saved, since they last paid, as a share of writing all by steps; then they are given up.
PATIENCE = 0.2
# Share of the grids that has to be unfinished; below it the others are left out, which takes a copy of the cache.
LEAST_UNFINISHED = 0.75


class CellTables(NamedTuple):
    """
    What tokens of output cells are made of, computed once: embeddings of colours `(colours, width)` and of positions `(cells,
    width)`, and the rotary tables of positions `(cells, head_dim)`; one of the two.
    """

    colors: torch.Tensor
    positions: torch.Tensor | None
    rotary: Rotary


class OutputCells(NamedTuple):
    """
    Output cells that are being written, the largest grids first: `colors` `(batch, cells + 1)`, of which those that are not known
    yet are a draft and the last is room for what nobody reads, the `sizes` `(batch,)` of the grids, the column of a cell
    `cols` and the index into [`CellTables`] that its token carries, `places`, `(batch, cells)`, and what [`LPNCopyHead`] reads.
    """

    colors: torch.Tensor
    sizes: torch.Tensor
    cols: torch.Tensor
    places: torch.Tensor
    copied: CopiedCells | None
    copy_keys: torch.Tensor | None

    def take(self, index: torch.Tensor) -> "OutputCells":
        copied = None if self.copied is None else self.copied.take(index)
        copy_keys = None if self.copy_keys is None else self.copy_keys[index]
        own = (self.colors[index], self.sizes[index], self.cols[index], self.places[index])
        return OutputCells(*own, copied, copy_keys)


class GridExtent(NamedTuple):
    """Cells of the largest of some grids, whether others have fewer, and the rows and columns that all have (if so)."""

    length: int
    padded: bool
    shape: tuple[int, int] | None


class GridPairs(NamedTuple):
    """Input/output pairs without a task axis: grids `(sequences, rows, cols)`, shapes `(sequences, 2)`."""

    input_grids: torch.Tensor
    output_grids: torch.Tensor
    input_shapes: torch.Tensor
    output_shapes: torch.Tensor

    def take(self, index: torch.Tensor | slice) -> "GridPairs":
        return GridPairs(*(tensor[index] for tensor in self))


class SharedLayer(NamedTuple):
    """
    What the decoder's first layer computes of a pair's tokens without the latent: that is the same for every latent.

    `hidden_states` `(entries, tokens, width)` enter the residual stream; `query` (scaled) and `attended`
    `(entries, heads, tokens, head_dim)` and `log_sum` `(entries, heads, tokens)` are those of the tokens that go on, of
    which the first `split` stand before the latent; `key` and `value` `(entries, heads, prefix, head_dim)` are what the
    latent token attends to under `mask` `(entries, prefix)`.
    """

    hidden_states: torch.Tensor
    query: torch.Tensor
    attended: torch.Tensor
    log_sum: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    split: int


class PrefixMemory(NamedTuple):
    """
    What the layers compute of a prefix, for tokens that follow it: the `states` `(entries, prefix, width)` that each of them is
    given, its keys and values of them `(entries, heads, prefix, head_dim)`, the result of the `last` token `(entries, 1,
    width)`, and the keys of [`LPNCopyHead`].
    """

    states: list[torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    last: torch.Tensor
    copy_keys: torch.Tensor | None

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the prefix and, behind them, those of tokens `(entries * candidates, heads, tokens, head_dim)`."""
        return self._before(self.keys[layer_idx], key), self._before(self.values[layer_idx], value)

    @staticmethod
    def _before(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        own = own.unflatten(0, (len(prefix), -1))
        prefix = prefix.unsqueeze(1).expand(-1, own.shape[1], -1, -1, -1)
        return torch.cat([prefix, own], 3).flatten(0, 1)


@dataclass(eq=False)
class DecoderChunk:
    """
    Pairs of similar length, embedded for the decoder: `rows` `(entries, k)` says under which rows of latents each is
    decoded, `colors` `(entries, cells)` and `shapes` `(entries, 2)` what is to be written, `real` `(entries, cells)` which
    cells are (`None`: all). `shared` is set where several latents are to be tried, `memory` where the prefix sees none.
    """

    rows: torch.Tensor
    prefix: GridTokens
    output: GridTokens
    shapes: torch.Tensor
    colors: torch.Tensor
    real: torch.Tensor | None
    memory: PrefixMemory | None = None
    shared: SharedLayer | None = None
    layouts: dict[int, "DecoderLayout"] = field(default_factory=dict)


class DecoderLayout(NamedTuple):
    """
    Segments of attention, rotary tables and cells to copy of a chunk whose every pair is decoded with as many candidates:
    `whole` for layers that compute all tokens, `read` for the last one, which computes the latent token and those after it.
    With a memory of the prefix every layer computes no others, and the rotary tables are theirs.
    """

    whole: list[AttentionSegment]
    read: list[AttentionSegment]
    rotary: Rotary
    copied: CopiedCells | None


class LPNCache:
    """
    Keys and values of a decoder while it writes grids, one `(batch, heads, capacity, head_dim)` for each layer: preallocated, so
    that a step copies only its own token. `mask` `(batch, 1, 1, capacity)` is added to scores (`None`: nothing is padding).
    `slots` `(batch, tokens)` is set while tokens are written whose places differ between sequences; `length` is then the end
    of what is seen.
    """

    def __init__(self, memory: PrefixMemory, mask: torch.Tensor | None) -> None:
        self.keys, self.values, self.length = list(memory.keys), list(memory.values), memory.keys[0].shape[2]
        self.slots: torch.Tensor | None = None
        self.mask = None
        if mask is not None:
            lowest = torch.finfo(memory.keys[0].dtype).min
            self.mask = torch.zeros_like(mask, dtype=memory.keys[0].dtype).masked_fill(~mask, lowest)[:, None, None]

    def reserve(self, extra: int, order: torch.Tensor | None = None) -> None:
        """Makes room for `extra` tokens, and puts the sequences in another order."""
        for states in (self.keys, self.values):
            states[:] = [self._grow(tensor, extra, order, 2) for tensor in states]
        if self.mask is not None:
            self.mask = self._grow(self.mask, extra, order, 3)

    def _grow(self, tensor: torch.Tensor, extra: int, order: torch.Tensor | None, dim: int) -> torch.Tensor:
        kept = tensor.narrow(dim, 0, self.length)
        shape = list(tensor.shape)
        shape[dim] = extra
        return torch.cat([kept if order is None else kept[order], tensor.new_zeros(shape)], dim)

    def take(self, index: torch.Tensor | slice) -> None:
        """Goes on with some of the sequences."""
        self.keys, self.values = ([tensor[index] for tensor in states] for states in (self.keys, self.values))
        self.mask = None if self.mask is None else self.mask[index]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Writes those of one more token `(batch, heads, 1, head_dim)`, or of several into their `slots`; gives all that are
        seen.
        """
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.slots is not None:
            slots = self.slots.to(key.device)[:, None, :, None].expand_as(key)
            keys.scatter_(2, slots, key)
            values.scatter_(2, slots, value)
            return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)
        keys.narrow(2, self.length, 1).copy_(key)
        values.narrow(2, self.length, 1).copy_(value)
        return keys.narrow(2, 0, self.length + 1), values.narrow(2, 0, self.length + 1)

    def seen(self) -> torch.Tensor | None:
        """Mask of the token that is written now."""
        return None if self.mask is None else self.mask.narrow(3, 0, self.length + 1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention; the implementation that differentiates twice everywhere."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probs = F.dropout(probs, p=dropout, training=module.training)
    return torch.matmul(probs, value).transpose(1, 2).contiguous(), probs


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns channel `i` with channel `i + head_dim / 2` of `(batch, heads, length, head_dim)`."""
    swapped = states.roll(states.shape[-1] // 2, -1)
    return (states * cos.unsqueeze(1) + swapped * sin.unsqueeze(1)).to(states.dtype)


def _query_blocks(start: int, prefix: int, length: int, key: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """
    Blocks `first..end` of the queries `start..length`, and how many keys one sees: the prefix, or all up to its own end, so
    that half of the output's square is never computed. `key` is `(entries, heads, length, head_dim)`.

    Few enough for scores that stay in a CPU's caches: those of 30x30 grids all at once take four times as long.
    """
    limit = SHARED_SCORES.get(key.device.type, 2**24)
    for begin, end in ((start, prefix), (max(start, prefix), length)):
        width = max(1, limit // max(1, key.shape[0] * key.shape[1] * end))
        for first in range(begin, end, width):
            last = min(first + width, end)
            yield first, last, max(last, prefix)


def attention_implementation(config: LPNConfig, cached: bool) -> str:
    """Flex attention compiles a kernel for a shape, and with a cache every step has another: sdpa serves there."""
    implementation = config._attn_implementation
    return "sdpa" if cached and implementation == "flex_attention" else implementation


class LPNLayerNorm(nn.Module):
    """Layer norm without scale, as in the published code; a bias only if asked."""

    def __init__(self, size: int, eps: float, use_bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(size)) if use_bias else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=self.eps)
        return normed if self.bias is None else normed + self.bias


class LPNAttention(nn.Module):
    """Multi-head attention over segments of queries; keys and values are projected once for all of them."""

    is_causal = False

    def __init__(self, config: LPNConfig, stack: LPNStackConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.attention_dropout = stack.head_dim, stack.attention_dropout
        self.scaling = stack.head_dim**-0.5
        self.q_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)
        self.k_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)
        self.v_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)
        self.o_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        segments: list[AttentionSegment],
        rotary: Rotary = None,
        cache: LPNCache | PrefixMemory | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Attention of the queries, and the keys and values of the tokens; `cache` has those of tokens before them. Without
        segments it is one more token of each sequence `(batch, width)` in an [`LPNCache`].
        """
        if not segments:
            return self._decode(hidden_states, rotary, cast(LPNCache, cache))
        start, end = segments[0].start, segments[-1].end
        query = self.heads(self.q_proj(hidden_states[:, start:end]))
        key, value = self.heads(self.k_proj(hidden_states)), self.heads(self.v_proj(hidden_states))
        if rotary is not None:
            cos, sin = rotary
            query, key = rotate(query, cos[:, start:end], sin[:, start:end]), rotate(key, cos, sin)
        keys, values = (key, value) if cache is None else cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(segments[0].implementation, eager_attention_forward)
        queries = query.split(
            [segment.end - segment.start for segment in segments], 2
        )  # one gradient, not a sum of two
        outputs = [
            attend(
                self,
                part,
                keys[:, :, : segment.key_end],
                values[:, :, : segment.key_end],
                segment.mask,
                scaling=self.scaling,
                dropout=self.attention_dropout if self.training else 0.0,
            )[0].flatten(2)
            for part, segment in zip(queries, segments, strict=True)
        ]
        return self.o_proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)), key, value

    def _decode(
        self, hidden_states: torch.Tensor, rotary: Rotary, cache: LPNCache
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = (
            projection(hidden_states).view(len(hidden_states), -1, 1, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotary is not None:
            query, key = rotate(torch.cat([query, key], 1), *rotary).chunk(2, 1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention_implementation(self.config, cached=True), eager_attention_forward
        )
        keys, values = cache.update(key, value, self.layer_idx)
        attended, _ = attend(self, query, keys, values, cache.seen(), scaling=self.scaling, dropout=0.0)
        return self.o_proj(attended.reshape(hidden_states.shape)), key, value

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., tokens, width)` -> `(..., heads, tokens, head_dim)`."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)

    def share(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        rotary: Rotary,
        prefix: int,
        start: int,
    ) -> SharedLayer:
        """
        Attention of all tokens `(entries, tokens, width)` but the latent, for the queries from `start` on. The first
        `prefix` tokens see each other, those after them also what came before; `mask` `(entries, tokens)` hides padding.
        """
        length = hidden_states.shape[1]
        query = self.heads(self.q_proj(hidden_states[:, start:]))
        key, value = self.heads(self.k_proj(hidden_states)), self.heads(self.v_proj(hidden_states))
        if rotary is not None:
            cos, sin = rotary
            query, key = rotate(query, cos[:, start:], sin[:, start:]), rotate(key, cos, sin)
        query = query * self.scaling
        attended, log_sum = [], []
        # Plain attention, which gives the log-sum-exp on every device and differentiates twice.
        for first, end, seen in _query_blocks(start, prefix, length, key):
            scores = (query[:, :, first - start : end - start] @ key[:, :, :seen].transpose(2, 3)).float()
            if first >= prefix:
                own = torch.arange(seen, device=key.device)
                scores = scores.masked_fill(own > own[first:end].unsqueeze(1), -torch.inf)
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None, None, :seen], -torch.inf)
            # One exponential gives the weights and the log-sum-exp. The result does not depend on what is subtracted.
            top = scores.amax(-1, keepdim=True).detach()
            weights = (scores - top).exp()
            total = weights.sum(-1, keepdim=True)
            attended.append((weights.to(value.dtype) @ value[:, :, :seen]) / total.to(value.dtype))
            log_sum.append((top + total.log()).squeeze(-1))
        return SharedLayer(
            hidden_states[:, start:],
            query,
            torch.cat(attended, 2),
            torch.cat(log_sum, 2),
            key[:, :, :prefix],
            value[:, :, :prefix],
            None if mask is None else mask[:, :prefix],
            prefix - start,
        )

    def merge(self, shared: SharedLayer, latents: torch.Tensor) -> torch.Tensor:
        """
        The same attention with the latent token: latents `(entries, candidates, width)` -> `(entries, candidates, tokens,
        width)`, the latent behind the prefix.

        A softmax over one more key is a mixture: with `a = sigmoid(q k_z - log_sum)`, the share of the new key, the result
        is `(1 - a) * attended + a * v_z`. That replaces the first layer's projections and attention of all other tokens.
        """
        query, key, value = (self.heads(proj(latents)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query = query * self.scaling  # (entries, heads, candidates, head_dim), as are key and value
        share = (shared.query @ key.transpose(2, 3)).float() - shared.log_sum.unsqueeze(-1)
        share = (
            share.sigmoid().to(value.dtype).permute(0, 3, 2, 1).unsqueeze(-1)
        )  # (entries, candidates, tokens, heads, 1)
        attended, value_of_latent = shared.attended.transpose(1, 2).unsqueeze(1), value.transpose(1, 2).unsqueeze(2)
        before, after = (
            torch.lerp(attended[:, :, part], value_of_latent, share[:, :, part]).flatten(-2)
            for part in (slice(None, shared.split), slice(shared.split, None))
        )
        scores = (query @ shared.key.transpose(2, 3)).float()
        if shared.mask is not None:
            scores = scores.masked_fill(~shared.mask[:, None, None], -torch.inf)
        own = (query * key).sum(-1, keepdim=True).float()
        probs = torch.cat([scores, own], -1).softmax(-1).to(value.dtype)
        latent = probs[..., :-1] @ shared.value + probs[..., -1:] * value
        return self.o_proj(torch.cat([before, latent.transpose(1, 2).flatten(-2).unsqueeze(2), after], 2))


class LPNLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer that computes only the queries its segments name."""

    def __init__(self, config: LPNConfig, stack: LPNStackConfig, layer_idx: int) -> None:
        super().__init__()
        self.dropout = stack.dropout
        self.activation = ACT2FN[stack.activation]
        self.attention_norm = LPNLayerNorm(stack.hidden_size, config.layer_norm_eps, stack.use_bias)
        self.attention = LPNAttention(config, stack, layer_idx)
        self.mlp_norm = LPNLayerNorm(stack.hidden_size, config.layer_norm_eps, stack.use_bias)
        self.up_proj = nn.Linear(stack.hidden_size, stack.intermediate_size, bias=stack.use_bias)
        self.down_proj = nn.Linear(stack.intermediate_size, stack.hidden_size, bias=stack.use_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        segments: list[AttentionSegment],
        rotary: Rotary = None,
        cache: LPNCache | PrefixMemory | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        attended, key, value = self.attention(self.attention_norm(hidden_states), segments, rotary, cache)
        if segments:
            hidden_states = hidden_states[:, segments[0].start : segments[-1].end]
        return self._mlp(hidden_states + self._drop(attended)), key, value

    def share(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        rotary: Rotary,
        prefix: int,
        start: int,
    ) -> SharedLayer:
        """What this layer, as the first, computes without the latent; see [`LPNAttention.share`]."""
        shared = self.attention.share(self.attention_norm(hidden_states), mask, rotary, prefix, start)
        return SharedLayer(hidden_states[:, start:], *shared[1:])

    def merge(self, shared: SharedLayer, latents: torch.Tensor) -> torch.Tensor:
        """This layer with latent tokens `(entries, candidates, width)` -> `(entries, candidates, tokens, width)`."""
        attended = self.attention.merge(shared, self.attention_norm(latents))
        before, after = (
            shared.hidden_states.unsqueeze(1)
            .expand(-1, latents.shape[1], -1, -1)
            .split([shared.split, shared.hidden_states.shape[1] - shared.split], 2)
        )
        return self._mlp(torch.cat([before, latents.unsqueeze(2), after], 2) + attended)

    def _mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self._drop(self.down_proj(self.activation(self.up_proj(self.mlp_norm(hidden_states)))))

    def _drop(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.dropout(hidden_states, self.dropout, self.training) if self.dropout else hidden_states


class LPNPositionEmbedding(nn.Module):
    """Row and column embedding of a cell, `"learned"` or `"scaled"`; nothing to add for `"rotary"`."""

    def __init__(self, config: LPNConfig, stack: LPNStackConfig) -> None:
        super().__init__()
        self.kind = stack.position_embedding_type
        rows, cols = {"learned": (config.max_rows, config.max_cols), "scaled": (1, 1), "rotary": (0, 0)}[self.kind]
        if self.kind != "rotary":
            self.row_embedding = nn.Embedding(rows, stack.hidden_size)
            self.col_embedding = nn.Embedding(cols, stack.hidden_size)

    def forward(self, positions: torch.Tensor) -> torch.Tensor | float:
        rows, cols = positions.unbind(-1)
        if self.kind == "learned":
            return self.row_embedding(rows) + self.col_embedding(cols)
        if self.kind == "scaled":  # 1-based: the published code multiplies by index + 1
            first = rows.new_zeros(1)
            row_vector, col_vector = self.row_embedding(first), self.col_embedding(first)
            return (rows + 1).unsqueeze(-1) * row_vector + (cols + 1).unsqueeze(-1) * col_vector
        return 0.0


class LPNCopyHead(nn.Module):
    """
    Adds to the logits of an output cell the colours of input cells: one more attention head, whose values are the colours
    themselves (a pointer, as in Vinyals et al., 2015, that adds to logits instead of mixing probabilities).
    """

    MAX_SCALE = 16.0  # nats that a cell which gets all the attention adds to its colour, at most

    def __init__(self, config: LPNConfig, stack: LPNStackConfig) -> None:
        super().__init__()
        self.vocab_size, self.scaling = config.vocab_size, stack.head_dim**-0.5
        self.norm = LPNLayerNorm(stack.hidden_size, config.layer_norm_eps, stack.use_bias)
        self.q_proj = nn.Linear(stack.hidden_size, stack.head_dim, bias=stack.use_bias)
        self.k_proj = nn.Linear(stack.hidden_size, stack.head_dim, bias=stack.use_bias)
        self.scale_proj = nn.Linear(stack.hidden_size, 1, bias=stack.use_bias)

    def keys(self, hidden_states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Input cells before the last layer `(batch, cells, width)` -> keys `(batch, cells, head_dim)`."""
        return self._turn(self.k_proj(self.norm(hidden_states)), rotary)

    def forward(
        self, hidden_states: torch.Tensor, rotary: Rotary, keys: torch.Tensor, cells: CopiedCells
    ) -> torch.Tensor:
        """
        Output tokens `(batch, length, width)`, keys of the input cells `(batch, cells, head_dim)` -> logits to add `(batch,
        length, vocab_size)`.
        """
        normed = self.norm(hidden_states)
        scores = torch.matmul(self._turn(self.q_proj(normed), rotary), keys.transpose(1, 2)).float() * self.scaling
        if cells.mask is not None:
            scores = scores.masked_fill(~cells.mask.unsqueeze(1), torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * (self.MAX_SCALE * self.scale_proj(normed).float().sigmoid())
        return torch.matmul(weights, F.one_hot(cells.colors, self.vocab_size).to(weights.dtype))

    @staticmethod
    def _turn(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        return states if rotary is None else rotate(states.unsqueeze(1), *rotary)[:, 0]


class LPNPreviousEmbedding(nn.Embedding):
    """Tables of the colours of the cells before a cell; zero in a new model."""


class LPNStack(nn.Module):
    """What encoder and decoder share: tables of colours, shapes and positions, layers, rotary embedding and masks."""

    def __init__(self, config: LPNConfig, stack: LPNStackConfig) -> None:
        super().__init__()
        self.config, self.stack, width = config, stack, stack.hidden_size
        self.color_embedding = nn.Embedding(config.vocab_size, width)
        self.row_count_embedding = nn.Embedding(config.max_rows, width)
        self.col_count_embedding = nn.Embedding(config.max_cols, width)
        self.side_embedding = nn.Embedding(2, width)  # 0: of the input grid, 1: of the output grid
        self.position_embedding = LPNPositionEmbedding(config, stack)
        if config.num_previous_cells:  # a table for each distance, whose last entry is "there is none"
            self.previous_embedding = LPNPreviousEmbedding(config.num_previous_cells * (config.vocab_size + 1), width)
        self.layers = nn.ModuleList(LPNLayer(config, stack, index) for index in range(stack.num_layers))

    def embed_shape(self, shapes: torch.Tensor, side: int) -> torch.Tensor:
        """Tokens of the number of rows and of columns: shapes `(batch, 2)` -> `(batch, 2, width)`."""
        rows, cols = (shapes - 1).unbind(-1)
        return torch.stack([self.row_count_embedding(rows), self.col_count_embedding(cols)], 1) + self._side(
            shapes, side
        )

    def _side(self, like: torch.Tensor, side: int) -> torch.Tensor:
        """Embedding of a side `(width,)`. Called, not read off `weight`, which is not there while it is offloaded."""
        return self.side_embedding(like.new_full((), side))

    def embed_cells(
        self,
        colors: torch.Tensor,
        positions: torch.Tensor,
        side: int,
        previous: torch.Tensor | None,
        table: LPNPositionEmbedding | None = None,
    ) -> torch.Tensor:
        """
        Tokens of cells: colors `(batch, length)`, positions `(batch, length, 2)`, `previous` as [`previous_cells`] gives
        it -> `(batch, length, width)`.
        """
        table = self.position_embedding if table is None else table
        embeds = self.color_embedding(colors) + self._side(colors, side) + table(positions)
        return embeds if previous is None else embeds + self.previous_embedding(previous).sum(-2)

    def previous_cells(self, colors: torch.Tensor, cols: torch.Tensor) -> torch.Tensor | None:
        """
        Colours `(batch, length)` in reading order and the columns they are in -> indices `(batch, length,
        num_previous_cells)` into the table of the cells before them on their row; `None` if tokens do not carry them.
        """
        if not self.config.num_previous_cells:
            return None
        size, found = self.config.vocab_size + 1, []
        for distance in range(1, self.config.num_previous_cells + 1):
            before = F.pad(colors, (distance, 0))[:, : colors.shape[1]]
            found.append(torch.where(cols >= distance, before, size - 1) + (distance - 1) * size)
        return torch.stack(found, -1)

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """
        Cosine and sine of 2-D rotary embedding, as [`rotate`] takes them: half of the angles turn with the row, half with the
        column, at `head_dim / 4` frequencies from 1 to `rope_max_frequency / 2` half-turns over a grid side that spans -1
        to 1. Tokens that are no cell (position -1) are not turned.
        """
        if self.stack.position_embedding_type != "rotary":
            return None
        frequencies = torch.pi * torch.linspace(
            1.0, self.config.rope_max_frequency / 2, self.stack.head_dim // 4, device=positions.device
        )
        sizes = positions.new_tensor([self.config.max_rows, self.config.max_cols])
        place = 2 * positions / (sizes - 1).clamp(min=1) - 1
        place = torch.where(positions < 0, 0.0, place)
        angles = (place.unsqueeze(-1) * frequencies).flatten(-2)  # (batch, length, head_dim / 2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def segment(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        start: int,
        end: int,
        key_end: int,
        causal: bool = False,
        cached: bool = False,
    ) -> AttentionSegment:
        """An [`AttentionSegment`] whose mask has the form that the attention implementation wants."""
        implementation = attention_implementation(self.config, cached)
        if mask is None and not causal:
            return AttentionSegment(start, end, key_end, None, implementation)
        attention_mask = ALL_MASK_ATTENTION_FUNCTIONS[implementation](
            batch_size=1 if mask is None else mask.shape[0],
            q_length=end - start,
            kv_length=key_end,
            q_offset=start,
            mask_function=causal_mask_function if causal else bidirectional_mask_function,
            attention_mask=None if mask is None else mask[:, :key_end],
            allow_is_causal_skip=False,
            dtype=hidden_states.dtype,
            device=hidden_states.device,
        )
        return AttentionSegment(start, end, key_end, attention_mask, implementation)

    def causal_segments(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, start: int, end: int
    ) -> list[AttentionSegment]:
        """
        Segments of the queries `start..end`, which see all tokens up to themselves. On a CPU a long output is cut into blocks
        of queries without the keys behind them, which the kernel computes before it hides them. (Its own causal flag, which
        does not, takes queries and keys of the same tokens.)
        """
        on_cpu = hidden_states.device.type == "cpu" and self.config._attn_implementation != "flex_attention"
        count = max(1, (end - start + CAUSAL_BLOCK // 2) // CAUSAL_BLOCK) if on_cpu else 1
        ends = [start + CAUSAL_BLOCK * index for index in range(1, count)] + [end]
        return [
            self.segment(hidden_states, mask, first, last, last, causal=True)
            for first, last in zip([start, *ends], ends, strict=False)
        ]

    def _drop(self, embeds: torch.Tensor) -> torch.Tensor:
        return F.dropout(embeds, self.stack.dropout, self.training) if self.stack.dropout else embeds


def pack_cells(
    grids: torch.Tensor, shapes: torch.Tensor, extent: GridExtent
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Takes the real cells out of padded grids, row by row.

    Args:
        grids (`torch.LongTensor` of shape `(batch, rows, cols)`): Padded at the bottom and on the right.
        shapes (`torch.LongTensor` of shape `(batch, 2)`): Rows and columns.
        extent ([`GridExtent`]): What is known of them on the host; its `length` cells are returned.

    Returns:
        `tuple`: colours `(batch, length)`, positions `(batch or 1, length, 2)` and which of them are real
        `(batch, length)`, `None` for all.
    """
    cells = torch.arange(extent.length, device=grids.device)
    if extent.shape is not None:  # grids alike need no lookup and share their positions
        height, width = extent.shape
        colors = grids[:, :height, :width].flatten(1)[:, : extent.length]
        return colors, torch.stack([cells // width, cells % width], -1).unsqueeze(0), None
    num_cols = shapes[:, 1:]
    rows, cols = cells // num_cols, cells % num_cols
    real = rows < shapes[:, :1]
    rows, cols = torch.where(real, rows, 0), torch.where(real, cols, 0)
    colors = grids.flatten(1).gather(1, rows * grids.shape[2] + cols)
    return colors, torch.stack([rows, cols], -1), real if extent.padded else None


def _join_positions(parts: list[torch.Tensor | int]) -> torch.Tensor:
    """One tensor `(batch or 1, length, 2)` of positions of cells and of numbers of tokens that are no cells."""
    cells = [part for part in parts if torch.is_tensor(part)]
    batch = max(len(part) for part in cells)
    return torch.cat(
        [
            part.expand(batch, -1, -1) if torch.is_tensor(part) else cells[0].new_full((batch, part, 2), -1)
            for part in parts
        ],
        1,
    )


def _join_masks(parts: list[torch.Tensor | int], batch: int, device: torch.device) -> torch.Tensor | None:
    """One mask `(batch, length)` of masks and of numbers of tokens that are all real; `None` if nothing is padding."""
    if not any(torch.is_tensor(part) for part in parts):
        return None
    return torch.cat(
        [p if torch.is_tensor(p) else torch.ones(batch, p, dtype=torch.bool, device=device) for p in parts], 1
    )


def _rotary_of(rotary: Rotary, start: int, end: int) -> Rotary:
    """Tokens `start..end` of what [`LPNStack.rotary`] gives."""
    return None if rotary is None else (rotary[0][:, start:end], rotary[1][:, start:end])


def _collect(states: list[torch.Tensor] | None, *hidden_states: torch.Tensor) -> None:
    if states is not None:
        states.append(torch.cat(hidden_states, 1))


class LPNEncoder(LPNStack):
    """Maps an input/output pair to the parameters of its latent program's posterior (paper, section 4.1)."""

    def __init__(self, config: LPNConfig) -> None:
        super().__init__(config, config.encoder_stack)
        width = config.encoder_stack.hidden_size
        self.cls_token = nn.Embedding(1, width)
        self.norm = LPNLayerNorm(width, config.layer_norm_eps, config.encoder_stack.use_bias)
        self.mean_proj = nn.Linear(width, config.latent_dim, bias=config.latent_projection_bias)
        if config.variational:
            self.logvar_proj = nn.Linear(width, config.latent_dim, bias=config.latent_projection_bias)

    def forward(
        self,
        pairs: GridPairs,
        input_extent: GridExtent,
        output_extent: GridExtent,
        states: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Pairs -> mean and log-variance (if variational) `(sequences, latent_dim)` in float32. Only real cells become
        tokens, and the last layer computes only the one that is read. `states` collects what every layer is given and gives.
        """
        in_colors, in_positions, in_real = pack_cells(pairs.input_grids, pairs.input_shapes, input_extent)
        out_colors, out_positions, out_real = pack_cells(pairs.output_grids, pairs.output_shapes, output_extent)
        batch, device = in_colors.shape[0], in_colors.device
        embeds = torch.cat(
            [
                self.cls_token(in_colors.new_zeros(batch, 1)),
                self.embed_shape(pairs.input_shapes, 0),
                self.embed_shape(pairs.output_shapes, 1),
                self.embed_cells(in_colors, in_positions, 0, self.previous_cells(in_colors, in_positions[..., 1])),
                self.embed_cells(out_colors, out_positions, 1, self.previous_cells(out_colors, out_positions[..., 1])),
            ],
            1,
        )
        parts = [
            5,
            input_extent.length if in_real is None else in_real,
            output_extent.length if out_real is None else out_real,
        ]
        mask = _join_masks(parts, batch, device)
        rotary = self.rotary(_join_positions([5, in_positions, out_positions]))
        hidden_states, length = self._drop(embeds), embeds.shape[1]
        for index, layer in enumerate(self.layers):
            queries = 1 if index + 1 == len(self.layers) else length
            if index == 0 or queries == 1:
                segments = [self.segment(hidden_states, mask, 0, queries, length)]
            _collect(states, hidden_states)
            hidden_states, *_ = layer(hidden_states, segments, rotary)
        _collect(states, hidden_states)
        cls = self.norm(hidden_states[:, 0])
        return self.mean_proj(cls).float(), self.logvar_proj(cls).float() if self.config.variational else None


class LPNDecoder(LPNStack):
    """
    Executes a latent program on an input grid (paper, section 4.1). A sequence is the *prefix* [input cells, number of
    rows, number of columns, latent], whose tokens see each other (with `latent_visible_to_input: false` those before the
    latent do not see it), and the *output* [number of rows, number of columns, cells], which is causal and sees the prefix.
    An output token predicts the one after it.
    """

    def __init__(self, config: LPNConfig) -> None:
        super().__init__(config, config.decoder_stack)
        stack, width = config.decoder_stack, config.decoder_stack.hidden_size
        self.latent_proj = nn.Linear(config.latent_dim, width, bias=stack.use_bias)
        if config.separate_input_position_embeddings:
            self.input_position_embedding = LPNPositionEmbedding(config, stack)
        self.row_norm = LPNLayerNorm(width, config.layer_norm_eps, stack.use_bias)
        self.col_norm = LPNLayerNorm(width, config.layer_norm_eps, stack.use_bias)
        self.grid_norm = LPNLayerNorm(width, config.layer_norm_eps, stack.use_bias)
        self.row_head = nn.Linear(width, config.max_rows, bias=config.logits_projection_bias)
        self.col_head = nn.Linear(width, config.max_cols, bias=config.logits_projection_bias)
        self.grid_head = nn.Linear(width, config.vocab_size, bias=config.logits_projection_bias)
        self.copy_head = LPNCopyHead(config, stack) if config.copy_inputs else None

    @property
    def _first_layer(self) -> LPNLayer:
        return cast(LPNLayer, self.layers[0])

    def embed_prefix(self, input_grids: torch.Tensor, input_shapes: torch.Tensor, extent: GridExtent) -> GridTokens:
        """Prefix without the latent: grids `(batch, rows, cols)`, shapes `(batch, 2)` -> tokens."""
        colors, positions, real = pack_cells(input_grids, input_shapes, extent)
        table = self.input_position_embedding if self.config.separate_input_position_embeddings else None
        previous = self.previous_cells(colors, positions[..., 1])
        return GridTokens(
            torch.cat([self.embed_cells(colors, positions, 0, previous, table), self.embed_shape(input_shapes, 0)], 1),
            None if real is None else _join_masks([real, 2], len(colors), colors.device),
            _join_positions([positions, 2]),
            CopiedCells(colors, real) if self.config.copy_inputs else None,
        )

    def embed_output(self, output_grids: torch.Tensor, output_shapes: torch.Tensor, extent: GridExtent) -> GridTokens:
        """Output tokens but the last cell, which predicts nothing."""
        extent = GridExtent(extent.length - 1, extent.padded, extent.shape)
        colors, positions, real = pack_cells(output_grids, output_shapes, extent)
        previous = self.previous_cells(colors, positions[..., 1])
        positions = self.carried_positions(positions, output_shapes[: len(positions), 1:])
        return GridTokens(
            torch.cat([self.embed_shape(output_shapes, 1), self.embed_cells(colors, positions, 1, previous)], 1),
            None if real is None else _join_masks([2, real], len(colors), colors.device),
            _join_positions([2, positions]),
        )

    def chunk(
        self,
        pairs: GridPairs,
        input_extent: GridExtent,
        output_extent: GridExtent,
        rows: torch.Tensor,
        share: bool,
    ) -> DecoderChunk:
        """
        Embeds pairs to be decoded under `rows` `(entries, k)` of latents; with `share`, what does not depend on the latent
        is computed once, which pays as soon as two latents are tried.
        """
        prefix = self.embed_prefix(pairs.input_grids, pairs.input_shapes, input_extent)
        output = self.embed_output(pairs.output_grids, pairs.output_shapes, output_extent)
        colors, _, real = pack_cells(pairs.output_grids, pairs.output_shapes, output_extent)
        chunk = DecoderChunk(rows, prefix, output, pairs.output_shapes, colors, real)
        if not self.config.latent_visible_to_input:
            chunk.memory = self.remember(prefix)
        if share and self._can_share():
            chunk.shared = self._share(prefix, output)
        return chunk

    def _can_share(self) -> bool:
        """
        Not with dropout, which draws for each latent; nor under FSDP, which gathers weights for `forward` only; nor where a
        single layer computes no input cells and a copy head asks for them.
        """
        dropout = self.training and (self.stack.dropout or self.stack.attention_dropout)
        copies = self.copy_head is not None and len(self.layers) == 1
        return not dropout and not copies and type(self.latent_proj.weight) is nn.Parameter

    def _share(self, prefix: GridTokens, output: GridTokens) -> SharedLayer:
        embeds, length = torch.cat([prefix.embeds, output.embeds], 1), prefix.embeds.shape[1]
        mask = _join_masks(
            [tokens.embeds.shape[1] if tokens.mask is None else tokens.mask for tokens in (prefix, output)],
            len(embeds),
            embeds.device,
        )
        rotary = self.rotary(_join_positions([prefix.positions, output.positions]))
        all_go_on = len(self.layers) > 1 and self.config.latent_visible_to_input
        return self._first_layer.share(embeds, mask, rotary, length, 0 if all_go_on else length)

    def remember(self, prefix: GridTokens, cached: bool = False) -> PrefixMemory:
        """Runs the layers on a prefix, once for all that follows it; the last one on its last token only."""
        hidden_states, rotary, length = (
            self._drop(prefix.embeds),
            self.rotary(prefix.positions),
            prefix.embeds.shape[1],
        )
        whole = self.segment(hidden_states, prefix.mask, 0, length, length, cached=cached)
        last = self.segment(hidden_states, prefix.mask, length - 1, length, length, cached=cached)
        states, keys, values = [], [], []
        for index, layer in enumerate(self.layers, 1):
            states.append(hidden_states)
            hidden_states, key, value = layer(hidden_states, [whole if index < len(self.layers) else last], rotary)
            keys.append(key)
            values.append(value)
        copy_keys = None if prefix.copied is None else self._copy_keys(states[-1], prefix.copied, rotary)
        return PrefixMemory(states, keys, values, hidden_states, copy_keys)

    def carried_positions(self, positions: torch.Tensor, num_cols: torch.Tensor) -> torch.Tensor:
        """The positions that output cells `(batch, length, 2)` carry: the next cell's, if the configuration says so."""
        if not self.config.next_position_embeddings:
            return positions
        rows, cols = positions.unbind(-1)
        wraps = cols + 1 >= num_cols
        rows = torch.where(wraps, rows + 1, rows).clamp(max=self.config.max_rows - 1)
        return torch.stack([rows, torch.where(wraps, 0, cols + 1)], -1)

    def forward(
        self, latents: torch.Tensor, chunk: DecoderChunk, states: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """
        Latents `(entries, candidates, latent_dim)` -> hidden states `(entries * candidates, 1 + output length, width)` of
        the latent token and the output tokens. The last layer leaves out the rest. The logits of [`LPNCopyHead`], if there
        is one, follow as further channels. `states` collects what every layer is given and gives.
        """
        candidates, prefix, output, memory = latents.shape[1], chunk.prefix, chunk.output, chunk.memory
        context = self.latent_proj(latents.to(self.latent_proj.weight.dtype)).to(prefix.embeds.dtype)
        if candidates not in chunk.layouts:
            chunk.layouts[candidates] = self._layout(chunk, candidates)
        layout = chunk.layouts[candidates]
        if chunk.shared is None:
            before, after = (tokens.embeds.unsqueeze(1).expand(-1, candidates, -1, -1) for tokens in (prefix, output))
            tokens = [context.unsqueeze(2), after] if memory else [before, context.unsqueeze(2), after]
            hidden_states = self._drop(torch.cat(tokens, 2).flatten(0, 1))
        else:
            hidden_states = self._first_layer.merge(chunk.shared, context).flatten(0, 1)
        layers = list(self.layers) if chunk.shared is None else list(self.layers)[1:]
        for index, layer in enumerate(layers, 1):
            given = hidden_states
            _collect(states, *([] if memory is None else memory.states[index - 1 : index]), given)
            segments = layout.whole if index < len(layers) else layout.read
            hidden_states, *_ = layer(given, segments, layout.rotary, memory)
        _collect(states, hidden_states)
        if layout.copied is None:
            return hidden_states
        if memory is None:
            keys, start = self._copy_keys(given, layout.copied, layout.rotary), prefix.embeds.shape[1]
        else:
            keys, start = memory.copy_keys.repeat_interleave(candidates, 0), 0
        rotary = _rotary_of(layout.rotary, start, start + hidden_states.shape[1])
        copied = self.copy_head(hidden_states, rotary, keys, layout.copied)
        return torch.cat([hidden_states, copied.to(hidden_states.dtype)], -1)

    def _copy_keys(self, hidden_states: torch.Tensor, cells: CopiedCells, rotary: Rotary) -> torch.Tensor:
        count = cells.colors.shape[1]
        return self.copy_head.keys(hidden_states[:, :count], _rotary_of(rotary, 0, count))

    def _layout(self, chunk: DecoderChunk, candidates: int) -> DecoderLayout:
        prefix, output = chunk.prefix, chunk.output
        split = prefix.embeds.shape[1] + 1
        length = split + output.embeds.shape[1]
        before, after = (tokens.embeds.shape[1] if tokens.mask is None else tokens.mask for tokens in (prefix, output))
        mask = _join_masks([before, 1, after], len(prefix.embeds), prefix.embeds.device)
        rotary = self.rotary(_join_positions([prefix.positions, 1, output.positions]))
        if candidates > 1:
            mask = None if mask is None else mask.repeat_interleave(candidates, 0)
            if rotary is not None and len(rotary[0]) > 1:
                rotary = rotary[0].repeat_interleave(candidates, 0), rotary[1].repeat_interleave(candidates, 0)
        whole = [
            self.segment(prefix.embeds, None if prefix.mask is None else mask, 0, split, split),
            *self.causal_segments(prefix.embeds, mask, split, length),
        ]
        read = self.causal_segments(prefix.embeds, mask, split - 1, length)
        copied = None if prefix.copied is None else prefix.copied.repeat(candidates)
        if chunk.memory is None:
            return DecoderLayout(whole, read, rotary, copied)
        own = [AttentionSegment(part.start - split + 1, part.end - split + 1, *part[2:]) for part in read]
        return DecoderLayout(own, own, _rotary_of(rotary, split - 1, length), copied)

    def logits(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states of [latent, rows, columns, cells] -> float32 logits of rows, columns and cells."""
        width = self.stack.hidden_size
        # Split, not indexed: one gradient, not a sum of three.
        latent, rows, cells = hidden_states.split([1, 1, hidden_states.shape[1] - 2], 1)
        logits = self.grid_head(self.grid_norm(cells[..., :width])).float()
        return (
            self.row_head(self.row_norm(latent[:, 0, :width])).float(),
            self.col_head(self.col_norm(rows[:, 0, :width])).float(),
            logits if self.copy_head is None else logits + cells[..., width:].float(),
        )

    @torch.no_grad()
    def generate(
        self,
        latents: torch.Tensor,
        input_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        extent: GridExtent,
        drafts: torch.Tensor,
        speculate: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Greedy output grids: latents `(batch, latent_dim)`, grids `(batch, rows, cols)`, shapes `(batch, 2)` -> grids
        `(batch, max_rows, max_cols)` and shapes `(batch, 2)`. Keys and values are cached, and only cells of the
        predicted shape are computed; many at a time, see [`LPNDecoder._write_by_passes`], beginning with `drafts` `(batch,
        rows, cols)`. `speculate=False` writes them one by one.
        """
        prefix = self.embed_prefix(input_grids, input_shapes, extent)
        context = self.latent_proj(latents.to(self.latent_proj.weight.dtype)).unsqueeze(1).to(prefix.embeds.dtype)
        if self.config.latent_visible_to_input:
            mask = None if prefix.mask is None else F.pad(prefix.mask, (0, 1), value=True)
            embeds, positions = torch.cat([prefix.embeds, context], 1), F.pad(prefix.positions, (0, 0, 0, 1), value=-1)
            prefix = GridTokens(embeds, mask, positions, prefix.copied)
        memory = self.remember(prefix, cached=True)
        cache = LPNCache(memory, prefix.mask)
        cache.reserve(3)
        hidden_states = memory.last[:, 0]
        if not self.config.latent_visible_to_input:
            hidden_states = self._step(context[:, 0], None, cache)
        rows = self.row_head(self.row_norm(hidden_states)).argmax(-1)
        side = self._side(rows, 1)
        hidden_states = self._step(self.row_count_embedding(rows) + side, None, cache)
        cols = self.col_head(self.col_norm(hidden_states)).argmax(-1)
        hidden_states = self._step(self.col_count_embedding(cols) + side, None, cache)
        shapes = torch.stack([rows + 1, cols + 1], -1)
        return self._write_cells(
            hidden_states, shapes, cache, prefix.copied, memory.copy_keys, drafts, speculate
        ), shapes

    def _step(self, hidden_states: torch.Tensor, rotary: Rotary, cache: LPNCache) -> torch.Tensor:
        """One more token of each sequence in the cache: embeds `(batch, width)` -> hidden states."""
        for layer in self.layers:
            hidden_states, *_ = layer(hidden_states, [], rotary, cache)
        cache.length += 1
        return hidden_states

    def _write_cells(
        self,
        hidden_states: torch.Tensor,
        shapes: torch.Tensor,
        cache: LPNCache,
        copied: CopiedCells | None,
        copy_keys: torch.Tensor | None,
        drafts: torch.Tensor,
        speculate: bool,
    ) -> torch.Tensor:
        """Grids `(batch, max_rows, max_cols)`. The largest come first, so that steps find the unfinished ones in a slice of the batch."""
        sizes, order = shapes.prod(-1).sort(descending=True, stable=True)
        num_cols, longest = shapes[order, 1:], int(sizes[0])
        cache.reserve(longest, order)
        cells = torch.arange(longest, device=shapes.device)
        # (batch, cells, 2), behind the end of a smaller grid its last row
        positions = torch.stack([(cells // num_cols).clamp(max=self.config.max_rows - 1), cells % num_cols], -1)
        carried, places = self.carried_positions(positions, num_cols), self._places(positions)
        output = OutputCells(
            F.pad(self._drafted(drafts[order], positions), (0, 1)),
            sizes,
            positions[..., 1],
            self._places(carried),
            None if copied is None else copied.take(order),
            None if copy_keys is None else copy_keys[order],
        )
        tables = self._cell_tables(shapes)
        output.colors[:, 0] = self._colors(hidden_states[order].unsqueeze(1), None, output, slice(None))[:, 0]
        rows, written, start = torch.arange(len(order), device=order.device), torch.empty_like(output.colors), 0
        costs = WRITING_COSTS.get(shapes.device.type, ACCELERATOR_COSTS)
        if speculate and longest >= costs.least:
            output, rows, start = self._write_by_passes(output, cache, tables, written, costs)
        self._write_by_steps(output, cache, tables, start)
        written[rows] = output.colors

        real = cells < sizes.unsqueeze(1)
        grids = written.new_zeros(len(order), self.config.max_rows * self.config.max_cols)
        grids.scatter_add_(1, torch.where(real, places, 0), torch.where(real, written[:, :-1], 0))
        unsorted = torch.empty_like(grids).index_copy_(0, order, grids)
        return unsorted.view(-1, self.config.max_rows, self.config.max_cols)

    def _places(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows and columns `(..., 2)` -> indices into the tables of [`LPNDecoder._cell_tables`]."""
        return positions[..., 0] * self.config.max_cols + positions[..., 1]

    def _drafted(self, drafts: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Colours that grids `(batch, rows, cols)` have at positions `(batch, cells, 2)`, 0 outside."""
        (rows, cols), (height, width) = positions.unbind(-1), drafts.shape[1:]
        inside = (rows < height) & (cols < width)
        colors = drafts.long().flatten(1).gather(1, torch.where(inside, rows * width + cols, 0))
        return torch.where(inside, colors, 0).clamp(0, self.config.vocab_size - 1)

    def _write_by_passes(
        self, output: OutputCells, cache: LPNCache, tables: CellTables, written: torch.Tensor, costs: WritingCosts
    ) -> tuple[OutputCells, torch.Tensor, int]:
        """
        Exact speculative decoding, where the model drafts for itself (Jacobi decoding, arXiv 2305.10427): one pass predicts
        the next cells of every grid from those drafted before each. Up to the first that differs from its draft, and with
        that one, they are what greedy decoding writes; all are the next draft. It is given up where steps would cost less. In
        half precision, where kernels round differently, a tie can fall the other way, as in a batch of another size.

        What a pass saves is what writing the rest by steps, from the grid that is least far, costs less after it. That grid
        bounds what others gain.

        Args:
            output ([`OutputCells`]): The first cell of each grid is known.
            written (`torch.LongTensor` like the colours): Gets those of the grids that are finished.

        Returns:
            `tuple`: the unfinished ones, their rows of `written`, and the number of cells whose tokens are in the cache; one
            more is known of each.
        """
        device, begin, longest = output.sizes.device, cache.length, output.places.shape[1]
        rows, known = torch.arange(len(output.sizes), device=device), torch.ones_like(output.sizes)
        counts = torch.stack([known, output.sizes]).cpu()
        rest, gained, credit = costs.steps(counts), 0.0, 0.0
        patience = PATIENCE * rest
        while True:
            left = (counts[0] < counts[1]).nonzero()[:, 0]
            given_up = credit < -patience
            if given_up or len(left) < LEAST_UNFINISHED * len(rows):
                written[rows] = output.colors
                index = left.to(device)
                cache.take(index)
                output, rows, known, counts = output.take(index), rows[index], known[index], counts[:, left]
            if given_up or not len(rows):
                break
            window = max(LEAST_WINDOW, costs.tokens // len(rows), round(2 * gained))
            window = min(window, int((counts[1] - counts[0]).max()))
            cells = known.unsqueeze(1) - 1 + torch.arange(window, device=device)
            cells = cells.clamp(max=longest - 1)  # behind the end of a grid is room for anything
            cache.length = begin + min(int(counts[0].max()) - 1 + window, longest)
            predicted = self._predict(output, cache, tables, cells, begin)
            right = (predicted == output.colors.gather(1, cells + 1)).long().cumprod(1).sum(1)
            known = torch.minimum(known + (right + 1).clamp(max=window), output.sizes)
            output.colors.scatter_(1, cells + 1, predicted)
            before, counts = counts[0], torch.stack([known, output.sizes]).cpu()  # the one wait for the device
            gained = float((counts[0] - before).sum()) / len(rows)
            rest_before, rest = rest, costs.steps(counts)
            credit = min(0.0, credit + rest_before - rest - costs.begin - costs.cell * predicted.numel())
        start = int(counts[0].min()) - 1 if len(rows) else 0
        cache.slots, cache.length = None, begin + start
        return output, rows, start

    def _predict(
        self, output: OutputCells, cache: LPNCache, tables: CellTables, cells: torch.Tensor, begin: int
    ) -> torch.Tensor:
        """
        The colours behind some cells of each grid, given these as they are `(batch, cells)`, in one pass; `begin` is the slot
        of the first cell in the cache.
        """
        hidden_states, rotary = self._embed_written(output, tables, cells)
        cache.slots = begin + cells
        later = torch.arange(cache.length, device=cells.device) > cache.slots.unsqueeze(-1)
        mask = hidden_states.new_zeros(later.shape).masked_fill(later, torch.finfo(hidden_states.dtype).min)
        mask = mask.unsqueeze(1) if cache.mask is None else mask.unsqueeze(1) + cache.mask[..., : cache.length]
        implementation = attention_implementation(self.config, cached=True)
        segments = [AttentionSegment(0, cells.shape[1], cache.length, mask, implementation)]
        for layer in self.layers:
            hidden_states, *_ = layer(hidden_states, segments, rotary, cache)
        return self._colors(hidden_states, rotary, output, slice(None))

    def _write_by_steps(self, output: OutputCells, cache: LPNCache, tables: CellTables, start: int) -> None:
        """Cell by cell from the one behind `start` on, whose token is not in the cache yet."""
        cells = torch.arange(output.places.shape[1], device=output.sizes.device)
        active = (output.sizes.unsqueeze(1) > cells).sum(0).tolist()
        for cell in range(start + 1, sum(map(bool, active))):
            if active[cell] < active[cell - 1]:
                cache.take(slice(active[cell]))
            rows = slice(active[cell])
            embeds, rotary = self._embed_written(output, tables, cells[cell - 1].expand(active[cell], 1))
            hidden_states = self._step(embeds[:, 0], rotary, cache)
            output.colors[rows, cell] = self._colors(hidden_states.unsqueeze(1), rotary, output, rows)[:, 0]

    def _embed_written(
        self, output: OutputCells, tables: CellTables, cells: torch.Tensor
    ) -> tuple[torch.Tensor, Rotary]:
        """Tokens of some cells of the first grids, indices `(rows, cells)` -> `(rows, cells, width)`, and their rotary tables."""
        places = output.places[: len(cells)].gather(1, cells)
        embeds = F.embedding(output.colors[: len(cells)].gather(1, cells), tables.colors)
        if tables.positions is not None:
            embeds = embeds + F.embedding(places, tables.positions)
        if number := self.config.num_previous_cells:
            near = torch.cat([cells[:, :1] - torch.arange(number, 0, -1, device=cells.device), cells], 1).clamp(min=0)
            colors, cols = (part[: len(cells)].gather(1, near) for part in (output.colors, output.cols))
            embeds = embeds + self.previous_embedding(self.previous_cells(colors, cols)[:, number:]).sum(-2)
        rotary = tables.rotary
        return embeds, None if rotary is None else (F.embedding(places, rotary[0]), F.embedding(places, rotary[1]))

    def _colors(self, hidden_states: torch.Tensor, rotary: Rotary, output: OutputCells, rows: slice) -> torch.Tensor:
        """Likeliest colours behind output tokens `(rows, tokens, width)` -> `(rows, tokens)`."""
        logits = self.grid_head(self.grid_norm(hidden_states)).float()
        if output.copied is not None:
            copied = self.copy_head(hidden_states, rotary, output.copy_keys[rows], output.copied.take(rows))
            logits = logits + copied
        return logits.argmax(-1)

    def _cell_tables(self, like: torch.Tensor) -> CellTables:
        rows, cols = (torch.arange(size, device=like.device) for size in (self.config.max_rows, self.config.max_cols))
        positions = torch.cartesian_prod(rows, cols).view(1, -1, 2)
        colors = self.color_embedding(torch.arange(self.config.vocab_size, device=like.device)) + self._side(like, 1)
        rotary = self.rotary(positions)
        if rotary is not None:
            return CellTables(colors, None, (rotary[0][0], rotary[1][0]))
        return CellTables(colors, self.position_embedding(positions)[0], None)
