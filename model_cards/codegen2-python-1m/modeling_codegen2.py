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
"""CodeGen2: a causal or prefix-LM code model (arXiv 2305.02309)."""

import difflib
import os
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin, GenerationMode
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_codegen2 import CodeGen2Config
from .infilling_codegen2 import Infilling, infill
from .loss_codegen2 import causal_lm_loss
from .masking_codegen2 import build_attention_mask, positions_in_documents


def regroup_qkv(weight: torch.Tensor, mp_num: int, new_mp_num: int) -> torch.Tensor:
    """
    Rewrites the rows of a fused projection from one grouping to another.

    Args:
        weight (`torch.Tensor` of shape `(3 * n_embd, n_embd)`): `mp_num` groups of `[q | v | k]` rows.
        mp_num, new_mp_num (`int`): the present and the wanted number of groups; 4 is what transformers' built-in
            `CodeGenForCausalLM` reads.

    Returns:
        `torch.Tensor` of shape `(3 * n_embd, n_embd)`: the same queries, keys and values, regrouped.
    """
    width = weight.shape[-1]
    parts = weight.view(mp_num, 3, width // mp_num, width).transpose(0, 1)  # (3, groups, rows of a group, n_embd)
    return parts.reshape(3, new_mp_num, width // new_mp_num, width).transpose(0, 1).reshape(weight.shape)


def rotary_angles(position_ids: torch.Tensor, rotary_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, `(batch, length, rotary_dim / 2)` in float32, of the base-10000 rotary embedding."""
    # Computed anew in every forward pass: a non-persistent buffer would hold garbage after `from_pretrained`.
    exponent = torch.arange(0, rotary_dim, 2, device=position_ids.device).float() / rotary_dim
    angles = position_ids[..., None].float() * (1.0 / 10000**exponent)
    return angles.cos(), angles.sin()


def rotate_pairs(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Rotates adjacent channel pairs (2i, 2i + 1) of the first `rotary_dim` channels, in float32 as the original code.

    Args:
        states (`torch.Tensor` of shape `(..., length, head_dim)`): queries or keys.
        cos, sin (`torch.Tensor` of shape `(..., length, rotary_dim / 2)`): see `rotary_angles`.

    Returns:
        `torch.Tensor`: contiguous, of the shape and dtype of `states`.
    """
    rotary_dim = 2 * cos.shape[-1]
    even, odd = states[..., 0:rotary_dim:2], states[..., 1:rotary_dim:2]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(states.dtype)
    if rotary_dim == states.shape[-1]:
        return rotated
    return torch.cat((rotated, states[..., rotary_dim:]), dim=-1)


def _masked(scores: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Scores under a mask, boolean (True where a query may look) as those of `sdpa`, or additive."""
    if attention_mask is None:
        return scores
    if attention_mask.dtype == torch.bool:
        return scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return scores + attention_mask


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
    """Attention with the scores spelled out in float32, as the original code; returns them as well."""
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)) * scaling
    weights = _masked(scores, attention_mask).softmax(dim=-1).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class CodeGen2Attention(nn.Module):
    def __init__(self, config: CodeGen2Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.mp_num = config.mp_num
        self.head_dim = config.n_embd // config.n_head
        self.heads_per_group = config.n_head // config.mp_num
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attn_pdrop
        self.is_causal = True
        # The parameter keeps the released layout, `mp_num` groups of [q | v | k] rows, and the forward pass reads it
        # as it lies. The other design, splitting it into q, k and v while loading, needs every way to load weights
        # to know of it; `load_state_dict`, with which Trainer resumes and loads the best model, does not, and would
        # leave q, k and v random. This way it is safe, one product makes all three, and what is saved is the
        # released layout, bit for bit.
        self.qkv_proj = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.register_load_state_dict_pre_hook(self._drop_released_buffers)

    @staticmethod
    def _drop_released_buffers(
        module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        # The released files hold the causal mask of every block; a strict `load_state_dict` would stumble over it.
        for name in ("causal_mask", "masked_bias", "bias"):
            state_dict.pop(f"{prefix}{name}", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | BlockMask | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, _ = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(batch, length, self.mp_num, 3, self.heads_per_group, self.head_dim)

        cos, sin = (angles[:, None, None] for angles in position_embeddings)  # (batch, 1, 1, length, rotary_dim / 2)
        query_key = qkv[:, :, :, 0::2].permute(3, 0, 2, 4, 1, 5)  # (2, batch, groups, heads of one, length, head_dim)
        query, key = rotate_pairs(query_key, cos, sin).flatten(2, 3)  # each (batch, heads, length, head_dim)
        value = qkv[:, :, :, 1].permute(0, 2, 3, 1, 4).flatten(1, 2)  # (batch, heads, length, head_dim)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        attended = attended.flatten(2)  # (batch, length, n_embd)
        return self.resid_dropout(self.out_proj(attended)), weights


class CodeGen2MLP(nn.Module):
    def __init__(self, config: CodeGen2Config):
        super().__init__()
        inner = config.n_inner if config.n_inner is not None else 4 * config.n_embd
        self.fc_in = nn.Linear(config.n_embd, inner)
        self.fc_out = nn.Linear(inner, config.n_embd)
        # The same function in one kernel: transformers' `gelu_new` is a chain of seven operations, each of which
        # keeps a tensor of the widest layer for the backward pass.
        fused = config.activation_function == "gelu_new"
        self.act = ACT2FN["gelu_pytorch_tanh" if fused else config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc_out(self.act(self.fc_in(hidden_states))))


class CodeGen2Block(GradientCheckpointingLayer):
    def __init__(self, config: CodeGen2Config, layer_idx: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CodeGen2Attention(config, layer_idx)
        self.mlp = CodeGen2MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | BlockMask | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        normed = self.ln_1(hidden_states)
        attended, _ = self.attn(normed, position_embeddings, attention_mask, past_key_values, **kwargs)
        return hidden_states + attended + self.mlp(normed)


class CodeGen2PreTrainedModel(PreTrainedModel):
    config_class = CodeGen2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CodeGen2Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [r"attn\.causal_mask$", r"attn\.masked_bias$", r"attn\.bias$"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _input_embed_layer = "wte"
    _can_record_outputs = {"hidden_states": CodeGen2Block, "attentions": CodeGen2Attention}
    # What `peft.LoraConfig(target_modules=list(model.lora_target_modules))` should adapt: every linear layer of a
    # block, without the head, whose gradient is the largest tensor of a step.
    lora_target_modules = ("qkv_proj", "out_proj", "fc_in", "fc_out")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        if self.is_remote_code():
            # transformers notes the class that is saved; the folder's code has the others, for every auto class.
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **_AUTO_MAP}
        super().save_pretrained(save_directory, **kwargs)


_KNOWN_KWARGS = {*TransformersKwargs.__annotations__, "return_dict"}
# Continuous batching (`generate_batch`) passes these beside its paged `cache`, for transformers' attention functions.
_PAGED_KWARGS = {"cache", "read_index", "write_index", "block_table", "logits_indices", "logits_processor_args"}


_AUTO_MAP = {
    "AutoModel": "modeling_codegen2.CodeGen2Model",
    "AutoModelForCausalLM": "modeling_codegen2.CodeGen2ForCausalLM",
    "AutoModelForSequenceClassification": "modeling_codegen2.CodeGen2ForSequenceClassification",
}


class CodeGen2Model(CodeGen2PreTrainedModel):
    """
    The bare CodeGen2 transformer (arXiv 2305.02309, section 3): parallel attention and feed-forward blocks.

    Args:
        config ([`CodeGen2Config`]): sizes and grouping.
    """

    def __init__(self, config: CodeGen2Config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([CodeGen2Block(config, layer_idx) for layer_idx in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        block_sequence_ids: torch.LongTensor | None = None,
        prefix_length: int | torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Token ids; or give `inputs_embeds` `(batch, length, n_embd)`.
            attention_mask (`torch.Tensor` of shape `(batch, cached + length)`, *optional*):
                1 for real tokens, 0 for padding on either side. A 4-D mask is used as it is.
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Positions within the document. Where they start again a new document begins, and documents do not see
                each other, with or without padding and cache.
            past_key_values (`Cache`, *optional*):
                Keys and values of earlier chunks.
            use_cache (`bool`, *optional*):
                Whether to return `past_key_values`.
            block_sequence_ids (`torch.LongTensor` of shape `(batch, cached + length)`, *optional*):
                Tokens with the same id >= 0 see each other in both directions; -1 is causal (prefix-LM). Tokens
                beyond the given ids are causal.
            prefix_length (`int` or `torch.LongTensor` of shape `(batch,)`, *optional*):
                Number of leading tokens, padding not counted, that see each other in both directions. The released
                weights were trained causally: this is for models trained or fine-tuned as prefix-LM.
            segment_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Document number of each token of a packed row, instead of `position_ids`.

        Returns:
            `BaseModelOutputWithPast`: `last_hidden_state` of shape `(batch, length, n_embd)`.

        Raises:
            ValueError: for a context beyond `n_positions`, a prefix the attention implementation cannot express or
                that does not lie in the first chunk, or contradictory arguments.
            TypeError: for an unknown argument.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        self._refuse_unknown(kwargs)
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if segment_ids is not None:
            position_ids = self._positions_of_segments(  # type: ignore[assignment]
                segment_ids, attention_mask, position_ids, past_key_values
            )
        self._check_context(inputs_embeds.shape[1], position_ids, past_key_values)

        mask = build_attention_mask(
            self.config,
            inputs_embeds,
            attention_mask,
            past_key_values,
            position_ids,
            block_sequence_ids,
            prefix_length,
        )
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past
            position_ids = positions[None]  # type: ignore[assignment]
        position_embeddings = rotary_angles(position_ids, self.config.rotary_dim)

        hidden_states = self.drop(inputs_embeds)
        for block in self.h:
            hidden_states = block(
                hidden_states, position_embeddings, attention_mask=mask, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values)

    def _embed(self, input_ids: torch.LongTensor) -> torch.FloatTensor:
        try:
            return self.wte(input_ids)
        except IndexError as error:  # on a CPU; elsewhere a check would wait for the device
            raise ValueError(
                f"`input_ids` hold ids from {int(input_ids.min())} to {int(input_ids.max())}, the model embeds "
                f"{self.wte.weight.shape[0]} tokens; load the tokenizer that belongs to the model, or call "
                "`resize_token_embeddings` and train."
            ) from error

    @staticmethod
    def _refuse_unknown(kwargs: dict[str, Any]) -> None:
        known = _KNOWN_KWARGS if kwargs.get("cache") is None else _KNOWN_KWARGS | _PAGED_KWARGS
        if unknown := sorted(set(kwargs) - known):
            if unknown[0] == "token_type_ids":
                raise TypeError(
                    "CodeGen2 takes no `token_type_ids` (the original code adds their word embeddings to the input, "
                    "which nothing trained uses); load the tokenizer with `return_token_type_ids=False`, or set "
                    '`tokenizer.model_input_names = ["input_ids", "attention_mask"]`.'
                )
            names = ["input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache"]
            names += ["labels", "block_sequence_ids", "prefix_length", "segment_ids", *sorted(_KNOWN_KWARGS)]
            near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.0)[0]
            raise TypeError(f"CodeGen2 knows no argument `{unknown[0]}`; the nearest known one is `{near}`.")

    @staticmethod
    def _positions_of_segments(
        segment_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        if position_ids is not None:
            raise ValueError("Both `segment_ids` and `position_ids` are given; either marks the documents, give one.")
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError(
                "`segment_ids` describe a row from its first token on; to continue from a cache give `position_ids`, "
                "the positions within the document that is continued."
            )
        return positions_in_documents(segment_ids, attention_mask)

    def _check_context(self, length: int, position_ids: torch.Tensor | None, past_key_values: Cache | None) -> None:
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        # CODEPATH: every checkpoint takes both; the length of the input decides.
        # The fill of a static cache is a tensor on the device: `generate` checks the length there, without reading it.
        if isinstance(past, torch.Tensor) or past + length <= self.config.n_positions:
            return
        # A packed row may be longer than the context, its documents may not.
        longest = past + length if position_ids is None else int(position_ids.max()) + 1
        if longest > self.config.n_positions:
            raise ValueError(_too_long(longest, self.config.n_positions))


def _too_long(length: int, n_positions: int) -> str:
    return (
        f"The context of {length} tokens is longer than the {n_positions} (`n_positions`) this model was trained on; "
        "shorten the input or `max_new_tokens` (`infill` cuts around the hole by itself)."
    )


class CodeGen2ForCausalLM(CodeGen2PreTrainedModel, GenerationMixin):
    """
    CodeGen2 with its language modelling head: completes code, or infills it (arXiv 2305.02309, sections 3 and 4).

    Args:
        config ([`CodeGen2Config`]): sizes and grouping.

    Example:

    ```python
    >>> import torch
    >>> from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM

    >>> config = CodeGen2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, rotary_dim=8)
    >>> model = CodeGen2ForCausalLM(config).eval()
    >>> prompt = torch.tensor([[5, 6, 7, 8]])
    >>> model(prompt).logits.shape
    torch.Size([1, 4, 128])
    >>> model.generate(prompt, max_new_tokens=3, prefix_length=4).shape  # the prompt read in both directions
    torch.Size([1, 7])

    ```
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: CodeGen2Config):
        super().__init__(config)
        self.transformer = CodeGen2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        self.loss_function = causal_lm_loss
        self._set_stop_tokens()
        self.post_init()

    def _set_stop_tokens(self) -> None:
        config = self.config
        stops = [config.eos_token_id] if isinstance(config.eos_token_id, int) else list(config.eos_token_id or [])
        # CODEPATH: the releases have <eom>; a model of a smaller vocabulary may have none.
        if config.eom_token_id is not None and config.eom_token_id not in stops:
            stops.append(config.eom_token_id)  # a model asked for a span says nothing after <eom> that a caller wants
        self.generation_config.eos_token_id = stops or None
        self.generation_config.bos_token_id = config.bos_token_id
        self.generation_config.pad_token_id = config.pad_token_id

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        super().adjust_generation_fn(*args, **kwargs)
        # Without a generation_config.json transformers reads config.json again, past the repair of its token ids;
        # fine-tunes have saved those ids into one. 2 is the character `#`.
        from_config = self.generation_config._from_model_config
        if from_config or (self.generation_config.eos_token_id == 2 and self.config.eos_token_id != 2):
            self._set_stop_tokens()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        block_sequence_ids: torch.LongTensor | None = None,
        prefix_length: int | torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Arguments are those of [`CodeGen2Model`], and:

        Args:
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Targets, shifted inside; -100 for tokens without one. `shift_labels` are targets already shifted.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0):
                Number of last positions (0 for all), or their indices, to compute logits for.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Number of targets in the whole batch, where this is one part of it (gradient accumulation).

        Returns:
            `CausalLMOutputWithPast`: `logits` of shape `(batch, kept, vocab_size)` and, given labels, the `loss`.

        Raises:
            ValueError, TypeError: as [`CodeGen2Model`].
        """
        # Not in the signature: Trainer would take it for a label every evaluation batch must have.
        shift_labels = kwargs.pop("shift_labels", None)
        has_labels = labels is not None or shift_labels is not None
        if use_cache is None and has_labels:
            use_cache = False  # nobody continues a training batch; a cache would copy and keep all keys and values
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            block_sequence_ids=block_sequence_ids,
            prefix_length=prefix_length,
            segment_ids=segment_ids,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if has_labels:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]  # all but the first are passed by name
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,  # named, or `generate` would refuse it
        is_first_iteration: bool = False,
        block_sequence_ids: torch.Tensor | None = None,
        prefix_length: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        for name in ("tokenizer", "assistant_tokenizer"):  # `generate` hands them down (for `stop_strings`)
            kwargs.pop(name, None)
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        # The prompt is read in both directions once, while the cache is filled; without one, in every step.
        if is_first_iteration or past_key_values is None:
            prefix = {"block_sequence_ids": block_sequence_ids, "prefix_length": prefix_length}
            prefix = {name: value for name, value in prefix.items() if value is not None}
            if prefix and attention_mask is not None and attention_mask.ndim == 2:
                inputs["attention_mask"] = attention_mask  # a static cache made it 4-D and causal
            elif prefix and attention_mask is None:
                inputs.pop("attention_mask", None)
            inputs |= prefix
        return inputs

    @staticmethod
    def create_masks_for_generate(
        config: PreTrainedConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        block_sequence_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | BlockMask | None:
        # `generate` draws the masks of a static cache by itself; its own function knows no packed documents.
        return build_attention_mask(
            config, inputs_embeds, attention_mask, past_key_values, position_ids, block_sequence_ids
        )

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        segment_ids = model_kwargs.pop("segment_ids", None)
        if segment_ids is not None:  # the last document is continued
            return positions_in_documents(segment_ids, model_kwargs.get("attention_mask"))
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_length: int,
    ) -> None:
        # Here and not in the step that is too long: an error there would lose what was generated so far.
        chunk_size, mask = generation_config.prefill_chunk_size, model_kwargs.get("attention_mask")
        has_prefix = any(model_kwargs.get(name) is not None for name in ("prefix_length", "block_sequence_ids"))
        if has_prefix and chunk_size is not None:
            raise ValueError(
                f"`prefill_chunk_size` {chunk_size} cuts the prompt, whose bidirectional prefix must be processed in one "
                "forward pass; leave it out."
            )
        longest = max_length - (0 if mask is None else int((mask == 0).sum(-1).min()))
        if longest > self.config.n_positions:
            raise ValueError(_too_long(longest, self.config.n_positions))
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_length)

    def infill(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prefix: str | list[str] | None = None,
        suffix: str | list[str] | None = None,
        **kwargs: Any,
    ) -> Infilling | list[Infilling]:
        """
        Writes the code between `prefix` and `suffix`; see [`infill`] for several holes, batches and truncation.

        Example:

        ```python
        >>> from modeling_lpn import train_codegen2_tokenizer

        >>> tokenizer = train_codegen2_tokenizer(["def add(a, b): return a + b"] * 4, vocab_size=320, num_masks=9)
        >>> config = CodeGen2Config(
        ...     vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, rotary_dim=8,
        ...     eos_token_id=tokenizer.eos_token_id, eom_token_id=tokenizer.convert_tokens_to_ids("<eom>"),
        ... )
        >>> model = CodeGen2ForCausalLM(config).eval()  # untrained, so it writes anything
        >>> result = model.infill(tokenizer, "def add(a, b):", " + b", max_new_tokens=4)
        >>> result.text == "def add(a, b):" + result.spans[0] + " + b"
        True

        ```
        """
        return infill(self, tokenizer, prefix, suffix, **kwargs)


class CodeGen2ForSequenceClassification(CodeGen2PreTrainedModel):
    """
    CodeGen2 with a linear head on each row's last real token.

    Args:
        config ([`CodeGen2Config`]): sizes and grouping; `num_labels` and `problem_type` as everywhere.
    """

    # The loss is a mean over rows and takes no `num_items_in_batch`: Trainer must divide it itself.
    accepts_loss_kwargs = False

    def __init__(self, config: CodeGen2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = CodeGen2Model(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """
        Arguments are those of [`CodeGen2Model`], and `labels` of shape `(batch,)` (`(batch, num_labels)` for
        multi-label problems). Without `attention_mask` the last token is the last one that is not `pad_token_id`.

        Returns:
            `SequenceClassifierOutputWithPast`: `logits` of shape `(batch, num_labels)` and, given labels, the `loss`.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=bool(use_cache),
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        real = attention_mask
        if real is None and input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        if real is None:
            real = torch.ones(hidden_states.shape[:2], device=hidden_states.device)
        places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        last = (places * real[:, -hidden_states.shape[1] :].to(places.device).bool()).argmax(-1)  # (batch,)
        logits = self.score(hidden_states[torch.arange(last.shape[0], device=last.device), last])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "CodeGen2PreTrainedModel",
    "CodeGen2Model",
    "CodeGen2ForCausalLM",
    "CodeGen2ForSequenceClassification",
    "regroup_qkv",
]
