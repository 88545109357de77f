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
"""CodeGen2 configuration."""

import difflib
import os
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Ids of the released vocabulary: GPT-2's 50257 tokens, then 943 added ones (runs of spaces and tabs, sentinels).
END_OF_TEXT_ID = 50256
END_OF_MASK_ID = 50300

# (n_layer, n_embd) of the releases -> groups of the fused projection. No released config states the number. CodeGen1
# has the same architecture, always in 4 groups; its 16B has the sizes of CodeGen2's.
RELEASED_MP_NUM = {(16, 2048): 8, (16, 4096): 8, (32, 4096): 4, (34, 6144): 4}
RELEASED_MP_NUM |= {(20, 1024): 4, (32, 2560): 4, (33, 4096): 4}

MAX_LAYERS = 1024  # far above any model; a hostile config.json of a billion would build modules for hours

# Keys of the released configs that nothing reads, or that do harm: `task_specific_params` makes every
# `pipeline("text-generation")` sample 50 tokens, `auto_map` names remote code that no longer imports.
_DEAD_KEYS = (
    *("auto_map", "task_specific_params", "n_ctx", "gradient_checkpointing", "scale_attn_weights", "_name_or_path"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
)


@strict
class CodeGen2Config(PreTrainedConfig):
    r"""
    Configuration of a CodeGen2 model (Nijkamp et al., [arXiv 2305.02309](https://arxiv.org/abs/2305.02309), section
    3). The defaults are those of the released 1B model.

    The released configs are read as they are and repaired: `model_type` becomes `codegen2`, the grouping `mp_num` is
    found, and the released `eos_token_id` 2 (which is the character `#`) and `bos_token_id` 1 become 50256.

    Args:
        vocab_size (`int`, defaults to 51200):
            Number of token ids.
        n_positions (`int`, defaults to 2048):
            Longest context, in tokens. Longer inputs are refused.
        n_embd (`int`, defaults to 2048):
            Width of the hidden states.
        n_layer (`int`, defaults to 16):
            Number of blocks, up to 1024.
        n_head (`int`, defaults to 16):
            Number of attention heads.
        rotary_dim (`int`, defaults to 64):
            Channels of each head that are rotated; an even number up to `n_embd / n_head`.
        n_inner (`int`, *optional*):
            Width of the feed-forward layer; `None` is `4 * n_embd`.
        mp_num (`int`, *optional*):
            Number of groups in the rows of `attn.qkv_proj.weight`, each `[q | v | k]` of `n_head / mp_num` whole
            heads. Nothing in a weights file tells a wrong value from the right one. Left out, it is taken from the
            sizes of the releases (8 for 1B and 3.7B, 4 for 7B, 16B and CodeGen1), else from the key `head_dim`, which
            only the releases with 8 groups carry; it is always saved.
        activation_function (`str`, defaults to `"gelu_new"`):
            Name of the activation of the feed-forward layer.
        resid_pdrop, embd_pdrop, attn_pdrop (`float`, defaults to 0.0):
            Dropout after the projections, after the embedding and on the attention weights.
        layer_norm_epsilon (`float`, defaults to 1e-5):
            Epsilon of the layer normalisations.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial weights.
        use_cache (`bool`, defaults to `True`):
            Whether the forward pass returns the keys and values when it is not given labels.
        bos_token_id, eos_token_id, pad_token_id (`int`, defaults to 50256):
            `<|endoftext|>`; `None` where the vocabulary is smaller than that.
        eom_token_id (`int`, *optional*, defaults to 50300):
            `<eom>`, which ends an infilled span; generation stops at it as well. `None` where the vocabulary is
            smaller than that.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the head shares the embedding matrix; the releases do not.

    Raises:
        ValueError: for an unknown `activation_function`; where `n_head` does not divide `n_embd`, `mp_num` does not divide `n_head`, `rotary_dim` is odd or
            larger than a head, or a `head_dim` in the file contradicts the sizes.

    Example:

    ```python
    >>> from modeling_lpn import CodeGen2Config

    >>> CodeGen2Config().mp_num, CodeGen2Config(n_layer=32, n_embd=4096).mp_num  # the 1B, the 7B
    (8, 4)

    ```
    """

    model_type = "codegen2"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 51200
    n_positions: int = 2048
    # The releases' own names, under which their files say it; `attribute_map` has the canonical ones.
    n_embd: int = 2048  # trf-ignore: TRF023
    n_layer: int = 16  # trf-ignore: TRF023
    n_head: int = 16  # trf-ignore: TRF023
    rotary_dim: int = 64
    n_inner: int | None = None
    mp_num: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = END_OF_TEXT_ID
    eos_token_id: int | list[int] | None = END_OF_TEXT_ID
    pad_token_id: int | None = END_OF_TEXT_ID
    eom_token_id: int | None = END_OF_MASK_ID
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # The base class would set what comes under its canonical name after the checks and the choice of grouping.
        for canonical, name in self.attribute_map.items():
            if canonical in kwargs:
                setattr(self, name, kwargs.pop(canonical))
        head_dim = kwargs.get("head_dim")
        if self.mp_num is None:
            by_head_dim = 4 if head_dim is None else 8
            self.mp_num = RELEASED_MP_NUM.get((self.n_layer, self.n_embd), by_head_dim)
        self._check_sizes(head_dim)
        # The default ids belong to the released vocabulary; a smaller one has them only if it says which they are.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "eom_token_id"):
            token_id = getattr(self, name)
            if token_id in (END_OF_TEXT_ID, END_OF_MASK_ID) and token_id >= self.vocab_size:
                setattr(self, name, None)
        super().__post_init__(**kwargs)

    def _check_sizes(self, head_dim: int | None) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it counts something: use 1 or more.")
        if self.n_layer > MAX_LAYERS:
            raise ValueError(f"`n_layer` is {self.n_layer}; use {MAX_LAYERS} or fewer.")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"`n_embd` {self.n_embd} is not a multiple of `n_head` {self.n_head}; choose a width that splits into "
                "whole heads."
            )
        if self.mp_num < 1 or self.n_head % self.mp_num:
            raise ValueError(
                f"`mp_num` {self.mp_num} does not divide `n_head` {self.n_head}; a group of the fused projection "
                "holds whole heads. Released checkpoints have 8 (1B, 3.7B) or 4 (7B, 16B); for a new model give "
                "`mp_num=1` or another divisor."
            )
        size = self.n_embd // self.n_head
        if head_dim is not None and head_dim != size:
            raise ValueError(
                f"`head_dim` {head_dim} contradicts `n_embd / n_head` = {self.n_embd} / {self.n_head} = {size}; "
                "remove the key or correct the sizes."
            )
        if self.activation_function not in ACT2FN:
            near = difflib.get_close_matches(self.activation_function, ACT2FN, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"`activation_function` is {self.activation_function!r}, which transformers does not know; the nearest "
                f"known one is {near!r}."
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= size:
            raise ValueError(
                f"`rotary_dim` {self.rotary_dim} is not an even number between 2 and the head size {size}; "
                "rotary embeddings turn pairs of a head's channels."
            )

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        given, stated = kwargs.get("mp_num"), config_dict.get("mp_num")
        if None not in (given, stated) and given != stated:
            logger.warning(
                f"`mp_num` {given} is used as it was passed, but the config states {stated}; a wrong value gives wrong "
                "logits without an error."
            )
        if config_dict.get("model_type") == "codegen":
            config_dict = cls.repair_released(config_dict if given is None else config_dict | {"mp_num": given})
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        # The base class sets keyword arguments after it has built the config: too late for the choice of grouping.
        if kwargs.get("mp_num") is not None:
            config_dict = {**config_dict, "mp_num": kwargs["mp_num"]}
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def repair_released(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Turns the dictionary of a released `config.json` into one of this class.

        Args:
            config_dict (`dict`):
                A config with `model_type` `"codegen"`: a CodeGen2 release, a fine-tune of one, or a CodeGen1 release.

        Returns:
            `dict`: the same sizes, with `model_type`, the special token ids and the dead keys repaired.

        Example:

        ```python
        >>> released = {"model_type": "codegen", "bos_token_id": 1, "eos_token_id": 2, "n_ctx": 2048}
        >>> CodeGen2Config.repair_released(released)
        {'model_type': 'codegen2', 'bos_token_id': 50256, 'eos_token_id': 50256}

        ```
        """
        # A `model_type` left as "codegen" would shadow the class attribute and be saved again.
        repaired = {key: value for key, value in config_dict.items() if key not in _DEAD_KEYS}
        repaired["model_type"] = cls.model_type
        # 1 and 2 are `"` and `#` in this vocabulary: with them generation would stop at the first comment.
        if repaired.get("eos_token_id") == 2:
            repaired["eos_token_id"] = END_OF_TEXT_ID
        if repaired.get("bos_token_id") == 1:
            repaired["bos_token_id"] = END_OF_TEXT_ID
        if repaired.get("architectures"):
            repaired["architectures"] = [
                "CodeGen2" + name.removeprefix("CodeGen") for name in repaired["architectures"]
            ]
        shape = (repaired.get("n_layer"), repaired.get("n_embd"))
        stated, released = repaired.get("mp_num"), RELEASED_MP_NUM.get(shape)
        if None not in (stated, released) and stated != released:
            logger.warning(
                f"`mp_num` is {stated}, but the CodeGen release with (n_layer, n_embd) = {shape} has {released}. That is "
                "right for weights that were regrouped; with released weights it gives wrong logits without an error: "
                f"remove the key, or pass `mp_num={released}` to `from_pretrained`."
            )
        if "mp_num" not in repaired and shape not in RELEASED_MP_NUM:
            guess = 4 if repaired.get("head_dim") is None else 8
            logger.warning(
                f"The config states no `mp_num` and its sizes (n_layer, n_embd) = {shape} are none of the CodeGen "
                f"releases; `mp_num` {guess} is taken because the key `head_dim` is "
                f"{'absent' if guess == 4 else 'present'}. A wrong value gives wrong logits without an error: pass "
                "`mp_num=` to `from_pretrained` if you know it."
            )
        return repaired


__all__ = ["CodeGen2Config"]
