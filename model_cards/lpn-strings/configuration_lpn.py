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
"""Configuration of the Latent Program Network (LPN, arXiv 2411.08706)."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .search_lpn import SearchConfig


POSITION_EMBEDDING_TYPES = ("learned", "scaled", "rotary")
ACTIVATIONS = ("silu", "relu")
MAX_LAYERS = 1024  # far above any model; a hostile config.json of a billion would build modules for hours


@dataclass(frozen=True)
class LPNStackConfig:
    """Sizes of one transformer stack (encoder or decoder), read from the flat fields of [`LPNConfig`]."""

    num_layers: int
    num_heads: int
    head_dim: int
    mlp_factor: float
    dropout: float
    attention_dropout: float
    use_bias: bool
    activation: str
    position_embedding_type: str

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def intermediate_size(self) -> int:
        return int(self.mlp_factor * self.hidden_size)


@strict
class LPNConfig(PreTrainedConfig):
    r"""
    Configuration of an [`LPNModel`]. The defaults are the *pattern* model of the paper (Table 13, 243,360 parameters).
    Encoder and decoder sizes are independent; the width of a stack is `num_heads * head_dim`.

    Args:
        vocab_size (`int`, defaults to 10): Number of colours.
        max_rows, max_cols (`int`, defaults to 30): Largest grid the model can read and write, in cells.
        latent_dim (`int`, defaults to 32): Size of a latent program.
        variational (`bool`, defaults to `True`):
            Whether the encoder gives a Gaussian (`latent_mean`, `latent_logvar`) or a point.
        encoder_num_layers, decoder_num_layers (`int`, defaults to 2): Transformer layers, up to 1024; the encoder may have 0.
        encoder_num_heads, decoder_num_heads (`int`, defaults to 6): Attention heads.
        encoder_head_dim, decoder_head_dim (`int`, defaults to 16): Channels of one head.
        encoder_mlp_factor, decoder_mlp_factor (`float`, defaults to 1.0): Width of the MLP over the width of the stack.
        encoder_dropout, decoder_dropout (`float`, defaults to 0.0): Dropout on embeddings and on the residual branches.
        encoder_attention_dropout, decoder_attention_dropout (`float`, defaults to 0.0):
            Dropout on attention probabilities.
        encoder_use_bias, decoder_use_bias (`bool`, defaults to `False`):
            Biases in linear layers and layer norms (layer norms never have a scale).
        encoder_activation, decoder_activation (`str`, defaults to `"silu"`): `"silu"` or `"relu"`.
        encoder_position_embedding_type, decoder_position_embedding_type (`str`, defaults to `"learned"`):
            `"learned"`: a row and a column table, added to the cells (the published code). `"scaled"`: one row and one
            column vector, multiplied by the index from 1 (the published code, an option). `"rotary"`: 2-D rotary
            embedding over rows and columns (the paper, Table 16; not in the published code).
        latent_projection_bias, logits_projection_bias (`bool`, defaults to `False`): Biases of the output projections.
        next_position_embeddings (`bool`, defaults to `True`):
            Whether an output token carries the position of the *next* cell, the one it predicts, or its own.
        separate_input_position_embeddings (`bool`, defaults to `False`):
            Whether the decoder has own position embeddings for the input grid
            (`next_position_embeddings_new_input_embeds` of the published code).
        latent_visible_to_input (`bool`, defaults to `True`):
            Whether the decoder's tokens of the input grid attend to the latent, as in the published code. Without, they
            are computed once for all latents that a pair is decoded with, which makes search cheaper; it is another model.
        copy_inputs (`bool`, defaults to `False`):
            Whether the decoder has one more attention head over the input cells whose values are their colours, for tasks
            that copy, such as those on strings.
        num_previous_cells (`int`, defaults to 0):
            How many of the cells before it on its row a cell carries in its embedding, each by a table of its own. A token
            can then be found by what stands before it, which is how text is copied.
        rope_max_frequency (`float`, defaults to 10.0): Largest frequency of the rotary embedding (Table 16).
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of the layer norms.
        prior_kl_weight (`float`, defaults to 1e-4):
            Weight of the KL divergence to the prior N(0, I) in the loss (equation 5).
        pairwise_kl_weight (`float`, defaults to 0.0):
            Weight of the mean KL divergence between the posteriors of a task's pairs.
        search (`dict`, *optional*):
            Fields of [`SearchConfig`]: how `model.generate`, `model.search` and [`evaluate_tasks`] search where nothing is
            given. Its defaults where there are none.

    Raises `ValueError` (wrapped by the strict dataclass validation) for values outside their range.

    Example:

    ```python
    >>> from modeling_lpn import LPNConfig, LPNModel
    >>> model = LPNModel(LPNConfig(max_rows=10, max_cols=10))
    >>> sum(parameter.numel() for parameter in model.parameters())
    243360

    ```
    """

    model_type = "lpn"

    vocab_size: int = 10
    max_rows: int = 30
    max_cols: int = 30
    latent_dim: int = 32
    variational: bool = True
    encoder_num_layers: int = 2
    encoder_num_heads: int = 6
    encoder_head_dim: int = 16
    encoder_mlp_factor: float = 1.0
    encoder_dropout: float = 0.0
    encoder_attention_dropout: float = 0.0
    encoder_use_bias: bool = False
    encoder_activation: str = "silu"
    encoder_position_embedding_type: str = "learned"
    decoder_num_layers: int = 2
    decoder_num_heads: int = 6
    decoder_head_dim: int = 16
    decoder_mlp_factor: float = 1.0
    decoder_dropout: float = 0.0
    decoder_attention_dropout: float = 0.0
    decoder_use_bias: bool = False
    decoder_activation: str = "silu"
    decoder_position_embedding_type: str = "learned"
    latent_projection_bias: bool = False
    logits_projection_bias: bool = False
    next_position_embeddings: bool = True
    separate_input_position_embeddings: bool = False
    latent_visible_to_input: bool = True
    copy_inputs: bool = False
    num_previous_cells: int = 0
    rope_max_frequency: float = 10.0
    layer_norm_eps: float = 1e-6
    prior_kl_weight: float = 1e-4
    pairwise_kl_weight: float = 0.0
    search: dict[str, Any] | None = None

    @property
    def encoder_stack(self) -> LPNStackConfig:
        return self._stack("encoder")

    @property
    def decoder_stack(self) -> LPNStackConfig:
        return self._stack("decoder")

    def _stack(self, side: str) -> LPNStackConfig:
        names = LPNStackConfig.__dataclass_fields__
        return LPNStackConfig(**{name: getattr(self, f"{side}_{name}") for name in names})

    def validate_sizes(self) -> None:
        """Checks every size and choice; called by the strict dataclass."""
        for name in ("vocab_size", "max_rows", "max_cols", "latent_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it counts something: use 1 or more.")
        cells = self.max_rows * self.max_cols
        if not 0 <= self.num_previous_cells <= cells:
            raise ValueError(
                f"`num_previous_cells` is {self.num_previous_cells}; use 0 to {cells}, the cells of a grid."
            )
        for side, stack in (("encoder", self.encoder_stack), ("decoder", self.decoder_stack)):
            self._validate_stack(side, stack)
        if self.separate_input_position_embeddings and not self.next_position_embeddings:
            raise ValueError(
                "`separate_input_position_embeddings` is True while `next_position_embeddings` is False: separate "
                "tables only make sense when output tokens carry the next position. Set one of the two differently."
            )

    def validate_search(self) -> None:
        """Checks the saved search settings; called by the strict dataclass."""
        SearchConfig.of(self.search)

    @staticmethod
    def _validate_stack(side: str, stack: LPNStackConfig) -> None:
        least_layers = 0 if side == "encoder" else 1
        if not least_layers <= stack.num_layers <= MAX_LAYERS:
            raise ValueError(f"`{side}_num_layers` is {stack.num_layers}; use {least_layers} to {MAX_LAYERS}.")
        if min(stack.num_heads, stack.head_dim, stack.intermediate_size) < 1:
            raise ValueError(
                f"`{side}_num_heads`, `{side}_head_dim` and `{side}_mlp_factor` are {stack.num_heads}, {stack.head_dim} "
                f"and {stack.mlp_factor}, which makes a layer without channels; use positive sizes."
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(stack, name) < 1:
                raise ValueError(f"`{side}_{name}` is {getattr(stack, name)}; a probability in [0, 1) is needed.")
        if stack.activation not in ACTIVATIONS:
            raise ValueError(f"`{side}_activation` is {stack.activation!r}; known: {', '.join(ACTIVATIONS)}.")
        if stack.position_embedding_type not in POSITION_EMBEDDING_TYPES:
            raise ValueError(
                f"`{side}_position_embedding_type` is {stack.position_embedding_type!r}; "
                f"known: {', '.join(POSITION_EMBEDDING_TYPES)}."
            )
        if stack.position_embedding_type == "rotary" and stack.head_dim % 4:
            raise ValueError(
                f"`{side}_head_dim` is {stack.head_dim}; 2-D rotary embedding needs a multiple of 4 "
                "(half of the channels for rows, half for columns, two for each frequency)."
            )


__all__ = ["LPNConfig"]
