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
"""The attention masks of CodeGen2: causal, bidirectional prefix, packed documents (arXiv 2305.02309, section 3)."""

from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask
from transformers.utils.generic import is_flash_attention_requested


def build_attention_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    block_sequence_ids: torch.Tensor | None = None,
    prefix_length: int | torch.Tensor | None = None,
) -> torch.Tensor | BlockMask | None:
    """
    The mask of one forward pass, in the form the attention implementation wants (`None` where a kernel knows it).

    Beside causality and padding it knows a bidirectional prefix and packed documents. A document is where
    `position_ids` start again. With `index` the number of a token among the real ones of its row, a query at position
    p of its document sees the keys with index from `index - p` on; this holds for a cached step as for a whole row,
    which transformers' own detection (only without cache and without padding mask) does not.

    Raises:
        ValueError: where the attention implementation has no mask for what is asked, or a prefix does not lie within
            the first chunk.
    """
    length, device = inputs_embeds.shape[1], inputs_embeds.device
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
    }
    has_prefix = block_sequence_ids is not None or prefix_length is not None
    if attention_mask is not None and len(attention_mask.shape) == 4:
        if has_prefix:
            raise ValueError(
                "A 4-D `attention_mask` is used as it is, so `block_sequence_ids` and `prefix_length` would have no "
                "effect; give the 2-D padding mask, or draw the prefix into the 4-D one."
            )
        return attention_mask
    if position_ids is None and not has_prefix:
        return create_causal_mask(**arguments)

    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    if past_key_values is not None:
        kv_length, _ = past_key_values.get_mask_sizes(length, 0)
    else:
        kv_length = length if attention_mask is None else attention_mask.shape[1]
    real = torch.ones((1, kv_length), dtype=torch.bool, device=device)
    if isinstance(attention_mask, torch.Tensor):  # a flex mask is 4-D
        real = nn.functional.pad(attention_mask.to(device).bool(), (0, kv_length - attention_mask.shape[1]))
    real = real.expand(inputs_embeds.shape[0], -1)
    index = real.long().cumsum(-1) - 1  # (batch, kv_length)

    block_ids = None
    if has_prefix:
        _require_mask_support(config, "a bidirectional prefix")
        block_ids = _block_ids(block_sequence_ids, prefix_length, index, real, past, length)
    if position_ids is not None:
        queries = torch.arange(length, device=device) + past
        starts = (index[:, queries] - position_ids).clamp(min=0) * real[:, queries]
        starts = starts.cummax(-1).values  # (batch, length); a running maximum, as padding may lie inside a document
        if torch.compiler.is_compiling() or starts.any():
            _require_mask_support(config, "packed documents")
            arguments["and_mask_function"] = lambda batch, head, q, kv: index[batch, kv] >= starts[batch, q - past]
            if block_ids is not None and _is_empty(past):
                # Blocks are joined to the causal mask after the documents are cut apart: the same number in two
                # documents must not connect them.
                block_ids = nn.functional.pad(block_ids, (0, length - block_ids.shape[1]), value=-1)
                block_ids = torch.where(block_ids >= 0, block_ids * (kv_length + 1) + starts, -1)
    return create_causal_mask(**arguments, block_sequence_ids=block_ids)


def _is_empty(past: int | torch.Tensor) -> bool:
    # The fill of a static cache is a tensor once it was used: a compiled graph, which is not to read it, decodes.
    return past == 0 if isinstance(past, int) else not torch.compiler.is_compiling() and bool(past == 0)


def _require_mask_support(config: PreTrainedConfig, what: str) -> None:
    implementation = config._attn_implementation
    if is_flash_attention_requested(config) or implementation not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping:
        raise ValueError(
            f"`attn_implementation` {implementation!r} cannot express {what}: it knows causal and padding masks only. "
            'Call `model.set_attn_implementation("sdpa")` (or "eager", "flex_attention") first.'
        )


def _block_ids(
    block_sequence_ids: torch.Tensor | None,
    prefix_length: int | torch.Tensor | None,
    index: torch.Tensor,
    real: torch.Tensor,
    past: int | torch.Tensor,
    length: int,
) -> torch.Tensor:
    """Ids of the bidirectional blocks over all key positions, -1 where a token is causal: `(batch, positions)`."""
    checked = not torch.compiler.is_compiling()
    if block_sequence_ids is not None and prefix_length is not None:
        raise ValueError("Both `block_sequence_ids` and `prefix_length` are given; they say the same thing, give one.")
    if block_sequence_ids is not None:
        if block_sequence_ids.shape[0] != index.shape[0]:
            raise ValueError(
                f"`block_sequence_ids` has shape {tuple(block_sequence_ids.shape)} for inputs of shape "
                f"{(index.shape[0], length)}; give one id per token, -1 for a causal one."
            )
        # A chunk may be given the ids of the whole row. Those of later tokens must be causal, and those of its own as
        # well where it is not the first.
        first = past if checked and past > 0 else length
        crosses = checked and bool((block_sequence_ids[:, first:] >= 0).any())
        block_ids = block_sequence_ids[:, : index.shape[1]]
    else:
        prefix = torch.as_tensor(prefix_length, device=index.device).reshape(-1, 1)
        if prefix.shape[0] not in (1, index.shape[0]):
            raise ValueError(
                f"`prefix_length` has {prefix.shape[0]} entries for a batch of {index.shape[0]}; give one number, or "
                "one per row."
            )
        tokens = index[:, past + length - 1, None] + 1
        if checked and bool(((prefix < 0) | (prefix > tokens)).any()):
            raise ValueError(
                f"`prefix_length` {prefix.flatten().tolist()} is not within the rows' {tokens.flatten().tolist()} "
                "tokens (padding not counted); the whole prefix must be in the first chunk a model sees."
            )
        crosses = checked and bool(past > 0 and (prefix > index[:, past - 1, None] + 1).any())
        block_ids = torch.where((index < prefix) & real, 0, -1)
    if crosses:
        raise ValueError(
            f"The bidirectional prefix does not lie within one chunk: this one has {length} tokens and follows "
            f"{int(past)} cached ones, which could not see it; process the whole prefix in the first forward pass (no "
            "`prefill_chunk_size`)."
        )
    return block_ids


def positions_in_documents(segment_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Positions that start again at 0 where `segment_ids` change, padding not counted: `(batch, length)`."""
    real = torch.ones_like(segment_ids) if attention_mask is None else attention_mask.to(segment_ids.dtype)
    index = real.cumsum(-1) - 1
    changes = torch.diff(segment_ids, dim=-1, prepend=segment_ids[:, :1] - 1) != 0
    # A padded first token has index -1; the document then starts at the next real one, 0.
    starts = torch.where(changes, index + (1 - real), 0).cummax(-1).values
    return (index - starts).clamp(min=0)
