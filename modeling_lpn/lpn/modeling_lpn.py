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

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .configuration_lpn import LPNConfig
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
    GridTokens,
    LPNDecoder,
    LPNEncoder,
    LPNLayerNorm,
    length_chunks,
    pack_cells,
)


logger = logging.get_logger(__name__)


@dataclass
class LPNEncoderOutput(ModelOutput):
    """
    Latent programs of the demonstration pairs, zero where a pair is padding.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): The mean, or a sample of the posterior.
        latent_mean (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): Mean of the posterior.
        latent_logvar (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`, *optional*):
            Logarithm of its variance; `None` if the model is not variational.
    """

    latents: torch.Tensor | None = None
    latent_mean: torch.Tensor | None = None
    latent_logvar: torch.Tensor | None = None


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
    The demonstration pairs of a batch, checked: `pairs` are the real ones without their task axis, `tasks` `(real pairs,)`
    says whose each is, `pair_mask` `(batch, pairs)` where it was.
    """

    pairs: GridPairs
    tasks: torch.Tensor
    pair_mask: torch.Tensor


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

    @classmethod
    def can_generate(cls) -> bool:
        """`generate` of a grid model is not that of a language model: no `generation_config.json`."""
        return False

    # trf-ignore: TRF018 every kind of module in the model is named here; the base class would draw other values first
    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As Flax initialises the published model: LeCun normal for linear layers, 1 / sqrt(width) for tables."""
        if isinstance(module, nn.Linear):
            init.lecun_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
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

    def __init__(self, config: LPNConfig):
        super().__init__(config)
        self.encoder = LPNEncoder(config)
        self.decoder = LPNDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Table of the colours that the encoder reads; the decoder has its own, `model.decoder.color_embedding`."""
        return self.encoder.color_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.color_embedding = value  # type: ignore[assignment]

    def compile_layers(self, **kwargs):
        """
        Compiles every transformer layer in place with `torch.compile(**kwargs)`. Better than compiling the model: how
        sequences are grouped depends on the data. Cached decoding and second-order search stay eager.
        """
        for layer in (*self.encoder.layers, *self.decoder.layers):
            layer.compile(**{"dynamic": True, **kwargs})

    def encode(
        self,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None = None,
        sample_latents: bool = False,
        latent_noise: torch.Tensor | None = None,
    ) -> LPNEncoderOutput:
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

        Returns:
            [`LPNEncoderOutput`]

        Raises `ValueError` if shapes of the arguments do not fit together.
        """
        demonstrations = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask)
        return self._encode(demonstrations, sample_latents, latent_noise)

    def _encode(
        self, demonstrations: Demonstrations, sample_latents: bool, latent_noise: torch.Tensor | None
    ) -> LPNEncoderOutput:
        pairs, _, pair_mask = demonstrations
        lengths = torch.stack([pairs.input_shapes.prod(-1), pairs.output_shapes.prod(-1)], -1)
        chunks = self._length_chunks(lengths)
        encoded = [self.encoder(*pairs.take(chunk)) for chunk in chunks]
        place = pair_mask.flatten().nonzero()[:, 0][torch.cat(chunks)]

        def scatter(values: list[torch.Tensor]) -> torch.Tensor:
            flat = torch.cat(values)
            blank = flat.new_zeros(pair_mask.numel(), flat.shape[-1])
            return blank.index_copy(0, place, flat).view(*pair_mask.shape, -1)

        latents = mean = scatter([mean for mean, _ in encoded])
        # CODEPATH: the published models are variational; one trained without (`variational: false`) has no variances.
        logvar = scatter([logvar for _, logvar in encoded]) if self.config.variational else None
        # CODEPATH: as above; without variances a latent is its mean.
        if sample_latents and self.config.variational:
            latent_noise = torch.randn_like(mean) if latent_noise is None else latent_noise
            latents = mean + (0.5 * logvar).exp() * latent_noise * pair_mask.unsqueeze(-1)
        return LPNEncoderOutput(latents=latents, latent_mean=mean, latent_logvar=logvar)

    def _demonstrations(
        self,
        input_grids: torch.Tensor,
        output_grids: torch.Tensor,
        input_shapes: torch.Tensor,
        output_shapes: torch.Tensor,
        pair_mask: torch.Tensor | None,
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
        if not bool(pair_mask.any(1).all()):
            task = int((~pair_mask.any(1)).nonzero()[0])
            raise ValueError(
                f"task {task} of the batch has no demonstration pair in `pair_mask`; leave such tasks out."
            )
        pairs = GridPairs(*(t[pair_mask] for t in (input_grids, output_grids, input_shapes, output_shapes)))
        self._check_grids("input", pairs.input_grids, pairs.input_shapes)
        self._check_grids("output", pairs.output_grids, pairs.output_shapes)
        return Demonstrations(pairs, pair_mask.nonzero()[:, 0], pair_mask)

    def _check_grids(self, side: str, grids: torch.Tensor, shapes: torch.Tensor) -> None:
        """Raises `ValueError` where grids `(count, rows, cols)` have cells or shapes that the model has no embedding for."""
        if not len(grids):
            return
        config = self.config
        # One transfer from the device for all that is checked.
        least, rows, cols, darkest, brightest = torch.stack(
            [shapes.min(), shapes[:, 0].max(), shapes[:, 1].max(), grids.min(), grids.max()]
        ).tolist()
        limits = min(config.max_rows, grids.shape[1]), min(config.max_cols, grids.shape[2])
        if least < 1 or rows > limits[0] or cols > limits[1]:
            raise ValueError(
                f"`{side}_shapes` reach from {least} to {rows} rows and {cols} columns, but `{side}_grids` holds "
                f"{grids.shape[1]} x {grids.shape[2]} cells and the model reads 1 x 1 to {config.max_rows} x "
                f"{config.max_cols}; leave such tasks out (`LPNProcessor` names them) or train a larger model."
            )
        if darkest < 0 or brightest >= config.vocab_size:
            raise ValueError(
                f"`{side}_grids` holds colours from {darkest} to {brightest}; the model knows 0 to "
                f"{config.vocab_size - 1} (`vocab_size`), in the padding too: map the others, and pad with 0."
            )

    def _length_chunks(self, lengths: torch.Tensor) -> list[torch.Tensor]:
        """A kernel launch costs as much as some hundred tokens on a CPU, and as many thousands on a GPU."""
        overhead, max_tokens = (256, 2**13) if lengths.device.type == "cpu" else (2**14, 2**18)
        return length_chunks(lengths, overhead, max_tokens)

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
        pairs, tasks, _ = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask)
        chunks = self._decoder_chunks(pairs, torch.arange(len(tasks), device=tasks.device))
        return self._evidence(latents, tasks, chunks)

    def _decoder_chunks(self, pairs: GridPairs, index: torch.Tensor) -> list[DecoderChunk]:
        """Embeds `pairs[index]` in chunks of similar length."""
        lengths = torch.stack([pairs.input_shapes.prod(-1), pairs.output_shapes.prod(-1)], -1)[index]
        chunks = []
        for entries in self._length_chunks(lengths):
            chunk = pairs.take(index[entries])
            colors, _, real = pack_cells(
                chunk.output_grids, chunk.output_shapes, int(chunk.output_shapes.prod(-1).max())
            )
            prefix = self.decoder.embed_prefix(chunk.input_grids, chunk.input_shapes)
            output = self.decoder.embed_output(chunk.output_grids, chunk.output_shapes)
            chunks.append(DecoderChunk(entries, prefix, output, chunk.output_shapes, colors, real))
        return chunks

    def _logits(self, latents: torch.Tensor, chunk: DecoderChunk):
        """Latents `(entries, candidates, latent_dim)` -> logits of rows, columns, cells with these two leading axes."""
        entries, candidates = latents.shape[:2]
        prefix, output = chunk.prefix, chunk.output
        if candidates > 1:
            prefix, output = (
                GridTokens(*(None if t is None else t.repeat_interleave(candidates, 0) for t in tokens))
                for tokens in (prefix, output)
            )
        logits = self.decoder.logits(self.decoder(latents.flatten(0, 1), prefix, output))
        return tuple(part.unflatten(0, (entries, candidates)) for part in logits)

    def _log_prob_terms(self, latents: torch.Tensor, chunks: list[DecoderChunk]) -> torch.Tensor:
        """
        Log-probabilities `(entries, candidates, 3)` of rows, columns and cells (mean over the cells) of the pairs in
        `chunks` under latents `(entries, candidates, latent_dim)`.
        """
        terms = []
        for chunk in chunks:
            rows, cols, cells = self._logits(latents[chunk.entries], chunk)
            labels = (chunk.shapes - 1).unsqueeze(1).expand(-1, latents.shape[1], -1)
            row_term = rows.log_softmax(-1).gather(-1, labels[..., :1])
            col_term = cols.log_softmax(-1).gather(-1, labels[..., 1:])
            colors = chunk.colors[:, None, :, None].expand(-1, latents.shape[1], -1, -1)
            cell_terms = cells.log_softmax(-1).gather(-1, colors).squeeze(-1) * chunk.real.unsqueeze(1)
            # The published code divides by the number of cells + 1e-5.
            grid_term = cell_terms.sum(-1, keepdim=True) / (chunk.real.sum(-1)[:, None, None] + 1e-5)
            terms.append(torch.cat([row_term, col_term, grid_term], -1))
        order = torch.cat([chunk.entries for chunk in chunks])
        return torch.cat(terms)[order.argsort()]

    def _evidence(self, latents: torch.Tensor, tasks: torch.Tensor, chunks: list[DecoderChunk]) -> torch.Tensor:
        """Latents `(tasks, candidates, latent_dim)` -> log-likelihood `(tasks, candidates)`, summed over each one's pairs."""
        terms = self._log_prob_terms(latents[tasks], chunks).sum(-1)
        return terms.new_zeros(latents.shape[:2]).index_add(0, tasks, terms)

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
            settings: Fields of [`SearchConfig`] that override those of `search_config`, as in `num_steps=3`.

        Returns:
            [`SearchOutput`]: Latents ranked by log-likelihood, the trajectory, and the decoder evaluations spent.

        Raises `TypeError` for a misspelt setting, `ValueError` for a wrong one or if shapes do not fit together.
        """
        search = self._search_config(search_config, settings)
        demonstrations = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask)
        pairs, tasks, pair_mask = demonstrations
        samples = self._sample_noise(search, generator, pair_mask.device)
        noise = self._pair_noise(pair_mask, generator) if sample_latents or search.init == "prior" else None
        if search.init == "prior":
            latents = noise.expand(pair_mask.shape[0], -1, -1)
        else:
            with torch.no_grad():
                latents = self._encode(demonstrations, sample_latents, noise).latents
        # Clipping over the batch ties the tasks together; otherwise a few at a time give the same result.
        width = len(latents) if search.clip == "batch" else search.chunk_size or len(latents)
        if search.rank_by == "leave_one_out":  # as many searches at a time as tasks and pairs
            width = max(1, width // pair_mask.shape[1]) if search.chunk_size else width
        found = []
        for start in range(0, len(latents), width):
            part = slice(start, start + width)
            inside = (tasks >= start) & (tasks < start + width)
            rows = latents[part], pair_mask[part], pairs.take(inside), tasks[inside] - start
            ranked = self._search if search.rank_by == "fit" else self._search_and_leave_one_out
            found.append(ranked(*rows, search, samples))
        return found[0] if len(found) == 1 else concatenate_searches(found)

    def _search_config(
        self, given: SearchConfig | Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> SearchConfig:
        """What was given, else what the model was saved with, with single settings replaced."""
        if "search" in settings:
            raise TypeError("`search` is no setting of a search; give the settings as `search_config`.")
        return SearchConfig.of(self.config.search if given is None else given).override(**settings)

    def _search_and_leave_one_out(self, latents, pair_mask, pairs, tasks, search, noise) -> SearchOutput:
        """A search on all pairs, ranked by what searches without one pair reached on it; see `SearchConfig.rank_by`."""
        plain, num_pairs = search.override(rank_by="fit"), pair_mask.sum(1)
        folded, limit = num_pairs > 1, None
        if search.max_evaluations is not None:
            share = search.max_evaluations // (num_pairs + 1)
            folded = folded & (share > 0)
            limit = torch.where(folded, share, search.max_evaluations)
        found = self._search(latents, pair_mask, pairs, tasks, plain, noise, limit=limit)
        left_out = folded[tasks].nonzero()[:, 0]
        if not len(left_out):
            return found
        # Row r leaves out pair `left_out[r]`; it must explain the other pairs of its task.
        owner, positions = (pair_mask & folded.unsqueeze(1)).nonzero().unbind(1)
        places = torch.arange(pair_mask.shape[1], device=tasks.device)
        row_mask = pair_mask[owner] & (places != positions.unsqueeze(1))
        others = (owner.unsqueeze(1) == tasks) & (
            torch.arange(len(tasks), device=tasks.device) != left_out.unsqueeze(1)
        )
        rows, index = others.nonzero().unbind(1)
        row_limit = None if limit is None else limit[owner]
        folds = self._search(latents[owner], row_mask, pairs, rows, plain, noise, index, row_limit)
        scores = found.trajectory_scores.clone()
        scores[folded] = 0.0
        steps = folds.trajectory_scores.shape[1:]
        held_out = (
            self._score_left_out(folds.trajectory_latents, pairs, left_out, search) / num_pairs[owner, None, None]
        )
        scores[:, : steps[0], : steps[1]].index_add_(0, owner, held_out)
        found.num_evaluations = found.num_evaluations.index_add(0, owner, folds.num_evaluations)
        return rank_by_scores(found, scores)

    @torch.no_grad()
    def _score_left_out(self, latents, pairs, left_out, search) -> torch.Tensor:
        """Log-likelihood `(rows, starts, steps + 1)` of `pairs[left_out]` under visited latents of these rows."""
        flat, width = latents.flatten(1, 2), max(1, (search.chunk_size or latents[0, ..., 0].numel()) // len(latents))
        with self._for_search(search):
            chunks = self._decoder_chunks(pairs, left_out)
            values = [self._log_prob_terms(part, chunks).sum(-1) for part in flat.split(width, 1)]
        return torch.cat(values, 1).view(latents.shape[:-1])

    def _search(self, latents, pair_mask, pairs, tasks, search, noise, index=None, limit=None) -> SearchOutput:
        """Search over rows of latents; `tasks[k]` is the row that must explain `pairs[index[k]]`."""
        index = torch.arange(len(tasks), device=tasks.device) if index is None else index
        with self._for_search(search):
            with nullcontext() if search.second_order else torch.no_grad():
                chunks = self._decoder_chunks(pairs, index)
            return search_latents(
                lambda candidates: self._evidence(candidates, tasks, chunks),
                latents,
                pair_mask,
                search,
                noise=noise,
                limit=limit,
            )

    @contextmanager
    def _for_search(self, search: SearchConfig):
        """Dropout off; with second-order gradients, the one attention kernel that differentiates twice."""
        training = self.decoder.training
        self.decoder.eval()
        try:
            if search.second_order:  # compiled functions have no second derivative either
                with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
                    yield
            else:
                yield
        finally:
            self.decoder.train(training)

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
    ) -> LPNOutput:
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

        Returns:
            [`LPNOutput`]

        Raises `ValueError` if a task has a single real pair, shapes do not fit together, or `second_order` meets flex
        attention.
        """
        # Not `config.search`: how a model is searched and how it is trained are two questions.
        search = SearchConfig(method="mean") if search_config is None else SearchConfig.of(search_config)
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
        demonstrations = self._demonstrations(input_grids, output_grids, input_shapes, output_shapes, pair_mask)
        pairs, tasks, pair_mask = demonstrations
        if int(pair_mask.sum(1).min()) < 2:
            raise ValueError(
                f"task {int(pair_mask.sum(1).argmin())} of the batch has a single demonstration pair; leave-one-out "
                "training explains each pair by the others and needs two or more. Leave such tasks out."
            )
        sample_latents = self.training if sample_latents is None else sample_latents
        encoded = self._encode(demonstrations, sample_latents, latent_noise)
        latents = encoded.latents
        if search.init == "prior":
            latents = torch.randn_like(latents) if latent_noise is None else latent_noise
        # Row r leaves out the r-th real pair; it must explain the other pairs of the same task.
        others = (tasks.unsqueeze(0) == tasks.unsqueeze(1)).fill_diagonal_(False)
        if search.spec.in_training == "every":
            rows, index = others.nonzero().unbind(1)
            terms = self._log_prob_terms(latents[pair_mask][index].unsqueeze(1), self._decoder_chunks(pairs, rows))
            terms = terms.new_zeros(len(tasks), 3).index_add(0, rows, terms[:, 0]) / others.sum(1, keepdim=True)
            programs = latents[pair_mask]
        else:
            programs = self._leave_one_out(latents, pair_mask, pairs, others, search, search_noise)
            index = torch.arange(len(tasks), device=tasks.device)
            terms = self._log_prob_terms(programs.unsqueeze(1), self._decoder_chunks(pairs, index))[:, 0]
        programs = torch.zeros_like(latents).masked_scatter(pair_mask.unsqueeze(-1), programs)
        return self._loss(terms, pair_mask, encoded, latents, programs)

    def _leave_one_out(self, latents, pair_mask, pairs, others, search, noise) -> torch.Tensor:
        """The program `(real pairs, latent_dim)` of every real pair, made from the others of its task."""
        tasks, positions = pair_mask.nonzero().unbind(1)
        row_mask = pair_mask[tasks] & (torch.arange(pair_mask.shape[1], device=tasks.device) != positions.unsqueeze(1))
        row_latents = latents[tasks]
        if search.spec.in_training == "start":
            return start_latents(row_latents, row_mask, search)[0][:, 0]
        noise = (
            noise[pair_mask]
            if noise is not None
            else self._sample_noise(search, None, pair_mask.device, rows=len(tasks))
        )
        rows, index = others.nonzero().unbind(1)
        return self._search(row_latents, row_mask, pairs, rows, search, noise, index).latents[:, 0]

    def _loss(
        self,
        terms: torch.Tensor,
        pair_mask: torch.Tensor,
        encoded: LPNEncoderOutput,
        latents: torch.Tensor,
        programs: torch.Tensor,
    ) -> LPNOutput:
        """Log-probability terms `(real pairs, 3)` -> the loss and its parts, each a mean over tasks of a mean over pairs."""
        weights = pair_mask / pair_mask.sum(1, keepdim=True) / pair_mask.shape[0]  # (batch, pairs), sum 1
        row_loss, col_loss, grid_loss = -(terms * weights[pair_mask].unsqueeze(-1)).sum(0)
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
        **settings: Any,
    ) -> LPNGenerateOutput:
        r"""
        Infers the program of the demonstration pairs by latent search and executes it on the queries.

        Args:
            input_grids, output_grids, input_shapes, output_shapes, pair_mask: As in [`~LPNModel.encode`].
            query_grids, query_shapes, query_mask, num_candidates: As in [`~LPNModel.execute`].
            search_config, sample_latents, generator, settings: As in [`~LPNModel.search`]; `generate(**inputs)` searches
                with the settings saved with the model, `generate(**inputs, num_steps=3)` overrides one.

        Returns:
            [`LPNGenerateOutput`]

        Warns if a log-likelihood was no finite number; `search_output.num_nonfinite` counts them.

        Raises `TypeError` for a misspelt setting, `ValueError` for a wrong one or if shapes do not fit together.
        """
        demonstrations = (input_grids, output_grids, input_shapes, output_shapes, pair_mask)
        found = self.search(*demonstrations, search_config, sample_latents, generator, **settings)
        self._warn_of_nonfinite(found)
        output = self.execute(found.latents, query_grids, query_shapes, query_mask, num_candidates, found.log_probs)
        output.search_output = found
        return output

    def _warn_of_nonfinite(self, found: SearchOutput) -> None:
        hopeless = int((~found.log_probs[:, 0].isfinite()).sum())
        if bad := int(found.num_nonfinite.sum()):
            logger.warning_once(
                f"{bad} of {int(found.num_evaluations.sum())} log-likelihoods of the search are no finite number "
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
        self._check_grids("query", inputs, shapes)
        usable = torch.ones_like(latents[..., 0], dtype=torch.bool) if log_probs is None else log_probs.isfinite()
        outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        ranks = torch.zeros(len(tasks), num_candidates, dtype=torch.long, device=tasks.device)
        for candidate in range(num_candidates):
            if candidate:
                ranks[:, candidate] = self._next_distinct(latents[tasks], usable[tasks], inputs, shapes, outputs)
            outputs.append(self._decode(latents[tasks, ranks[:, candidate]], inputs, shapes))
        result = LPNGenerateOutput(latents=latents.new_zeros(*query_mask.shape, num_candidates, latents.shape[-1]))
        result.latents[query_mask] = latents[tasks.unsqueeze(1), ranks]
        size = (self.config.max_rows, self.config.max_cols)
        result.output_grids = query_grids.new_zeros(*query_mask.shape, num_candidates, *size)
        result.output_grids[query_mask] = torch.stack([grids for grids, _ in outputs], 1)
        result.output_shapes = query_shapes.new_ones(*query_mask.shape, num_candidates, 2)
        result.output_shapes[query_mask] = torch.stack([shapes for _, shapes in outputs], 1)
        return result

    def _decode(self, latents: torch.Tensor, inputs: torch.Tensor, shapes: torch.Tensor):
        """Greedy outputs of `latents[k]` on `inputs[k]`: grids `(queries, max_rows, max_cols)`, shapes `(queries, 2)`."""
        chunks = self._length_chunks(shapes.prod(-1, keepdim=True))
        with torch.compiler.set_stance("force_eager"):  # every step of a cache has another shape
            parts = [self.decoder.generate(latents[chunk], inputs[chunk], shapes[chunk]) for chunk in chunks]
        order = torch.cat(chunks).argsort()
        return tuple(torch.cat(part)[order] for part in zip(*parts))

    def _next_distinct(self, latents, usable, inputs, shapes, previous) -> torch.Tensor:
        """For every query the rank of the first probed latent whose output is none of `previous`; latents `(queries, ranked, ...)`."""
        ranked = latents.shape[1]
        fallback = min(len(previous), ranked - 1)
        if ranked == 1:
            return torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        probes = sorted({int(round(1.5**k)) for k in range(32) if round(1.5**k) < ranked})
        differs = usable[:, probes]
        for grids, output_shapes in previous:
            pairs = GridPairs(inputs, grids, shapes, output_shapes)
            chunks = self._decoder_chunks(pairs, torch.arange(len(inputs), device=inputs.device))
            for chunk in chunks:
                differs[chunk.entries] &= ~self._reproduces(latents[chunk.entries][:, probes], chunk)
        rank = torch.tensor(probes, device=latents.device)[differs.int().argmax(1)]
        return torch.where(differs.any(1), rank, fallback)

    def _reproduces(self, latents: torch.Tensor, chunk: DecoderChunk) -> torch.Tensor:
        """Whether greedy decoding with latents `(entries, candidates, ...)` writes the outputs of the chunk."""
        same = []
        for part in latents.split(1, 1):
            rows, cols, cells = (logits.argmax(-1) for logits in self._logits(part, chunk))
            shape_same = (torch.stack([rows, cols], -1) == (chunk.shapes - 1).unsqueeze(1)).all(-1)
            cells_same = ((cells == chunk.colors.unsqueeze(1)) | ~chunk.real.unsqueeze(1)).all(-1)
            same.append(shape_same & cells_same)
        return torch.cat(same, 1)


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
