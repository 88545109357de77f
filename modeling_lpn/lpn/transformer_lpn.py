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

from typing import NamedTuple

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


class AttentionSegment(NamedTuple):
    """Queries `start..end` of a sequence attend to the keys before `key_end` under `mask` (`None`: to all of them)."""

    start: int
    end: int
    key_end: int
    mask: torch.Tensor | None


class GridTokens(NamedTuple):
    """
    Packed tokens of a few sequences without those that depend on a latent. `mask` `(batch, length)` is `None` where
    nothing is padding; `positions` `(batch, length, 2)` holds row and column of a cell and -1 for other tokens; `colors`
    `(batch, cells)` those of the input cells, for [`LPNCopyHead`].
    """

    embeds: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    colors: torch.Tensor | None = None


class GridPairs(NamedTuple):
    """Input/output pairs without a task axis: grids `(sequences, rows, cols)`, shapes `(sequences, 2)`."""

    input_grids: torch.Tensor
    output_grids: torch.Tensor
    input_shapes: torch.Tensor
    output_shapes: torch.Tensor

    def take(self, index: torch.Tensor) -> "GridPairs":
        return GridPairs(*(tensor[index] for tensor in self))


class DecoderChunk(NamedTuple):
    """Pairs of similar length, embedded for the decoder, with the labels of its output tokens."""

    entries: torch.Tensor
    prefix: GridTokens
    output: GridTokens
    shapes: torch.Tensor
    colors: torch.Tensor
    real: torch.Tensor


