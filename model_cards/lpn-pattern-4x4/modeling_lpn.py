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
"""PyTorch Latent Program Network (LPN, arXiv 2411.08706): loss, latent search and generation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .configuration_lpn import LPNConfig
from .plan_lpn import GridPlan, Grouping, grouping_of, to_device
from .search_lpn import (
    SearchConfig,
    SearchOutput,
    concatenate_searches,
    rank_by_scores,
    search_latents,
    start_latents,
)
from .transformer_lpn import (
    DecoderChunk,
    GridPairs,
    LPNDecoder,
    LPNEncoder,
    LPNLayerNorm,
    LPNPreviousEmbedding,
)


logger = logging.get_logger(__name__)

NO_SEARCH = SearchConfig(method="mean")
CHUNK_TOKENS = 2**13  # of candidates that a CPU decodes at a time, see `_in_chunks`


@dataclass
class LPNEncoderOutput(ModelOutput):
    """
    Latent programs of the demonstration pairs, zero where a pair is padding.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): The mean, or a sample of the posterior.
        latent_mean (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): Mean of the posterior.
        latent_logvar (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`, *optional*):
            Logarithm of its variance; `None` if the model is not variational.
        hidden_states (`tuple(torch.FloatTensor)` of shapes `(batch, pairs, tokens, width)`, *optional*):
            With `output_hidden_states`: the embeddings and the result of every layer. Tokens are [CLS, rows and columns of
            the input, of the output, input cells, output cells], each side's cells row by row and as many as the largest
            of the batch has (what stands behind the last cell means nothing); the last layer computes the first only.
    """

    latents: torch.Tensor | None = None
    latent_mean: torch.Tensor | None = None
    latent_logvar: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class LPNOutput(ModelOutput):
    """
    Loss of leave-one-out training (arXiv 2411.08706, section 4.3) and its parts. Every scalar is the mean over tasks of a
    task's mean over its real pairs, in float32.

    Args:
        loss: `reconstruction_loss + prior_kl_weight * prior_kl + pairwise_kl_weight * pairwise_kl`.
        reconstruction_loss: `row_loss + col_loss + grid_loss`.
        row_loss, col_loss: Cross-entropy of the number of rows and of columns, in nats.
        grid_loss: Cross-entropy of the cells, mean over the cells of the output grid, in nats.
        prior_kl: KL divergence of the posterior to N(0, I), summed over the latent dimensions.
        pairwise_kl: Mean KL divergence between the posteriors of two different pairs of a task.
        latents, latent_mean, latent_logvar: As in [`LPNEncoderOutput`].
        programs (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): Latent that was decoded for every pair.
        encoder_hidden_states (`tuple(torch.FloatTensor)`, *optional*): `hidden_states` of [`LPNEncoderOutput`].
        decoder_hidden_states (`tuple(torch.FloatTensor)` of shapes `(batch, pairs, tokens, width)`, *optional*):
            The same of the decoder on every pair with its program: [input cells, rows, columns, latent, rows and columns of
            the output, its cells but the last]; the last layer computes the latent and what follows.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    row_loss: torch.Tensor | None = None
    col_loss: torch.Tensor | None = None
    grid_loss: torch.Tensor | None = None
    prior_kl: torch.Tensor | None = None
    pairwise_kl: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    latent_mean: torch.Tensor | None = None
    latent_logvar: torch.Tensor | None = None
    programs: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class LPNGenerateOutput(ModelOutput):
    """
    Output grids of the queries, best candidate first.

    Args:
        output_grids (`torch.LongTensor` of shape `(batch, queries, num_candidates, max_rows, max_cols)`): Zero outside.
        output_shapes (`torch.LongTensor` of shape `(batch, queries, num_candidates, 2)`): Rows and columns.
        latents (`torch.FloatTensor` of shape `(batch, queries, num_candidates, latent_dim)`): What was executed.
        search_output ([`SearchOutput`], *optional*): The search behind it; `None` if latents were given.
    """

    output_grids: torch.Tensor | None = None
    output_shapes: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    search_output: SearchOutput | None = None


class Demonstrations(NamedTuple):
    """
    The demonstration pairs of a batch, checked: `pairs` are the real ones without their task axis, `pair_mask`
    `(batch, pairs)` says where they were, `plan` the same and their shapes on the host, `real` `(real pairs,)` which of all
    pairs they are (`None`: all).
    """

    pairs: GridPairs
    pair_mask: torch.Tensor
    plan: GridPlan
    real: torch.Tensor | None

    def tasks(self, start: int, end: int) -> "Demonstrations":
        """Some of the tasks."""
        first, last = (int(self.plan.num_pairs[:end].sum()) for end in (start, end))
        plan, mask = self.plan.tasks(start, end), self.pair_mask[start:end]
        return Demonstrations(self.pairs.take(slice(first, last)), mask, plan, plan.real_pairs(mask.device))

    def scoring(self, rows: str, as_one: bool = False, pairs: np.ndarray | slice | None = None) -> "Scoring":
        """`pairs`, all or none of a task, under `rows` of latents: see [`GridPlan.grouping`]."""
        taken = self.pairs
        if pairs is not None:
            taken = taken.take(pairs if isinstance(pairs, slice) else to_device(pairs, self.pair_mask.device))
        return Scoring(taken, self.plan.grouping(rows, self.pair_mask.device, as_one, pairs))

    def without_own(
        self, latents: torch.Tensor, pairs: np.ndarray | slice | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `(rows, pairs, latent_dim)` of the task of each of `pairs`, and a mask that leaves this pair out."""
        tasks, mask = self.plan.without_own(latents.device, pairs)
        return latents.index_select(0, tasks), mask


class Scoring(NamedTuple):
    """What is decoded with what."""

    pairs: GridPairs
    grouping: Grouping


# trf-ignore: TRF002 there is one model and no head around it, so no part of it has a name to load by
class LPNPreTrainedModel(PreTrainedModel):
    """Weights, loading and saving of LPN models."""

    config_class = LPNConfig
    base_model_prefix = ""
    main_input_name = "input_grids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over tasks: the Trainer divides it by the accumulation steps
    _no_split_modules = ["LPNLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def can_generate(cls) -> bool:
        """`generate` of a grid model is not that of a language model: no `generation_config.json`."""
        return False

    # trf-ignore: TRF018 every kind of module in the model is named here; the base class would draw other values first
    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As Flax initialises the published model: LeCun normal for linear layers, 1 / sqrt(width) for tables."""
        if isinstance(module, nn.Linear):
            init.lecun_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, LPNPreviousEmbedding):
            # Drawn at random it hides the cell itself from the first steps, which then learn more slowly than without it.
            init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, LPNLayerNorm) and module.bias is not None:
            init.zeros_(module.bias)


class LPNModel(LPNPreTrainedModel):
    """
    Latent Program Network (arXiv 2411.08706): an encoder maps the input/output pairs of a task to latent programs, a
    search in latent space refines them until they explain the pairs, a decoder executes the result on a new input.

    Whatever a task gets (loss, latents, search path, output) does not depend on its batch mates or on padding, up to
    rounding, unless `SearchConfig(clip="batch")` or noise drawn for each task of a batch is asked for.

    Example:

    ```python
    >>> import torch
    >>> from modeling_lpn import LPNConfig, LPNModel, LPNProcessor
    >>> task = {"train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
    ...         "test": [{"input": [[3, 0]]}]}
    >>> processor, model = LPNProcessor(), LPNModel(LPNConfig()).eval()
    >>> output = model.generate(**processor(task), num_steps=3, num_candidates=2)
    >>> output.output_shapes.shape
    torch.Size([1, 1, 2, 2])
    >>> output.search_output.num_evaluations
    tensor([4])

    ```
    """

    def __init__(self, config: LPNConfig) -> None:
        super().__init__(config)
        self.encoder = LPNEncoder(config)
        self.decoder = LPNDecoder(config)
        self._compiled_evidence: _CompiledEvidence | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Table of the colours that the encoder reads; the decoder has its own, `model.decoder.color_embedding`."""
        return self.encoder.color_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.color_embedding = value  # type: ignore[assignment]

    def compile_layers(self, **kwargs: Any) -> None:
        """
        Compiles every transformer layer in place with `torch.compile(**kwargs)`. Better than compiling the model where
        grids differ in shape: how sequences are grouped depends on them. Where all batches have one [`GridPlan`],
        `torch.compile(model, fullgraph=True)` compiles a whole training step, a search of first order included. Cached
        decoding and second-order search stay eager.
        """
        for layer in (*self.encoder.layers, *self.decoder.layers):
            layer.compile(**{"dynamic": True, **kwargs})

    def compile_search(self, **kwargs: Any) -> None:
        """
        Compiles what a gradient search evaluates in every step with `torch.compile(**kwargs)`, from the second step on, for
        batches of the shape, type and device that come first; others are searched as before. It takes some twenty seconds once and pays for
        long searches of many tasks whose grids all have one shape; on a GPU with `mode="reduce-overhead"`.
        """
        self._compiled_evidence = _CompiledEvidence(kwargs)

    def encode(
        self,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None = None,
        sample_latents: bool = False,
        latent_noise: torch.Tensor | None = None,
        plan: GridPlan | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LPNEncoderOutput | tuple:
        r"""
        Encodes every demonstration pair into a latent program.

        Args:
            input_grids, output_grids (`torch.LongTensor` of shape `(batch, pairs, rows, cols)`): Colours, padded at the
                bottom and on the right with anything below `vocab_size`.
            input_shapes, output_shapes (`torch.LongTensor` of shape `(batch, pairs, 2)`): Rows and columns, from 1.
            pair_mask (`torch.BoolTensor` of shape `(batch, pairs)`, *optional*): Which pairs are real; all by default.
            sample_latents (`bool`, defaults to `False`):
                Draw from the posterior, as the published code always does, instead of taking its mean.
            latent_noise (`torch.FloatTensor` of shape `(batch or 1, pairs, latent_dim)`, *optional*):
                Standard normal noise for the draw.
            plan ([`GridPlan`], *optional*):
                Shapes and mask on the host, from whoever made the tensors: [`DataCollatorForGridTasks`] does. Without it
                they are read here, which waits for the device.
            output_hidden_states (`bool`, *optional*): Also return hidden states; that of the configuration by default.
            return_dict (`bool`, *optional*): Return the fields that are set as a tuple if `False`.

        Returns:
            [`LPNEncoderOutput`]

        Raises `ValueError` if shapes of the arguments do not fit together.
        """
        demonstrations = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask, plan)
        output = self._encode(demonstrations, sample_latents, latent_noise, self._wants_states(output_hidden_states))
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _wants_states(self, asked: bool | None) -> bool:
        return self.config.output_hidden_states if asked is None else asked

    def _wants_dict(self, asked: bool | None) -> bool:
        return self.config.return_dict if asked is None else asked

    def _encode(
        self,
        demonstrations: Demonstrations,
        sample_latents: bool,
        latent_noise: torch.Tensor | None,
        output_hidden_states: bool = False,
    ) -> LPNEncoderOutput:
        pairs, pair_mask, plan, _ = demonstrations
        grouping = plan.grouping("own", pair_mask.device, output_hidden_states)
        states: list[list[torch.Tensor] | None] = [[] if output_hidden_states else None for _ in grouping.groups]
        encoded = [
            self.encoder(pairs.take(group.entries), group.input_extent, group.output_extent, own)
            for group, own in zip(grouping.groups, states, strict=True)
        ]

        def scatter(values: Sequence[torch.Tensor]) -> torch.Tensor:
            return self._with_padding(grouping.restore_order(values), demonstrations)

        latents = mean = scatter([mean for mean, _ in encoded])
        # CODEPATH: the published models are variational; one trained without (`variational: false`) has no variances.
        logvar = scatter([logvar for _, logvar in encoded]) if self.config.variational else None
        # CODEPATH: as above; without variances a latent is its mean.
        if sample_latents and self.config.variational:
            latent_noise = torch.randn_like(mean) if latent_noise is None else latent_noise
            latents = mean + (0.5 * logvar).exp() * latent_noise * pair_mask.unsqueeze(-1)
        hidden_states = self._join_states(states, grouping, demonstrations) if output_hidden_states else None
        return LPNEncoderOutput(latents, mean, logvar, hidden_states)

    def _join_states(
        self, states: Sequence[Sequence[torch.Tensor]], grouping: Grouping, demonstrations: Demonstrations
    ) -> tuple[torch.Tensor, ...]:
        """What the only group collected of every layer `(entries, tokens, width)` -> `(batch, pairs, tokens, width)`."""
        return tuple(self._with_padding(grouping.restore_order([layer]), demonstrations) for layer in states[0])

    @staticmethod
    def _with_padding(values: torch.Tensor, demonstrations: Demonstrations) -> torch.Tensor:
        """Values of the real pairs `(real pairs, ...)` -> `(batch, pairs, ...)`, zero where a pair is padding."""
        shape = demonstrations.pair_mask.shape
        if demonstrations.real is None:
            return values.unflatten(0, shape)
        blank = values.new_zeros(shape.numel(), *values.shape[1:])
        return blank.index_copy(0, demonstrations.real, values).unflatten(0, shape)

    def _demonstrations(
        self,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None,
        plan: GridPlan | None = None,
    ) -> Demonstrations:
        """The real pairs, once it is sure that the model can read them."""
        if input_grids.dim() != 4 or output_grids.dim() != 4:
            raise ValueError(
                f"`input_grids` and `output_grids` have shapes {tuple(input_grids.shape)} and "
                f"{tuple(output_grids.shape)}; (batch, pairs, rows, cols) is needed. `LPNProcessor` makes such tensors."
            )
        batch_shape = tuple(input_grids.shape[:2])
        if pair_mask is None:
            pair_mask = torch.ones(batch_shape, dtype=torch.bool, device=input_grids.device)
        for name, tensor, wanted in (
            ("output_grids", output_grids, (*batch_shape, *output_grids.shape[2:])),
            ("input_shapes", input_shapes, (*batch_shape, 2)),
            ("output_shapes", output_shapes, (*batch_shape, 2)),
            ("pair_mask", pair_mask, batch_shape),
        ):
            if tuple(tensor.shape) != wanted:
                raise ValueError(
                    f"`{name}` has shape {tuple(tensor.shape)}, but `input_grids` has shape {tuple(input_grids.shape)}: "
                    f"{wanted} is needed."
                )
        plan = GridPlan.of(input_shapes, output_shapes, pair_mask) if plan is None else plan
        facts = plan.facts(plan.key)
        if tuple(facts.shape) != batch_shape:
            raise ValueError(
                f"`plan` is of {facts.shape[0]} tasks with {facts.shape[1]} pairs, but `input_grids` has shape "
                f"{tuple(input_grids.shape)}: give the plan of these tensors, or none."
            )
        if not facts.fewest:
            raise ValueError(
                f"task {facts.task} of the batch has no demonstration pair in `pair_mask`; leave such tasks out."
            )
        tensors = [tensor.flatten(0, 1) for tensor in (input_grids, output_grids, input_shapes, output_shapes)]
        pairs, real = GridPairs(*tensors), plan.real_pairs(input_grids.device)
        if real is not None:
            pairs = pairs.take(real)
        for side, limits, grids in zip(
            ("input", "output"), facts.limits, (pairs.input_grids, pairs.output_grids), strict=True
        ):
            self._check_sizes(side, grids, limits)
            # CODEPATH: every checkpoint takes both; the colours of the batch decide.
            if plan.num_colors is None or plan.num_colors > self.config.vocab_size:
                self._check_colors(side, grids)
        return Demonstrations(pairs, pair_mask, plan, real)

    def _check_sizes(self, side: str, grids: torch.Tensor, limits: tuple[int, int, int]) -> None:
        """Raises `ValueError` where the smallest side, most rows and columns reach beyond grids `(count, rows, cols)` or the model."""
        config, (least, rows, cols) = self.config, limits
        if least < 1 or rows > min(config.max_rows, grids.shape[1]) or cols > min(config.max_cols, grids.shape[2]):
            raise ValueError(
                f"`{side}_shapes` reach from {least} to {rows} rows and {cols} columns, but `{side}_grids` holds "
                f"{grids.shape[1]} x {grids.shape[2]} cells and the model reads 1 x 1 to {config.max_rows} x "
                f"{config.max_cols}; leave such tasks out (`LPNProcessor` names them) or train a larger model."
            )

    def _check_colors(self, side: str, grids: torch.Tensor) -> None:
        """Raises `ValueError` where grids hold colours that the model has no embedding for."""
        if not len(grids):
            return
        darkest, brightest = torch.stack([grids.min(), grids.max()]).tolist()
        if darkest < 0 or brightest >= self.config.vocab_size:
            raise ValueError(
                f"`{side}_grids` holds colours from {darkest} to {brightest}; the model knows 0 to "
                f"{self.config.vocab_size - 1} (`vocab_size`), in the padding too: map the others, and pad with 0."
            )

    def log_prob(
        self,
        latents: torch.Tensor,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""
        Log-likelihood of the outputs of a task under candidate latents: for every pair the log-probability of the number
        of rows, of the number of columns and the *mean* over cells of that of the colours, summed over the real pairs.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, candidates, latent_dim)`): Every candidate is decoded with
                every pair of its task.
            input_grids, output_grids, input_shapes, output_shapes, pair_mask: As in [`~LPNModel.encode`].

        Returns:
            `torch.FloatTensor` of shape `(batch, candidates)`, in float32 and differentiable.
        """
        demonstrations = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask)
        return self._evidence(latents, self._decoder_chunks(demonstrations.scoring("of_task"), latents.shape[1] > 1))

    def _decoder_chunks(self, scoring: Scoring, share: bool) -> list[DecoderChunk]:
        """Embeds pairs in groups of similar length; `share` where more than one latent is tried."""
        return [
            self.decoder.chunk(
                scoring.pairs.take(group.entries), group.input_extent, group.output_extent, group.rows, share
            )
            for group in scoring.grouping.groups
        ]

    def _logits(self, latents: torch.Tensor, chunk: DecoderChunk) -> tuple[torch.Tensor, ...]:
        """Latents `(entries, candidates, latent_dim)` -> logits of rows, columns, cells with these two leading axes."""
        logits = self.decoder.logits(self.decoder(latents, chunk))
        return tuple(part.unflatten(0, latents.shape[:2]) for part in logits)

    def _log_prob_terms(
        self, latents: torch.Tensor, chunk: DecoderChunk, states: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """
        Log-probabilities `(entries, candidates, 3)` of rows, columns and cells (mean over the cells) of the pairs of a chunk
        under latents `(entries, candidates, latent_dim)`.
        """
        candidates = latents.shape[1]
        rows, cols, cells = self.decoder.logits(self.decoder(latents, chunk, states))
        shapes, colors = (
            t.repeat_interleave(candidates, 0) if candidates > 1 else t for t in (chunk.shapes - 1, chunk.colors)
        )
        cell_terms = _log_softmax_at(cells, colors).unflatten(0, latents.shape[:2])
        # The published code divides by the number of cells + 1e-5.
        if chunk.real is None:
            grid_term = cell_terms.sum(-1) / (cell_terms.shape[-1] + 1e-5)
        else:
            grid_term = (cell_terms * chunk.real.unsqueeze(1)).sum(-1) / (chunk.real.sum(-1, keepdim=True) + 1e-5)
        row_term, col_term = (
            _log_softmax_at(logits, shapes[:, side]).unflatten(0, latents.shape[:2])
            for side, logits in enumerate((rows, cols))
        )
        return torch.stack([row_term, col_term, grid_term], -1)

    def _evidence(self, latents: torch.Tensor, chunks: list[DecoderChunk]) -> torch.Tensor:
        """Latents `(rows, candidates, latent_dim)` -> log-likelihood `(rows, candidates)`, summed over the pairs of a row."""
        total = latents.new_zeros(latents.shape[:2], dtype=torch.float32)
        for chunk in chunks:
            terms = self._log_prob_terms(_rows_of(latents, chunk), chunk).sum(-1)
            total = total.index_add(0, chunk.rows.flatten(), terms.view(-1, latents.shape[1]))
        return total

    def _program_terms(
        self, programs: torch.Tensor, scoring: Scoring, states_of: Demonstrations | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Programs `(rows, latent_dim)` -> terms `(pairs, 3)`: of every pair under its rows, their mean if there are more; with
        `states_of` also the hidden states.
        """
        several = any(group.rows.shape[1] > 1 for group in scoring.grouping.groups)
        chunks = self._decoder_chunks(scoring, share=several)
        states: list[list[torch.Tensor] | None] = [None if states_of is None else [] for _ in chunks]
        terms = [
            self._log_prob_terms(_rows_of(programs.unsqueeze(1), chunk), chunk, own).mean(1)
            for chunk, own in zip(chunks, states, strict=True)
        ]
        hidden_states = None if states_of is None else self._join_states(states, scoring.grouping, states_of)
        return scoring.grouping.restore_order(terms), hidden_states

    def search(
        self,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None = None,
        search_config: SearchConfig | Mapping[str, Any] | None = None,
        sample_latents: bool = False,
        generator: torch.Generator | None = None,
        plan: GridPlan | None = None,
        **settings: Any,
    ) -> SearchOutput:
        r"""
        Searches the latent program that explains the demonstration pairs best (paper, section 4.2).

        Args:
            input_grids, output_grids, input_shapes, output_shapes, pair_mask: As in [`~LPNModel.encode`].
            search_config ([`SearchConfig`] or `dict`, *optional*):
                Method and settings; those saved with the model (`config.search`) by default.
            sample_latents (`bool`, defaults to `False`):
                Start from posterior samples, as the published code does, instead of means.
            generator (`torch.Generator`, *optional*): Source of all noise; every task of the batch sees the same draws.
            plan ([`GridPlan`], *optional*): As in [`~LPNModel.encode`].
            settings: Fields of [`SearchConfig`] that override those of `search_config`, as in `num_steps=3`.

        Returns:
            [`SearchOutput`]: Latents ranked by log-likelihood, the trajectory, and the decoder evaluations spent.

        Warns if the weights are of a type that the CPU has no arithmetic for, which makes a search several times slower.

        Raises `TypeError` for a misspelt setting, `ValueError` for a wrong one or if shapes do not fit together.
        """
        search = self._search_config(search_config, settings)
        self._warn_of_slow_type()
        demonstrations = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask, plan)
        mask, device = demonstrations.pair_mask, input_grids.device
        samples = self._sample_noise(search, generator, device)
        noise = self._pair_noise(mask, generator) if sample_latents or search.init == "prior" else None
        if search.init == "prior":
            latents = noise.expand(len(mask), -1, -1)
        else:
            with torch.no_grad():
                latents = self._encode(demonstrations, sample_latents, noise).latents
        # Clipping over the batch ties the tasks together; otherwise a few at a time give the same result.
        width = len(latents) if search.clip == "batch" else search.chunk_size or len(latents)
        if search.rank_by == "leave_one_out":  # as many searches at a time as tasks and pairs
            width = max(1, width // mask.shape[1]) if search.chunk_size else width
        found = []
        for start in range(0, len(latents), width):
            part = demonstrations.tasks(start, start + width)
            latents_of_part = latents[start : start + width]
            if search.rank_by == "fit":
                found.append(self._search(latents_of_part, part.pair_mask, part.scoring("of_task"), search, samples))
            else:
                found.append(self._search_and_leave_one_out(latents_of_part, part, search, samples))
        return found[0] if len(found) == 1 else concatenate_searches(found)

    def _warn_of_slow_type(self) -> None:
        # The name that torch has for x86 without AVX-512, with which all arithmetic in half precision comes.
        if self.device.type == "cpu" and self.dtype.itemsize < 4 and torch.backends.cpu.get_cpu_capability() == "AVX2":
            logger.warning_once(
                f"the weights are {self.dtype}, and this CPU (AVX2) has no such arithmetic: a search takes 6 to 9 times as long as "
                "in float32. Call `model.float()` before it, or load the model with `dtype=torch.float32`."
            )

    def _search_config(
        self, given: SearchConfig | Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> SearchConfig:
        """What was given, else what the model was saved with, with single settings replaced."""
        if "search" in settings:
            raise TypeError("`search` is no setting of a search; give the settings as `search_config`.")
        return SearchConfig.of(self.config.search if given is None else given).override(**settings)

    def _search_and_leave_one_out(
        self, latents: torch.Tensor, demonstrations: Demonstrations, search: SearchConfig, noise: torch.Tensor
    ) -> SearchOutput:
        """A search on all pairs, ranked by what searches without one pair reached on it; see `SearchConfig.rank_by`."""
        plain, plan, device = search.override(rank_by="fit"), demonstrations.plan, latents.device
        folded, limit = plan.num_pairs > 1, None
        if search.max_evaluations is not None:
            share = search.max_evaluations // (plan.num_pairs + 1)
            folded = folded & (share > 0)
            limit = to_device(np.where(folded, share, search.max_evaluations), device)
        found = self._search(latents, demonstrations.pair_mask, demonstrations.scoring("of_task"), plain, noise, limit)
        if not folded.any():
            return found
        left_out = folded[plan.places[0]].nonzero()[0]
        scoring = demonstrations.scoring("of_others", pairs=left_out)
        owner = to_device(plan.places[0][left_out], device)
        row_latents, row_mask = demonstrations.without_own(latents, left_out)
        row_limit = None if limit is None else limit[owner]
        folds = self._search(row_latents, row_mask, scoring, plain, noise, row_limit)
        itself = demonstrations.scoring("own", pairs=left_out)
        held_out = self._score_left_out(folds.trajectory_latents, itself, search)
        held_out = held_out / to_device(plan.num_pairs, device)[owner, None, None]
        scores = found.trajectory_scores.masked_fill(to_device(folded, device)[:, None, None], 0.0)
        scores[:, : held_out.shape[1], : held_out.shape[2]].index_add_(0, owner, held_out)
        found.num_evaluations = found.num_evaluations.index_add(0, owner, folds.num_evaluations)
        return rank_by_scores(found, scores)

    @torch.no_grad()
    def _score_left_out(self, latents: torch.Tensor, scoring: Scoring, search: SearchConfig) -> torch.Tensor:
        """Log-likelihood `(rows, starts, steps + 1)` of the pairs left out under the latents that their rows visited."""
        search = _in_chunks(search, latents, scoring)
        flat, width = latents.flatten(1, 2), max(1, (search.chunk_size or latents[0, ..., 0].numel()) // len(latents))
        with self._for_search(search):
            chunks = self._decoder_chunks(scoring, share=True)
            values = [self._evidence(part, chunks) for part in flat.split(width, 1)]
        return torch.cat(values, 1).view(latents.shape[:-1])

    def _search(
        self,
        latents: torch.Tensor,
        pair_mask: torch.Tensor,
        scoring: Scoring,
        search: SearchConfig,
        noise: torch.Tensor | None,
        limit: torch.Tensor | None = None,
    ) -> SearchOutput:
        """Search over rows of latents `(rows, pairs, latent_dim)`, of which `pair_mask` says which are real."""
        search = _in_chunks(search, latents, scoring)
        with self._for_search(search):
            with nullcontext() if search.second_order else torch.no_grad():
                chunks = self._decoder_chunks(scoring, share=search.spec.budget is not None)
            evidence = self._compiled_evidence or LPNModel._evidence
            return search_latents(
                lambda candidates: evidence(self, candidates, chunks),
                latents,
                pair_mask,
                search,
                noise=noise,
                limit=limit,
            )

    @contextmanager
    def _for_search(self, search: SearchConfig) -> Iterator[None]:
        """
        Dropout off. A search of first order asks for gradients of latents only: without gradients of the weights there is
        no graph of them, and no activation is kept for them (a compiler sees that by itself). With second-order gradients,
        the one attention kernel that differentiates twice.
        """
        training = self.decoder.training
        self.decoder.eval()
        first_order = not (search.second_order or torch.compiler.is_compiling())
        learned = [p for p in self.decoder.parameters() if p.requires_grad] if first_order else []
        for parameter in learned:
            parameter.requires_grad_(False)
        try:
            if search.second_order:  # compiled functions have no second derivative either
                with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
                    yield
            else:
                yield
        finally:
            self.decoder.train(training)
            for parameter in learned:
                parameter.requires_grad_()

    def _pair_noise(self, pair_mask: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Standard normal `(1, pairs, latent_dim)`, pair by pair: what a pair gets does not depend on how many follow."""
        device, size = pair_mask.device if generator is None else generator.device, self.config.latent_dim
        draws = [torch.randn(size, generator=generator, device=device) for _ in range(pair_mask.shape[1])]
        return torch.stack(draws).unsqueeze(0).to(pair_mask.device)

    def _sample_noise(
        self, search: SearchConfig, generator: torch.Generator | None, device: torch.device, rows: int = 1
    ) -> torch.Tensor:
        """Standard normal `(rows, num_samples, latent_dim)`; with one row, the same for every task."""
        shape = (rows, search.num_samples, self.config.latent_dim)
        source = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source).to(device)

    # trf-ignore: TRF045 hidden states of groups of pairs are put in order here, which a hook on a layer cannot
    def forward(
        self,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None = None,
        search_config: SearchConfig | Mapping[str, Any] | None = None,
        sample_latents: bool | None = None,
        latent_noise: torch.Tensor | None = None,
        search_noise: torch.Tensor | None = None,
        plan: GridPlan | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LPNOutput | tuple:
        r"""
        Leave-one-out loss (paper, section 4.3, algorithm 1): every pair of a task is decoded with a latent program that was
        made from the *other* pairs only, by their mean or by a search among their latents.

        Args:
            input_grids, output_grids, input_shapes, output_shapes, pair_mask: As in [`~LPNModel.encode`]; every task
                needs two real pairs or more.
            search_config ([`SearchConfig`] or `dict`, *optional*):
                How the program is made from the other pairs; their mean by default. Method `"all"` decodes a pair with
                each of the other latents and averages the losses. `second_order=True` lets gradients flow through the
                steps of a gradient search (*Grad 1* of the paper with gradients); `init="prior"` starts from noise.
            sample_latents (`bool`, *optional*): Draw latents from the posterior; by default in training mode only.
            latent_noise (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`, *optional*):
                Standard normal noise of that draw (with `init="prior"`: the latents themselves).
            search_noise (`torch.FloatTensor` of shape `(batch, pairs, num_samples, latent_dim)`, *optional*):
                Standard normal noise of a random search, a separate one for every left-out pair.
            plan, output_hidden_states, return_dict: As in [`~LPNModel.encode`].

        Returns:
            [`LPNOutput`]

        Raises `ValueError` if a task has a single real pair, shapes do not fit together, or `second_order` meets flex
        attention.
        """
        # Not `config.search`: how a model is searched and how it is trained are two questions.
        search = NO_SEARCH if search_config is None else SearchConfig.of(search_config)
        if search.rank_by != "fit":
            raise ValueError(
                f"`rank_by` is {search.rank_by!r} in the search of the training loss, which leaves pairs out itself; "
                "leave `rank_by` out."
            )
        # trf-ignore: TRF051 a refusal, no dispatch: one backend has no second derivative
        if search.second_order and self.config._attn_implementation == "flex_attention":
            raise ValueError(
                "`second_order` is True and the attention implementation is 'flex_attention', which has no second "
                "derivative; load the model with `attn_implementation='sdpa'` or 'eager'."
            )
        demonstrations = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask, plan)
        plan = demonstrations.plan
        if (facts := plan.facts(plan.key)).fewest < 2:
            raise ValueError(
                f"task {facts.task} of the batch has a single demonstration pair; leave-one-out training explains each pair "
                "by the others and needs two or more. Leave such tasks out."
            )
        sample_latents = self.training if sample_latents is None else sample_latents
        wants_states = self._wants_states(output_hidden_states)
        if wants_states and search.spec.in_training == "every":
            raise ValueError(
                f"`output_hidden_states` is True and the search method is {search.method!r}, which decodes a pair with several "
                "latents; ask for hidden states with a method that decodes one, such as 'mean'."
            )
        encoded = self._encode(demonstrations, sample_latents, latent_noise, wants_states)
        latents = encoded.latents
        if search.init == "prior":
            latents = torch.randn_like(latents) if latent_noise is None else latent_noise
        # Row r leaves out the r-th real pair; it must explain the other pairs of the same task.
        if search.spec.in_training == "every":
            programs, scoring = self._real(latents, demonstrations), demonstrations.scoring("of_others")
        else:
            programs = self._leave_one_out(latents, demonstrations, search, search_noise)
            scoring = demonstrations.scoring("own", as_one=wants_states)
        terms, hidden_states = self._program_terms(programs, scoring, demonstrations if wants_states else None)
        output = self._loss(terms, demonstrations, encoded, latents, self._with_padding(programs, demonstrations))
        output.encoder_hidden_states, output.decoder_hidden_states = encoded.hidden_states, hidden_states
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _leave_one_out(
        self,
        latents: torch.Tensor,
        demonstrations: Demonstrations,
        search: SearchConfig,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """The program `(real pairs, latent_dim)` of every real pair, made from the others of its task."""
        row_latents, row_mask = demonstrations.without_own(latents)
        if search.spec.in_training == "start":
            return start_latents(row_latents, row_mask, search)[0][:, 0]
        if noise is not None:
            noise = self._real(noise, demonstrations)
        else:
            noise = self._sample_noise(search, None, latents.device, rows=len(row_latents))
        scoring = demonstrations.scoring("of_others")
        return self._search(row_latents, row_mask, scoring, search, noise).latents[:, 0]

    @staticmethod
    def _real(values: torch.Tensor, demonstrations: Demonstrations) -> torch.Tensor:
        """Values of the real pairs `(real pairs, ...)` of `(batch, pairs, ...)`."""
        flat, real = values.flatten(0, 1), demonstrations.real
        return flat if real is None else flat.index_select(0, real)

    def _loss(
        self,
        terms: torch.Tensor,
        demonstrations: Demonstrations,
        encoded: LPNEncoderOutput,
        latents: torch.Tensor,
        programs: torch.Tensor,
    ) -> LPNOutput:
        """Log-probability terms `(real pairs, 3)` -> the loss and its parts, each a mean over tasks of a mean over pairs."""
        pair_mask = demonstrations.pair_mask
        weights = pair_mask / pair_mask.sum(1, keepdim=True) / pair_mask.shape[0]  # (batch, pairs), sum 1
        row_loss, col_loss, grid_loss = -(terms * self._real(weights, demonstrations).unsqueeze(-1)).sum(0)
        reconstruction_loss = row_loss + col_loss + grid_loss
        output = LPNOutput(
            loss=reconstruction_loss,
            reconstruction_loss=reconstruction_loss,
            row_loss=row_loss,
            col_loss=col_loss,
            grid_loss=grid_loss,
            latents=latents,
            latent_mean=encoded.latent_mean,
            latent_logvar=encoded.latent_logvar,
            programs=programs,
        )
        # CODEPATH: variational models, as the published ones; the two terms need variances.
        if self.config.variational:
            mean, logvar = encoded.latent_mean, encoded.latent_logvar
            prior_kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1)
            output.prior_kl = (prior_kl * weights).sum()
            output.pairwise_kl = mean_between_pairs(_pairwise_kl(mean, logvar), pair_mask)
            for name in ("prior_kl", "pairwise_kl"):
                if weight := getattr(self.config, f"{name}_weight"):
                    output.loss = output.loss + weight * output[name]
        return output

    @torch.no_grad()
    def generate(
        self,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        query_grids: torch.Tensor,
        query_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None = None,
        query_mask: torch.Tensor | None = None,
        search_config: SearchConfig | Mapping[str, Any] | None = None,
        num_candidates: int = 1,
        sample_latents: bool = False,
        generator: torch.Generator | None = None,
        plan: GridPlan | None = None,
        **settings: Any,
    ) -> LPNGenerateOutput:
        r"""
        Infers the program of the demonstration pairs by latent search and executes it on the queries.

        Args:
            input_grids, output_grids, input_shapes, output_shapes, pair_mask: As in [`~LPNModel.encode`].
            query_grids, query_shapes, query_mask, num_candidates: As in [`~LPNModel.execute`].
            search_config, sample_latents, generator, plan, settings: As in [`~LPNModel.search`]; `generate(**inputs)` searches
                with the settings saved with the model, `generate(**inputs, num_steps=3)` overrides one.

        Returns:
            [`LPNGenerateOutput`]

        Warns if a log-likelihood was no finite number; `search_output.num_nonfinite` counts them.

        Raises `TypeError` for a misspelt setting, `ValueError` for a wrong one or if shapes do not fit together.
        """
        demonstrations = (input_grids, output_grids, input_shapes, output_shapes, pair_mask)
        found = self.search(*demonstrations, search_config, sample_latents, generator, plan, **settings)
        self._warn_of_nonfinite(found)
        output = self.execute(found.latents, query_grids, query_shapes, query_mask, num_candidates, found.log_probs)
        output.search_output = found
        return output

    def _warn_of_nonfinite(self, found: SearchOutput) -> None:
        counts = (found.num_nonfinite, found.num_evaluations, ~found.log_probs[:, 0].isfinite())
        bad, evaluations, hopeless = torch.stack([count.sum() for count in counts]).tolist()
        if bad:
            logger.warning_once(
                f"{bad} of {evaluations} log-likelihoods of the search are no finite number "
                f"(`search_output.num_nonfinite`); for {hopeless} of {len(found.num_nonfinite)} tasks none is, and the "
                "grids of those mean nothing. Check the weights, or lower the learning rate of the search."
            )

    @torch.no_grad()
    def execute(
        self,
        latents: torch.Tensor,
        query_grids: torch.Tensor,
        query_shapes: torch.Tensor,
        query_mask: torch.Tensor | None = None,
        num_candidates: int = 1,
        log_probs: torch.Tensor | None = None,
    ) -> LPNGenerateOutput:
        r"""
        Runs latent programs on new inputs, greedily.

        The first candidate is the output of the first latent. Each further candidate is that of the best-ranked latent
        among a few (ranks spread geometrically) whose output differs from all candidates before, or of the next latent
        if there is none. Whether an output differs takes one teacher-forced pass, not a generation.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, ranked, latent_dim)`): Best first, as in [`SearchOutput`].
            query_grids (`torch.LongTensor` of shape `(batch, queries, rows, cols)`): Inputs, padded.
            query_shapes (`torch.LongTensor` of shape `(batch, queries, 2)`): Their rows and columns.
            query_mask (`torch.BoolTensor` of shape `(batch, queries)`, *optional*): Which are real; others stay zero.
            num_candidates (`int`, defaults to 1): Outputs for each query; ARC-AGI allows two.
            log_probs (`torch.FloatTensor` of shape `(batch, ranked)`, *optional*): Latents at `-inf` are left aside.

        Returns:
            [`LPNGenerateOutput`] without `search_output`.

        Raises `ValueError` if `num_candidates` is below 1 or shapes do not fit together.
        """
        if num_candidates < 1:
            raise ValueError(f"`num_candidates` is {num_candidates}; ask for 1 or more.")
        if query_grids.shape[0] != latents.shape[0] or query_shapes.shape != (*query_grids.shape[:2], 2):
            raise ValueError(
                f"`latents` {tuple(latents.shape)}, `query_grids` {tuple(query_grids.shape)} and `query_shapes` "
                f"{tuple(query_shapes.shape)} do not fit; (batch, ranked, latent_dim), (batch, queries, rows, cols) and "
                "(batch, queries, 2) are needed."
            )
        if query_mask is None:
            query_mask = torch.ones(query_grids.shape[:2], dtype=torch.bool, device=query_grids.device)
        tasks, inputs, shapes = query_mask.nonzero()[:, 0], query_grids[query_mask], query_shapes[query_mask]
        if len(sizes := shapes.cpu()):
            self._check_sizes("query", inputs, (int(sizes.min()), *sizes.amax(0).tolist()))
        self._check_colors("query", inputs)
        usable = torch.ones_like(latents[..., 0], dtype=torch.bool) if log_probs is None else log_probs.isfinite()
        outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        ranks = torch.zeros(len(tasks), num_candidates, dtype=torch.long, device=tasks.device)
        for candidate in range(num_candidates):
            if candidate:
                ranks[:, candidate] = self._next_distinct(latents[tasks], usable[tasks], inputs, shapes, outputs)
            drafts = outputs[-1][0] if outputs else inputs  # candidates are much alike
            outputs.append(self._decode(latents[tasks, ranks[:, candidate]], inputs, shapes, drafts))
        result = LPNGenerateOutput(latents=latents.new_zeros(*query_mask.shape, num_candidates, latents.shape[-1]))
        result.latents[query_mask] = latents[tasks.unsqueeze(1), ranks]
        size = (self.config.max_rows, self.config.max_cols)
        result.output_grids = query_grids.new_zeros(*query_mask.shape, num_candidates, *size)
        result.output_grids[query_mask] = torch.stack([grids for grids, _ in outputs], 1)
        result.output_shapes = query_shapes.new_ones(*query_mask.shape, num_candidates, 2)
        result.output_shapes[query_mask] = torch.stack([shapes for _, shapes in outputs], 1)
        return result

    def _decode(
        self, latents: torch.Tensor, inputs: torch.Tensor, shapes: torch.Tensor, drafts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Greedy outputs of `latents[k]` on `inputs[k]`: grids `(queries, max_rows, max_cols)`, shapes `(queries, 2)`. Grids like
        `drafts` `(queries, rows, cols)` are written faster, others are the same.
        """
        sizes = np.repeat(shapes.cpu().numpy()[:, None], 2, 1)
        sizes[:, 1] = 1  # how large an output will be is not known
        grouping = grouping_of(sizes, shapes.device, written=True)
        if not len(inputs):
            return inputs.new_zeros(0, self.config.max_rows, self.config.max_cols), shapes
        with torch.compiler.set_stance("force_eager"):  # every step of a cache has another shape
            parts = [
                self.decoder.generate(latents[own], inputs[own], shapes[own], extent, drafts[own])
                for own, extent, *_ in grouping.groups
            ]
        grids, output_shapes = (grouping.restore_order(part) for part in zip(*parts, strict=True))
        return grids, output_shapes

    def _next_distinct(
        self,
        latents: torch.Tensor,
        usable: torch.Tensor,
        inputs: torch.Tensor,
        shapes: torch.Tensor,
        previous: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """For every query the rank of the first probed latent whose output is none of `previous`; latents `(queries, ranked, ...)`."""
        ranked = latents.shape[1]
        fallback = min(len(previous), ranked - 1)
        if ranked == 1:
            return torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        probes = sorted({int(round(1.5**k)) for k in range(32) if round(1.5**k) < ranked})
        differs = usable[:, probes]
        for grids, output_shapes in previous:
            pairs = GridPairs(inputs, grids, shapes, output_shapes)
            sizes = torch.stack([shapes, output_shapes], 1).cpu().numpy()
            scoring = Scoring(pairs, grouping_of(sizes, pairs.input_grids.device))
            for chunk in self._decoder_chunks(scoring, share=len(probes) > 1):
                entries = chunk.rows[:, 0]
                differs[entries] &= ~self._reproduces(latents[entries][:, probes], chunk)
        rank = torch.tensor(probes, device=latents.device)[differs.int().argmax(1)]
        return torch.where(differs.any(1), rank, fallback)

    def _reproduces(self, latents: torch.Tensor, chunk: DecoderChunk) -> torch.Tensor:
        """Whether greedy decoding with latents `(entries, candidates, ...)` writes the outputs of the chunk."""
        same = []
        for part in latents.split(1, 1):
            rows, cols, cells = (logits.argmax(-1) for logits in self._logits(part, chunk))
            shape_same = (torch.stack([rows, cols], -1) == (chunk.shapes - 1).unsqueeze(1)).all(-1)
            cells_same = cells == chunk.colors.unsqueeze(1)
            if chunk.real is not None:
                cells_same = cells_same | ~chunk.real.unsqueeze(1)
            same.append(shape_same & cells_same.all(-1))
        return torch.cat(same, 1)


class _CompiledEvidence:
    """[`LPNModel._evidence`] with gradients of the latents by `torch.compile`, for the shapes that it meets first."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.shapes: list[Any] | None = None
        self.compiled: Callable[..., torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "compiled": None}  # a copy, or another process, compiles its own

    def __call__(self, model: LPNModel, latents: torch.Tensor, chunks: list[DecoderChunk]) -> torch.Tensor:
        # A first step makes the masks that all later ones read: made in a CUDA graph they would be gone with its next run.
        prepared = all(chunk.rows.shape[1] * latents.shape[1] in chunk.layouts for chunk in chunks)
        if torch.compiler.is_compiling() or not (latents.requires_grad and prepared):
            return model._evidence(latents, chunks)
        shapes: list[Any] = [latents.shape, latents.device, model.dtype]
        for chunk in chunks:
            for tokens in (chunk.prefix, chunk.output):
                shapes += [tokens.embeds.shape, tokens.mask is None]
        if self.compiled is None:
            # Not `fullgraph`: then the compiler's limit of variants, which all models of a process share, would be an error.
            self.shapes = shapes
            self.compiled = torch.compile(LPNModel._evidence, **{"dynamic": False, **self.options})
        if shapes != self.shapes:
            return model._evidence(latents, chunks)
        return self.compiled(model, latents, chunks).clone()  # a CUDA graph writes to one place


def _in_chunks(search: SearchConfig, latents: torch.Tensor, scoring: Scoring) -> SearchConfig:
    """
    The search with as many candidates at a time as make `CHUNK_TOKENS` on a CPU, which gains nothing from larger batches: with
    16 candidates 5 to 25 % less time, since activations stay in the caches, and half the memory. Latents are `(rows, ...)`.
    """
    if search.chunk_size is not None or latents.device.type != "cpu" or torch.compiler.is_compiling():
        return search
    tokens = sum(
        group.rows.numel() * (group.input_extent.length + group.output_extent.length)
        for group in scoring.grouping.groups
    )
    return search.override(chunk_size=len(latents) * max(1, CHUNK_TOKENS // max(1, tokens)))


def _rows_of(latents: torch.Tensor, chunk: DecoderChunk) -> torch.Tensor:
    """Latents `(rows, candidates, latent_dim)` that each pair is decoded with `(entries, k * candidates, latent_dim)`."""
    return latents.index_select(0, chunk.rows.flatten()).view(len(chunk.rows), -1, latents.shape[-1])


def _log_softmax_at(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of labels `(...)` under logits `(..., classes)`."""
    return -F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


def mean_between_pairs(values: torch.Tensor, pair_mask: torch.Tensor) -> torch.Tensor:
    """Mean over tasks of the mean over two different real pairs: values `(batch, pairs, pairs)`."""
    between = pair_mask.unsqueeze(1) & pair_mask.unsqueeze(2)
    between = between & ~torch.eye(pair_mask.shape[1], dtype=torch.bool, device=pair_mask.device)
    return (torch.where(between, values, 0.0).sum((1, 2)) / between.sum((1, 2))).mean()


def _pairwise_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL divergences `(batch, pairs, pairs)` from posterior i to posterior j, with the published code's 1e-7."""
    var = logvar.exp()
    distance = (mean.unsqueeze(2) - mean.unsqueeze(1)).square()
    ratio = (var.unsqueeze(2) + distance) / (var.unsqueeze(1) + 1e-7)
    return 0.5 * (ratio - 1 + logvar.unsqueeze(1) - logvar.unsqueeze(2)).sum(-1)


__all__ = ["LPNModel", "LPNPreTrainedModel", "mean_between_pairs"]
