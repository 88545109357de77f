"""The collator of code models, and training examples as text."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..codegen2.infilling_codegen2 import MaskLayout, MiddleLayout
from .horizon import NO_HORIZON
from .objectives import (
    IGNORE_INDEX,
    ObjectiveMixture,
    PrefixLM,
    check_label_policy,
    hidden_length,
    join_units,
    objective_numbers,
    unlearned_ids,
)


ATTENTION = ("isolated", "isolated_4d", "joint")


@dataclass
class DataCollatorForCodeObjectives:
    """
    Turns planned sequences into a batch: their files packed, corrupted and labelled (CodeGen2, arXiv 2305.02309,
    section 3).

    Args:
        layout ([`MaskLayout`] or [`MiddleLayout`]):
            The sentinels, see [`infill_layout`]; that of the sequences.
        attention (`str`, defaults to `"isolated"`):
            `"isolated"`: the files of a sequence do not see each other, by `position_ids` that start again (and
            `block_sequence_ids` for prefix-LM); [`CodeGen2ForCausalLM`] keeps them apart in every setting, other
            models only with `use_cache=False`. `"isolated_4d"`: the same by an additive mask, which models with
            `eager` or `sdpa` attention take as it is. `"joint"`: later files see earlier ones, as far as is known the
            way CodeGen2 was trained; the paper does not say.
        labels (`str`, defaults to `"no_sentinels"`):
            `"no_sentinels"`, `"all"` or `"targets_only"`, see [`unit_labels`].
        span_weight (`float`, defaults to 1.0):
            How often what was masked, each span with its `<eom>`, counts in the loss; other than 1 the batch has
            `loss_weights`, for [`CodeTrainer`].
        information (`bool`, defaults to `False`):
            Whether to add `objective_ids` and `segment_ids`, `(batch, length)`, and `source_tokens`,
            `(batch, sources)`, the tokens of each source so far, which [`CodeTrainer`] takes out again.
        horizon (`bool`, defaults to `False`):
            Whether to add `horizons`, `(batch, length)` float32, for [`HorizonHead`]: behind the t-th of the M tokens of a
            masked span (M - t) / M, and -1 at all other tokens.

    Returns:
        On call, a `dict[str, torch.Tensor]`: `input_ids` and `labels` `(batch, length)` long; `position_ids`,
        `(batch, length)`, or `attention_mask`, `(batch, 1, length, length)` float32, by `attention`.

    Raises:
        ValueError: for bad arguments, or examples that are not those of [`PackedSequences`] or [`StreamedSequences`].

    Example:

    ```python
    >>> from modeling_lpn import DataCollatorForCodeObjectives, DocumentStream, ObjectiveMixture
    >>> from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout
    >>> from modeling_lpn import PackedSequences
    >>> from modeling_lpn.code.packing import TokenizedDocuments

    >>> layout = MaskLayout(masks=(99, 98, 97), separator=90, end_of_span=91, end_of_text=92)
    >>> stream = DocumentStream({"code": TokenizedDocuments.from_lists([range(12), range(60)])}, shuffle=False)
    >>> sequences = PackedSequences(stream, ObjectiveMixture.from_preset("causal"), layout, max_length=16)
    >>> batch = DataCollatorForCodeObjectives(layout)([sequences[0]])
    >>> batch["input_ids"].tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 92, 0, 1, 2]]
    >>> batch["position_ids"].tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2]]

    ```
    """

    layout: MaskLayout | MiddleLayout
    attention: str = "isolated"
    labels: str = "no_sentinels"
    span_weight: float = 1.0
    information: bool = False
    horizon: bool = False

    def __post_init__(self):
        check_label_policy(self.labels)
        if self.attention not in ATTENTION:
            raise ValueError(f"`attention` is {self.attention!r}; give one of {', '.join(ATTENTION)}.")
        if not self.span_weight > 0:
            raise ValueError(f"`span_weight` is {self.span_weight}; give a number above 0, 1 for equal tokens.")
        unlearned = unlearned_ids(self.layout) if self.labels != "all" else []
        self._unlearned = np.zeros(max(self.layout.control_ids) + 2, dtype=bool)  # the last entry: any larger id
        self._unlearned[unlearned] = True

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not examples or "units" not in examples[0]:
            found = sorted(examples[0]) if examples else "no examples"
            raise ValueError(
                f"The collator got {found}, not planned sequences; wrap tokenised files in PackedSequences, which "
                "decides what every sequence holds."
            )
        units = [unit for example in examples for unit in example["units"]]
        sizes = np.array([unit.plan.size for unit in units])
        starts = sizes.cumsum() - sizes
        # All sequences at once, as one long row.
        input_ids = join_units([unit.token_ids for unit in units], [unit.plan for unit in units], self.layout)
        batch = {"input_ids": input_ids, "labels": self._labels(input_ids, units, starts)}
        if self.attention != "joint":
            # Copied pieces take a third of the time of arithmetic on the whole row.
            counted = np.arange(sizes.max())
            pieces = [counted[:size] for size in sizes.tolist()]
            batch["position_ids"] = np.concatenate(pieces, out=_apart(len(input_ids)))
        blocks = self._blocks(len(input_ids), units, starts)
        if blocks is not None and self.attention != "isolated_4d":
            batch["block_sequence_ids"] = blocks
        if self.information or self.attention == "isolated_4d":
            numbers = [number for example in examples for number in range(len(example["units"]))]
            segments = np.array(numbers).repeat(sizes)
        if self.information:
            numbers = objective_numbers()
            objectives = np.array([numbers[unit.plan.objective] for unit in units])
            batch |= {"objective_ids": objectives.repeat(sizes), "segment_ids": segments}
        if self.span_weight != 1:
            batch["loss_weights"] = self._weights(units)
        if self.horizon:
            batch["horizons"] = self._horizons(units, starts)
        batch = {name: array.reshape(len(examples), -1) for name, array in batch.items()}
        if self.attention == "isolated_4d":
            blocks = None if blocks is None else blocks.reshape(len(examples), -1)
            batch["attention_mask"] = _additive_mask(segments.reshape(len(examples), -1), blocks)
        if self.information:
            batch["source_tokens"] = np.array([example["source_tokens"] for example in examples])
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _labels(self, input_ids, units, starts):
        labels = _apart(len(input_ids))
        labels[:] = input_ids
        np.copyto(labels, IGNORE_INDEX, where=self._unlearned.take(input_ids, mode="clip"))
        if self.attention != "joint":
            labels[starts] = IGNORE_INDEX  # nothing precedes a file's first token where files are isolated
        if self.labels == "targets_only" or any(unit.plan.prefix_length for unit in units):
            for unit, start in zip(units, starts.tolist(), strict=True):
                labels[start : start + hidden_length(unit.plan, self.layout, self.labels)] = IGNORE_INDEX
        return labels

    @staticmethod
    def _blocks(length, units, starts):
        """Numbers of the prefixes that are read in both directions and -1 elsewhere; `None` without any."""
        if not any(unit.plan.prefix_length for unit in units):
            return None
        blocks = np.full(length, -1)
        for number, (unit, start) in enumerate(zip(units, starts.tolist(), strict=True)):
            blocks[start : start + unit.plan.prefix_length] = number
        return blocks

    def _horizons(self, units, starts):
        """The share of its span that is still to come behind every token of one."""
        horizons = np.full(sum(unit.plan.size for unit in units), NO_HORIZON, np.float32)
        before, between = (1, 2) if isinstance(self.layout, MaskLayout) else (0, 0)  # a mask; `<eom>` and the next one
        for unit, start in zip(units, starts.tolist(), strict=True):
            if not unit.plan.starts:
                continue
            at = start + hidden_length(unit.plan, self.layout, "targets_only") + before
            for length in unit.plan.lengths:
                horizons[at : at + length] = np.arange(length - 1, -1, -1) / length
                at += length + between
        return horizons

    def _weights(self, units):
        """Weights of the labels."""
        weights = []
        for unit in units:
            before = hidden_length(unit.plan, self.layout, "targets_only") if unit.plan.starts else unit.plan.size
            weights += [np.ones(before, np.float32), np.full(unit.plan.size - before, self.span_weight, np.float32)]
        return np.concatenate(weights)


def _apart(length: int) -> np.ndarray:
    """
    An int64 array to copy another one into. Arrays of whole pages, as batches are, begin 16 bytes apart within their pages, where
    a processor takes each load of a copy for one of the store before it and waits: 12 times as slow. 256 bytes more end that.
    """
    return np.empty(length + 32, np.int64)[:length]


def check_attention(model, attention: str, mixture: ObjectiveMixture) -> None:
    """
    Refuses what a model would not read of the collator's batches, and train otherwise than asked for.

    Args:
        model (`PreTrainedModel` or `PeftModel`): any causal language model.
        attention (`str`): see [`DataCollatorForCodeObjectives`].
        mixture ([`ObjectiveMixture`]): what is trained.

    Raises:
        ValueError: for prefix-LM with a model that takes no blocks, isolation by positions with one that takes none, and
            a 4-D mask with a sliding window or an attention that takes none.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    known, name = inspect.signature(base.forward).parameters, type(base).__name__
    config = base.config.get_text_config()
    fault = None
    if attention == "isolated_4d":
        windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if windows:
            fault = f"{name} has layers with a sliding window, whose place a 4-D mask would take; use `attention` 'isolated'"
        elif config._attn_implementation not in ("sdpa", "eager"):
            fault = f"{config._attn_implementation!r} takes no 4-D mask; set `attn_implementation` to sdpa or eager"
    elif "block_sequence_ids" not in known and any(isinstance(kind, PrefixLM) for kind in mixture.objectives):
        fault = f"{name} takes no `block_sequence_ids`, so prefix-LM would be causal; use `attention` 'isolated_4d'"
    elif attention == "isolated" and "position_ids" not in known:
        fault = f"{name} takes no `position_ids`, so packed files would see each other; use `attention` 'isolated_4d'"
    if fault:
        raise ValueError(f"{fault}.")