class LPNCache:
    """Keys and values of a decoder while it writes grids: preallocated, so that a step copies only its own token."""

    def __init__(self):
        self.states: list[torch.Tensor] = []  # one (2, batch, heads, capacity, head_dim) for each layer
        self.length = 0

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int):
        if layer_idx == len(self.states):
            self.states.append(torch.stack([key, value]))
        else:
            batch, _, steps, _ = key.shape
            self.states[layer_idx][0, :batch, :, self.length : self.length + steps] = key
            self.states[layer_idx][1, :batch, :, self.length : self.length + steps] = value
        key, value = self.states[layer_idx][:, : key.shape[0], :, : self.length + key.shape[2]]
        return key, value

    def grow(self, order: torch.Tensor, extra: int):
        """Reorders the sequences and makes room for `extra` tokens."""
        for index, states in enumerate(self.states):
            grown = states.new_zeros(*states.shape[:3], self.length + extra, states.shape[-1])
            grown[..., : self.length, :] = states[:, order, :, : self.length]
            self.states[index] = grown


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention; the implementation that differentiates twice everywhere."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probs = F.dropout(probs, p=dropout, training=module.training)
    return torch.matmul(probs, value).transpose(1, 2).contiguous(), probs


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns channel `i` with channel `i + head_dim / 2` of `(batch, heads, length, head_dim)`."""
    first, second = states.chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(states.dtype)


def length_chunks(lengths: torch.Tensor, overhead: int, max_tokens: int) -> list[torch.Tensor]:
    """
    Groups sequences of similar length, so that padding a group to its longest member wastes little.

    Args:
        lengths (`torch.LongTensor` of shape `(sequences, parts)`): Tokens of each separately padded part of a sequence.
        overhead (`int`): Padding tokens that one more group is worth.
        max_tokens (`int`): Tokens of a group at most (a single longer sequence still makes a group).

    Returns:
        `list[torch.LongTensor]`: Indices of the sequences of each group.
    """
    order = lengths.sum(1).argsort(dim=0, descending=True, stable=True)
    chunks, start, waste, longest = [], 0, 0, None
    for end, sizes in enumerate(lengths[order].tolist()):
        longest = sizes if longest is None else [max(pair) for pair in zip(longest, sizes)]
        waste += sum(longest) - sum(sizes)
        if end > start and (waste > overhead or (end - start + 1) * sum(longest) > max_tokens):
            chunks.append(order[start:end])
            start, waste, longest = end, 0, sizes
    chunks.append(order[start:])
    return chunks


def attention_implementation(config: LPNConfig, cached: bool) -> str:
    """Flex attention compiles a kernel for a shape, and with a cache every step has another: sdpa serves there."""
    implementation = config._attn_implementation
    return "sdpa" if cached and implementation == "flex_attention" else implementation


class LPNLayerNorm(nn.Module):
    """Layer norm without scale, as in the published code; a bias only if asked."""

    def __init__(self, size: int, eps: float, use_bias: bool):
        super().__init__()
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(size)) if use_bias else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=self.eps)
        return normed if self.bias is None else normed + self.bias


class LPNAttention(nn.Module):
    """Multi-head attention over segments of queries; keys and values are projected once for all of them."""

    is_causal = False

    def __init__(self, config: LPNConfig, stack: LPNStackConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.attention_dropout = stack.head_dim, stack.attention_dropout
        self.scaling = stack.head_dim**-0.5
        self.q_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)
        self.k_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)
        self.v_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)
        self.o_proj = nn.Linear(stack.hidden_size, stack.hidden_size, bias=stack.use_bias)

    def forward(self, hidden_states, segments, rotary=None, cache: LPNCache | None = None) -> torch.Tensor:
        start, end = segments[0].start, segments[-1].end
        shape = (hidden_states.shape[0], -1, self.q_proj.out_features // self.head_dim, self.head_dim)
        query = self.q_proj(hidden_states[:, start:end]).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if rotary is not None:
            cos, sin = rotary
            query, key = rotate(query, cos[:, start:end], sin[:, start:end]), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = attention_implementation(self.config, cache is not None)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        outputs = [
            attend(
                self,
                query[:, :, segment.start - start : segment.end - start],
                key[:, :, : segment.key_end],
                value[:, :, : segment.key_end],
                segment.mask,
                scaling=self.scaling,
                dropout=self.attention_dropout if self.training else 0.0,
            )[0].flatten(2)
            for segment in segments
        ]
        return self.o_proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1))


class LPNLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer that computes only the queries its segments name."""

    def __init__(self, config: LPNConfig, stack: LPNStackConfig, layer_idx: int):
        super().__init__()
        self.dropout = stack.dropout
        self.activation = ACT2FN[stack.activation]
        self.attention_norm = LPNLayerNorm(stack.hidden_size, config.layer_norm_eps, stack.use_bias)
        self.attention = LPNAttention(config, stack, layer_idx)
        self.mlp_norm = LPNLayerNorm(stack.hidden_size, config.layer_norm_eps, stack.use_bias)
        self.up_proj = nn.Linear(stack.hidden_size, stack.intermediate_size, bias=stack.use_bias)
        self.down_proj = nn.Linear(stack.intermediate_size, stack.hidden_size, bias=stack.use_bias)

    def forward(self, hidden_states, segments, rotary=None, cache: LPNCache | None = None) -> torch.Tensor:
        attended = self.attention(self.attention_norm(hidden_states), segments, rotary, cache)
        hidden_states = hidden_states[:, segments[0].start : segments[-1].end] + self._drop(attended)
        return hidden_states + self._drop(self.down_proj(self.activation(self.up_proj(self.mlp_norm(hidden_states)))))

    def _drop(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.dropout(hidden_states, self.dropout, self.training) if self.dropout else hidden_states


class LPNPositionEmbedding(nn.Module):
    """Row and column embedding of a cell, `"learned"` or `"scaled"`; nothing to add for `"rotary"`."""

    def __init__(self, config: LPNConfig, stack: LPNStackConfig):
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

    def __init__(self, config: LPNConfig, stack: LPNStackConfig):
        super().__init__()
        self.vocab_size, self.scaling = config.vocab_size, stack.head_dim**-0.5
        self.norm = LPNLayerNorm(stack.hidden_size, config.layer_norm_eps, stack.use_bias)
        self.q_proj = nn.Linear(stack.hidden_size, stack.head_dim, bias=stack.use_bias)
        self.k_proj = nn.Linear(stack.hidden_size, stack.head_dim, bias=stack.use_bias)
        self.scale_proj = nn.Linear(stack.hidden_size, 1, bias=stack.use_bias)

    def keys(self, hidden_states: torch.Tensor, rotary) -> torch.Tensor:
        """Input cells before the last layer `(batch, cells, width)` -> keys `(batch, cells, head_dim)`."""
        return self._turn(self.k_proj(self.norm(hidden_states)), rotary)

    def forward(self, hidden_states, rotary, keys, colors, mask) -> torch.Tensor:
        """
        Output tokens `(batch, length, width)`, keys and colours of the input cells, and which of them are real `(batch,
        cells)` (`None`: all) -> logits to add `(batch, length, vocab_size)`.
        """
        normed = self.norm(hidden_states)
        scores = torch.matmul(self._turn(self.q_proj(normed), rotary), keys.transpose(1, 2)).float() * self.scaling
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * (self.MAX_SCALE * self.scale_proj(normed).float().sigmoid())
        return torch.matmul(weights, F.one_hot(colors, self.vocab_size).to(weights.dtype))

    @staticmethod
    def _turn(states: torch.Tensor, rotary) -> torch.Tensor:
        return states if rotary is None else rotate(states.unsqueeze(1), *rotary)[:, 0]


class LPNStack(nn.Module):
    """What encoder and decoder share: tables of colours, shapes and positions, layers, rotary embedding and masks."""

    def __init__(self, config: LPNConfig, stack: LPNStackConfig):
        super().__init__()
        self.config, self.stack, width = config, stack, stack.hidden_size
        self.color_embedding = nn.Embedding(config.vocab_size, width)
        self.row_count_embedding = nn.Embedding(config.max_rows, width)
        self.col_count_embedding = nn.Embedding(config.max_cols, width)
        self.side_embedding = nn.Embedding(2, width)  # 0: of the input grid, 1: of the output grid
        self.position_embedding = LPNPositionEmbedding(config, stack)
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

    def embed_cells(self, colors: torch.Tensor, positions: torch.Tensor, side: int, table=None) -> torch.Tensor:
        """Tokens of cells: colors `(batch, length)`, positions `(batch, length, 2)` -> `(batch, length, width)`."""
        table = self.position_embedding if table is None else table
        return self.color_embedding(colors) + self._side(colors, side) + table(positions)

    def rotary(self, positions: torch.Tensor):
        """
        Cosine and sine `(batch, length, head_dim / 2)` of 2-D rotary embedding: half of the angles turn with the row,
        half with the column, at `head_dim / 4` frequencies from 1 to `rope_max_frequency / 2` half-turns over a grid
        side that spans -1 to 1. Tokens that are no cell (position -1) are not turned.
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
        return angles.cos(), angles.sin()

    def segment(self, hidden_states, mask, start: int, end: int, key_end: int, causal=False, cached=False):
        """An [`AttentionSegment`] whose mask has the form that the attention implementation wants."""
        if mask is None and not causal:
            return AttentionSegment(start, end, key_end, None)
        attention_mask = ALL_MASK_ATTENTION_FUNCTIONS[attention_implementation(self.config, cached)](
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
        return AttentionSegment(start, end, key_end, attention_mask)

    def _drop(self, embeds: torch.Tensor) -> torch.Tensor:
        return F.dropout(embeds, self.stack.dropout, self.training) if self.stack.dropout else embeds


def pack_cells(grids: torch.Tensor, shapes: torch.Tensor, length: int):
    """
    Takes the real cells out of padded grids, row by row.

    Args:
        grids (`torch.LongTensor` of shape `(batch, rows, cols)`): Padded at the bottom and on the right.
        shapes (`torch.LongTensor` of shape `(batch, 2)`): Rows and columns.
        length (`int`): Cells to return.

    Returns:
        `tuple`: colours `(batch, length)`, positions `(batch, length, 2)` and which of them are real `(batch, length)`.
    """
    cells = torch.arange(length, device=grids.device)
    num_cols = shapes[:, 1:]
    rows, cols = cells // num_cols, cells % num_cols
    real = rows < shapes[:, :1]
    rows, cols = torch.where(real, rows, 0), torch.where(real, cols, 0)
    colors = grids.flatten(1).gather(1, rows * grids.shape[2] + cols)
    return colors, torch.stack([rows, cols], -1), real


def _part(rotary, start: int, end: int):
    """Tokens `start..end` of what [`LPNStack.rotary`] gives."""
    return None if rotary is None else tuple(part[:, start:end] for part in rotary)


def _or_none(mask: torch.Tensor) -> torch.Tensor | None:
    return None if mask.all() else mask


class LPNEncoder(LPNStack):
    """Maps an input/output pair to the parameters of its latent program's posterior (paper, section 4.1)."""

    def __init__(self, config: LPNConfig):
        super().__init__(config, config.encoder_stack)
        width = config.encoder_stack.hidden_size
        self.cls_token = nn.Embedding(1, width)
        self.norm = LPNLayerNorm(width, config.layer_norm_eps, config.encoder_stack.use_bias)
        self.mean_proj = nn.Linear(width, config.latent_dim, bias=config.latent_projection_bias)
        if config.variational:
            self.logvar_proj = nn.Linear(width, config.latent_dim, bias=config.latent_projection_bias)

    def forward(self, input_grids, output_grids, input_shapes, output_shapes):
        """
        Grids `(batch, rows, cols)`, shapes `(batch, 2)` -> mean and log-variance `(batch, latent_dim)` in float32.
        Only real cells become tokens, and the last layer computes only the one that is read.
        """
        lengths = [int(shapes.prod(-1).max()) for shapes in (input_shapes, output_shapes)]
        packed = [
            pack_cells(*pair) for pair in zip((input_grids, output_grids), (input_shapes, output_shapes), lengths)
        ]
        (in_colors, in_positions, in_real), (out_colors, out_positions, out_real) = packed
        heads = in_colors.new_full((in_colors.shape[0], 5, 2), -1)
        embeds = torch.cat(
            [
                self.cls_token(in_colors.new_zeros(in_colors.shape[0], 1)),
                self.embed_shape(input_shapes, 0),
                self.embed_shape(output_shapes, 1),
                self.embed_cells(in_colors, in_positions, 0),
                self.embed_cells(out_colors, out_positions, 1),
            ],
            1,
        )
        mask = _or_none(torch.cat([heads[..., 0] < 0, in_real, out_real], 1))
        rotary = self.rotary(torch.cat([heads, in_positions, out_positions], 1))
        hidden_states, length = self._drop(embeds), embeds.shape[1]
        for index, layer in enumerate(self.layers):
            queries = 1 if index + 1 == len(self.layers) else length
            if index == 0 or queries == 1:
                segments = [self.segment(hidden_states, mask, 0, queries, length)]
            hidden_states = layer(hidden_states, segments, rotary)
        cls = self.norm(hidden_states[:, 0])
        return self.mean_proj(cls).float(), self.logvar_proj(cls).float() if self.config.variational else None


class LPNDecoder(LPNStack):
    """
    Executes a latent program on an input grid (paper, section 4.1). A sequence is the *prefix* [input cells, number of
    rows, number of columns, latent], whose tokens see each other, and the *output* [number of rows, number of columns,
    cells], which is causal and sees the prefix. An output token predicts the one after it.
    """

    def __init__(self, config: LPNConfig):
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

    def embed_prefix(self, input_grids: torch.Tensor, input_shapes: torch.Tensor) -> GridTokens:
        """Prefix without the latent: grids `(batch, rows, cols)`, shapes `(batch, 2)` -> tokens."""
        colors, positions, real = pack_cells(input_grids, input_shapes, int(input_shapes.prod(-1).max()))
        table = self.input_position_embedding if self.config.separate_input_position_embeddings else None
        shape_tokens = self.embed_shape(input_shapes, 0)
        return GridTokens(
            torch.cat([self.embed_cells(colors, positions, 0, table), shape_tokens], 1),
            _or_none(torch.cat([real, real.new_ones(real.shape[0], 2)], 1)),
            torch.cat([positions, positions.new_full((positions.shape[0], 2, 2), -1)], 1),
            colors if self.config.copy_inputs else None,
        )

    def embed_output(self, output_grids: torch.Tensor, output_shapes: torch.Tensor) -> GridTokens:
        """Output tokens but the last cell, which predicts nothing."""
        colors, positions, real = pack_cells(output_grids, output_shapes, int(output_shapes.prod(-1).max()) - 1)
        positions = self.carried_positions(positions, output_shapes[:, 1:])
        return GridTokens(
            torch.cat([self.embed_shape(output_shapes, 1), self.embed_cells(colors, positions, 1)], 1),
            _or_none(torch.cat([real.new_ones(real.shape[0], 2), real], 1)),
            torch.cat([positions.new_full((positions.shape[0], 2, 2), -1), positions], 1),
        )

    def carried_positions(self, positions: torch.Tensor, num_cols: torch.Tensor) -> torch.Tensor:
        """The positions that output cells `(batch, length, 2)` carry: the next cell's, if the configuration says so."""
        if not self.config.next_position_embeddings:
            return positions
        rows, cols = positions.unbind(-1)
        wraps = cols + 1 >= num_cols
        rows = torch.where(wraps, rows + 1, rows).clamp(max=self.config.max_rows - 1)
        return torch.stack([rows, torch.where(wraps, 0, cols + 1)], -1)

    def forward(self, latents: torch.Tensor, prefix: GridTokens, output: GridTokens) -> torch.Tensor:
        """
        Latents `(batch, latent_dim)` and tokens -> hidden states `(batch, 1 + output length, width)` of the latent token
        and the output tokens. The last layer leaves out the rest. The logits of [`LPNCopyHead`], if there is one, follow
        as further channels.
        """
        context = self.latent_proj(latents.to(self.latent_proj.weight.dtype)).unsqueeze(1)
        hidden_states = self._drop(torch.cat([prefix.embeds, context.to(prefix.embeds.dtype), output.embeds], 1))
        batch, length, split = hidden_states.shape[0], hidden_states.shape[1], prefix.embeds.shape[1] + 1
        mask = None
        if prefix.mask is not None or output.mask is not None:
            parts = [
                torch.ones(batch, tokens.embeds.shape[1], dtype=torch.bool, device=latents.device)
                if tokens.mask is None
                else tokens.mask
                for tokens in (prefix, output)
            ]
            mask = torch.cat([parts[0], parts[0].new_ones(batch, 1), parts[1]], 1)
        rotary = None
        if self.stack.position_embedding_type == "rotary":
            no_cell = prefix.positions.new_full((batch, 1, 2), -1)
            rotary = self.rotary(torch.cat([prefix.positions, no_cell, output.positions], 1))
        prefix_mask = None if prefix.mask is None else mask
        read = self.segment(hidden_states, mask, split - 1, length, length, causal=True)
        whole = [
            self.segment(hidden_states, prefix_mask, 0, split, split),
            self.segment(hidden_states, mask, split, length, length, causal=True),
        ]
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, whole, rotary)
        outputs = self.layers[-1](hidden_states, [read], rotary)
        if self.copy_head is None:
            return outputs
        copied = self.copied_logits(outputs, split - 1, rotary, self.copy_keys(hidden_states, prefix, rotary), prefix)
        return torch.cat([outputs, copied.to(outputs.dtype)], -1)

    def copy_keys(self, hidden_states: torch.Tensor, prefix: GridTokens, rotary) -> torch.Tensor:
        cells = prefix.colors.shape[1]
        return self.copy_head.keys(hidden_states[:, :cells], _part(rotary, 0, cells))

    def copied_logits(self, outputs: torch.Tensor, start: int, rotary, keys, prefix: GridTokens) -> torch.Tensor:
        """Logits to add for output tokens, the first of which has place `start` in `rotary`."""
        mask = None if prefix.mask is None else prefix.mask[:, : prefix.colors.shape[1]]
        rotary = _part(rotary, start, start + outputs.shape[1])
        return self.copy_head(outputs, rotary, keys, prefix.colors, mask)

    def logits(self, hidden_states: torch.Tensor):
        """Hidden states of [latent, rows, columns, cells] -> float32 logits of rows, columns and cells."""
        width = self.stack.hidden_size
        hidden_states, copied = hidden_states[..., :width], hidden_states[:, 2:, width:]
        cells = self.grid_head(self.grid_norm(hidden_states[:, 2:])).float()
        return (
            self.row_head(self.row_norm(hidden_states[:, 0])).float(),
            self.col_head(self.col_norm(hidden_states[:, 1])).float(),
            cells if self.copy_head is None else cells + copied.float(),
        )

    @torch.no_grad()
    def generate(self, latents: torch.Tensor, input_grids: torch.Tensor, input_shapes: torch.Tensor):
        """
        Greedy output grids: latents `(batch, latent_dim)`, grids `(batch, rows, cols)`, shapes `(batch, 2)` -> grids
        `(batch, max_rows, max_cols)` and shapes `(batch, 2)`. Keys and values are cached, and only cells of the
        predicted shape are computed.
        """
        prefix, cache = self.embed_prefix(input_grids, input_shapes), LPNCache()
        context = self.latent_proj(latents.to(self.latent_proj.weight.dtype)).unsqueeze(1)
        hidden_states = torch.cat([prefix.embeds, context.to(prefix.embeds.dtype)], 1)
        batch, length = hidden_states.shape[:2]
        mask = None if prefix.mask is None else F.pad(prefix.mask, (0, 1), value=True)
        rotary = self.rotary(F.pad(prefix.positions, (0, 0, 0, 1), value=-1))
        whole = self.segment(hidden_states, mask, 0, length, length, cached=True)
        last = self.segment(hidden_states, mask, length - 1, length, length, causal=True, cached=True)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, [whole], rotary, cache)
        keys = None if self.copy_head is None else self.copy_keys(hidden_states, prefix, rotary)
        hidden_states = self.layers[-1](hidden_states, [last], rotary, cache)
        cache.length = length

        no_cell = prefix.positions.new_full((batch, 1, 2), -1)
        rows = self.row_head(self.row_norm(hidden_states[:, -1])).argmax(-1)
        cache.grow(torch.arange(batch, device=rows.device), 2)
        side = self._side(rows, 1)
        hidden_states = self._step((self.row_count_embedding(rows) + side).unsqueeze(1), no_cell, mask, cache)
        cols = self.col_head(self.col_norm(hidden_states[:, -1])).argmax(-1)
        hidden_states = self._step((self.col_count_embedding(cols) + side).unsqueeze(1), no_cell, mask, cache)
        shapes = torch.stack([rows + 1, cols + 1], -1)
        return self._write_cells(hidden_states, shapes, mask, cache, prefix, keys), shapes

    def _step(self, embeds, positions, mask, cache: LPNCache) -> torch.Tensor:
        """One output token of each of the first sequences in the cache: embeds `(batch, 1, width)`."""
        batch, end = embeds.shape[0], cache.length + 1
        if mask is not None:
            mask = F.pad(mask[:batch], (0, end - mask.shape[1]), value=True)[:, None, None]
            if self.config._attn_implementation == "eager":
                mask = torch.where(mask, 0.0, torch.finfo(embeds.dtype).min).to(embeds.dtype)
        hidden_states, rotary = embeds, self.rotary(positions)
        for layer in self.layers:
            hidden_states = layer(hidden_states, [AttentionSegment(0, 1, end, mask)], rotary, cache)
        cache.length = end
        return hidden_states

    def _write_cells(self, hidden_states, shapes, mask, cache: LPNCache, prefix: GridTokens, keys) -> torch.Tensor:
        """Cell by cell; the largest grids come first, so that the unfinished ones are always a slice of the batch."""
        sizes, order = shapes.prod(-1).sort(descending=True, stable=True)
        hidden_states, num_cols = hidden_states[order], shapes[order, 1]
        mask = None if mask is None else mask[order]
        if keys is not None:
            prefix, keys = GridTokens(*(None if t is None else t[order] for t in prefix)), keys[order]
        position = prefix.positions.new_full((len(order), 1, 2), -1)
        cells = torch.zeros(len(order), int(sizes[0]), dtype=torch.long, device=shapes.device)
        cache.grow(order, int(sizes[0]))
        unfinished = (sizes.unsqueeze(1) > torch.arange(int(sizes[0]), device=sizes.device)).sum(0).tolist()
        for step, active in enumerate(unfinished):
            logits = self.grid_head(self.grid_norm(hidden_states[:active, -1])).float()
            if keys is not None:
                given = GridTokens(*(None if t is None else t[:active] for t in prefix))
                rotary = self.rotary(position[:active])
                logits = logits + self.copied_logits(hidden_states[:active], 0, rotary, keys[:active], given)[:, -1]
            colors = logits.argmax(-1)
            cells[:active, step] = colors
            active = unfinished[step + 1] if step + 1 < len(unfinished) else 0
            if active:
                width = num_cols[:active]
                position = torch.stack([step // width, step % width], -1).unsqueeze(1)
                position = self.carried_positions(position, width.unsqueeze(1))
                embeds = self.embed_cells(colors[:active].unsqueeze(1), position, 1)
                hidden_states = self._step(embeds, position, mask, cache)
        grids = cells.new_zeros(len(order), self.config.max_rows * self.config.max_cols)
        index = torch.arange(cells.shape[1], device=cells.device)
        target = (index // num_cols.unsqueeze(1)) * self.config.max_cols + index % num_cols.unsqueeze(1)
        real = index < sizes.unsqueeze(1)
        grids.scatter_add_(1, torch.where(real, target, 0), torch.where(real, cells, 0))
        unsorted = torch.empty_like(grids).index_copy_(0, order, grids)
        return unsorted.view(-1, self.config.max_rows, self.config.max_cols)