def _additive_mask(segments: np.ndarray, blocks: np.ndarray | None) -> np.ndarray:
    """0 where a query may look and the lowest float32 elsewhere, `(batch, 1, length, length)`."""
    length = segments.shape[1]
    allowed = np.tril(np.ones((length, length), dtype=bool))[None]
    if blocks is not None:
        allowed = allowed | ((blocks[:, :, None] == blocks[:, None]) & (blocks[:, None] >= 0))
    allowed = allowed & (segments[:, :, None] == segments[:, None])
    return np.where(allowed, np.float32(0), np.finfo(np.float32).min)[:, None]


# SGR codes of a terminal: source, span, sentinel, token without a label.
_STYLES = {"source": "", "span": "32", "sentinel": "1;36", "unlearned": "2"}


def explain(example: Mapping[str, Any], tokenizer, layout, labels: str = "no_sentinels", color: bool = True) -> str:
    """
    A training example as text: for each file its objective, spans and labels, then what the model reads.

    Args:
        example (`dict`): an item of [`PackedSequences`] or [`StreamedSequences`].
        tokenizer (`PreTrainedTokenizerBase`): decodes the tokens.
        layout ([`MaskLayout`] or [`MiddleLayout`]): that of the sequences.
        labels (`str`, defaults to `"no_sentinels"`): the label policy to show.
        color (`bool`, defaults to `True`): whether to use a terminal's colours: spans green, sentinels cyan, tokens
            without a label dim. Without colours these stand in `⟦spans⟧`, as they are, and in `{braces}`.

    Returns:
        `str`: ready to print.
    """
    collator = DataCollatorForCodeObjectives(layout, labels=labels)
    batch = {name: tensor[0].numpy() for name, tensor in collator([example]).items()}
    lines, start = [f"sequence {example['index']}: {len(batch['input_ids'])} tokens"], 0
    for number, unit in enumerate(example["units"], start=1):
        plan, part = unit.plan, slice(start, start + unit.plan.size)
        learned = batch["labels"][part] != IGNORE_INDEX
        facts = f"{plan.objective}, file {unit.document} from token {unit.offset}, {plan.taken} of its tokens"
        if plan.starts:
            masked = sum(plan.lengths)
            facts += f", {len(plan.starts)} spans, {100 * masked / max(plan.taken, 1):.0f} % masked"
        if plan.prefix_length:
            facts += f", {plan.prefix_length} read in both directions"
        lines.append(f"-- unit {number}: {facts}; {100 * learned.mean():.0f} % of {plan.size} tokens have a label")
        lines.append(_painted(batch["input_ids"][part], learned, plan, tokenizer, layout, color))
        start += plan.size
    return "\n".join(lines)


def _painted(ids, learned, plan, tokenizer, layout, color):
    control = np.isin(ids, sorted(layout.control_ids))
    in_span = np.zeros(len(ids), dtype=bool)
    if plan.starts:
        in_span[hidden_length(plan, layout, "targets_only") :] = True
    kinds = np.select([control, ~learned, in_span], ["sentinel", "unlearned", "span"], "source")
    texts, begin = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or kinds[end] != kinds[begin]:
            texts.append(_styled(tokenizer.decode(ids[begin:end]), kinds[begin], color))
            begin = end
    return "".join(texts)


def _styled(text, kind, color):
    if color:
        return f"\033[{_STYLES[kind]}m{text}\033[0m" if _STYLES[kind] else text
    return {"span": f"⟦{text}⟧", "unlearned": f"{{{text}}}"}.get(kind, text)


__all__ = ["DataCollatorForCodeObjectives", "check_attention", "explain"]
