"""Collators: lists of examples to batches of tensors, with augmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .infilling_codegen2 import MaskLayout, MiddleLayout
from .objectives import IGNORE_INDEX, OBJECTIVES, check_label_policy, hidden_length, unit_parts, unlearned_ids
from .processing_lpn import LPNProcessor, mask_of_counts, pad_grids, stack_grids


SYMMETRIES = ("none", "rotations", "all")
ATTENTION = ("isolated", "isolated_4d", "joint")
OBJECTIVE_NUMBERS = {name: number for number, name in enumerate(OBJECTIVES)}


def apply_symmetry(grids: np.ndarray, shapes: np.ndarray, symmetry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Turns and mirrors grids that lie at the top-left of a common canvas, and puts them back there.

    Args:
        grids: `(batch, pairs, side, side)`, 0 outside the grids. The canvas is square, for turned grids to fit.
        shapes: `(batch, pairs, 2)`, (rows, cols) of each grid.
        symmetry: `(batch,)` int in 0..7, one per task: `symmetry % 4` clockwise quarter turns, after a left-right
            mirror if `symmetry >= 4`.

    Returns:
        The transformed grids and shapes, of the same sizes.
    """
    turns, mirrored = symmetry % 4, symmetry >= 4
    # Each of the eight is a transposition followed by reversals: one clockwise turn transposes, then reverses the
    # columns. A mirror before the turns reverses what becomes the rows if there is a transposition, else the columns.
    swap = turns % 2 == 1
    reverse_rows = (turns >= 2) ^ (mirrored & swap)
    reverse_cols = ((turns == 1) | (turns == 2)) ^ (mirrored & ~swap)
    grids, shapes = grids.copy(), np.where(swap[:, None, None], shapes[..., ::-1], shapes)
    grids[swap] = grids[swap].swapaxes(2, 3)
    for axis, chosen in ((2, reverse_rows), (3, reverse_cols)):
        # Reversing only the first `length` lines leaves the padding where it is, at the end.
        length = shapes[chosen, :, axis - 2, None]
        line = np.arange(grids.shape[axis])
        source = np.where(line < length, length - 1 - line, line)
        source = source[..., None] if axis == 2 else source[..., None, :]
        grids[chosen] = np.take_along_axis(grids[chosen], source, axis=axis)
    return grids, shapes


def draw_color_maps(seeds: Sequence[int], vocab_size: int = 10) -> np.ndarray:
    """Permutations of the colours with 0, the background, fixed: `(len(seeds), vocab_size)`, a new colour for every
    old one. Row i depends on `seeds[i]` only."""
    maps = np.zeros((len(seeds), vocab_size), dtype=np.uint8 if vocab_size <= 256 else np.int64)
    for row, seed in zip(maps, seeds):
        row[1:] = np.random.Generator(np.random.PCG64(seed)).permutation(vocab_size - 1) + 1
    return maps


@dataclass
class DataCollatorForGridTasks:
    """
    Batches grid tasks for [`LPNModel`], with augmentation. Takes items of a [`TaskStream`] and rows in ARC's JSON
    form, of which it uses the training pairs.

    One transform is drawn per task and shared by all its grids, so that the task stays one program; it depends on the
    item's `seed` only, so it is the same for any number of workers and processes. The symmetry is `seed % 8` for
    `symmetries="all"` and `seed % 4` for `"rotations"`: an odd seed exchanges rows and columns either way.

    Args:
        processor ([`LPNProcessor`]): Limits for the grids of rows, and the number of colours.
        num_pairs (`int`, *optional*): Keeps the first `num_pairs` pairs of every task. By default all are kept;
            `pair_mask` tells tasks with different numbers of pairs.
        symmetries (`str`, defaults to `"none"`): `"rotations"` for the four rotations (the official implementation),
            `"all"` for the eight rotations and reflections.
        permute_colors (`bool`, defaults to `False`): Permutes all colours but 0.

    Returns (when called): `dict` of `input_grids`, `output_grids` `(batch, pairs, rows, cols)` int64, `input_shapes`,
        `output_shapes` `(batch, pairs, 2)` int64 and `pair_mask` `(batch, pairs)` bool. The canvas is the largest grid
        of the batch.

    Raises:
        `ValueError`: bad arguments, an empty batch, a malformed row, or augmentation of an example without `seed`.
    """

    processor: LPNProcessor = field(default_factory=LPNProcessor)
    num_pairs: int | None = None
    symmetries: str = "none"
    permute_colors: bool = False

    def __post_init__(self):
        if self.symmetries not in SYMMETRIES:
            raise ValueError(f"`symmetries` is {self.symmetries!r}; give one of {', '.join(SYMMETRIES)}")
        if self.num_pairs is not None and (not isinstance(self.num_pairs, int) or self.num_pairs < 1):
            raise ValueError(
                f"`num_pairs` is {self.num_pairs!r}; give an integer of at least 1, or None for all pairs"
            )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not examples:
            raise ValueError("There are no examples to collate (an empty list); give at least one")
        items = [self._item(example, index) for index, example in enumerate(examples)]
        grids = {side: [item[f"{side}_grids"][: self.num_pairs] for item in items] for side in ("input", "output")}
        shapes = {side: [item[f"{side}_shapes"][: self.num_pairs] for item in items] for side in ("input", "output")}
        canvas = np.concatenate(shapes["input"] + shapes["output"]).max(axis=0)
        seeds = self._seeds(examples) if self.permute_colors or self.symmetries != "none" else None
        if self.symmetries != "none":
            canvas = np.repeat(canvas.max(), 2)
        padded = {side: pad_grids(grids[side], shapes[side], tuple(canvas)) for side in grids}
        self._check_limits(canvas, max(int(side_grids.max()) for side_grids, _ in padded.values()))
        if seeds is not None:
            padded = {side: self._augment(*padded[side], seeds) for side in padded}
        pair_mask = mask_of_counts([len(task) for task in shapes["input"]])
        rows, cols = np.max([side_shapes.max(axis=(0, 1)) for _, side_shapes in padded.values()], axis=0)
        batch = {}
        for name, index in (("grids", 0), ("shapes", 1)):
            for side in ("input", "output"):
                array = padded[side][index]
                array = array[:, :, :rows, :cols] if name == "grids" else array
                batch[f"{side}_{name}"] = torch.from_numpy(array.astype(np.int64))
        return {**batch, "pair_mask": torch.from_numpy(pair_mask)}

    def _item(self, example: Mapping[str, Any], index: int) -> Mapping[str, Any]:
        """The example as stacked arrays: stream items are that already, rows are validated first."""
        if "input_grids" in example:
            return example
        pairs = self.processor.validate_task(example, task_id=f"{index} of the batch", require_test=False)["train"]
        item = {}
        for side, grids in zip(("input", "output"), zip(*pairs)):
            item[f"{side}_grids"], item[f"{side}_shapes"] = stack_grids(grids)
        return item

    def _check_limits(self, canvas: np.ndarray, highest: int) -> None:
        """Stream items are not validated grid by grid, but a generator may be set up larger than the model."""
        limits = self.processor
        if canvas[0] > limits.max_rows or canvas[1] > limits.max_cols or highest >= limits.vocab_size:
            raise ValueError(
                f"The batch has grids of up to {canvas[0]} x {canvas[1]} cells and colours up to {highest}, over the"
                f" processor's {limits.max_rows} x {limits.max_cols} and {limits.vocab_size - 1}; generate smaller"
                " tasks, or use a processor (and model) with larger limits; turned grids need both sides"
            )

    def _seeds(self, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
        for example in examples:
            seed = example.get("seed")
            if not isinstance(seed, int | np.integer) or seed < 0:
                raise ValueError(
                    f"Task {example.get('task_id')!r} has seed {seed!r}, but augmentation is drawn from it; read tasks"
                    " through TaskStream, give rows an integer `seed` of at least 0, or turn augmentation off"
                )
        return np.array([example["seed"] for example in examples], dtype=np.int64)

    def _augment(self, grids: np.ndarray, shapes: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.symmetries != "none":
            grids, shapes = apply_symmetry(grids, shapes, seeds % (8 if self.symmetries == "all" else 4))
        if self.permute_colors:
            maps = draw_color_maps(seeds, self.processor.vocab_size)
            offsets = np.arange(len(maps))[:, None, None, None] * maps.shape[1]
            grids = maps.reshape(-1)[grids + offsets]
        return grids, shapes


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

    Returns:
        On call, a `dict[str, torch.Tensor]`: `input_ids` and `labels` `(batch, length)` long; `position_ids`,
        `(batch, length)`, or `attention_mask`, `(batch, 1, length, length)` float32, by `attention`.

    Raises:
        ValueError: for bad arguments, or examples that are not those of [`PackedSequences`] or [`StreamedSequences`].

    Example:

    ```python
    >>> from modeling_lpn import DataCollatorForCodeObjectives, DocumentStream, MaskLayout, ObjectiveMixture
    >>> from modeling_lpn import PackedSequences, TokenizedDocuments

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
        input_ids = np.empty(sizes.sum(), dtype=np.int64)
        parts = [part for unit in units for part in unit_parts(unit.token_ids, unit.plan, self.layout)]
        np.concatenate(parts, out=input_ids, casting="unsafe")
        batch = {"input_ids": input_ids, "labels": self._labels(input_ids, units, starts)}
        if self.attention != "joint":
            batch["position_ids"] = np.arange(len(input_ids)) - starts.repeat(sizes)
        blocks = self._blocks(len(input_ids), units, starts)
        if blocks is not None and self.attention != "isolated_4d":
            batch["block_sequence_ids"] = blocks
        segments = np.concatenate([np.arange(len(example["units"])) for example in examples]).repeat(sizes)
        if self.information:
            objectives = np.array([OBJECTIVE_NUMBERS[unit.plan.objective] for unit in units])
            batch |= {"objective_ids": objectives.repeat(sizes), "segment_ids": segments}
        if self.span_weight != 1:
            batch["loss_weights"] = self._weights(units)
        batch = {name: array.reshape(len(examples), -1) for name, array in batch.items()}
        if self.attention == "isolated_4d":
            blocks = None if blocks is None else blocks.reshape(len(examples), -1)
            batch["attention_mask"] = _additive_mask(segments.reshape(len(examples), -1), blocks)
        if self.information:
            batch["source_tokens"] = np.stack([example["source_tokens"] for example in examples])
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _labels(self, input_ids, units, starts):
        labels = input_ids.copy()
        np.putmask(labels, self._unlearned.take(input_ids, mode="clip"), IGNORE_INDEX)
        if self.attention != "joint":
            labels[starts] = IGNORE_INDEX  # nothing precedes a file's first token where files are isolated
        if self.labels == "targets_only" or any(unit.plan.prefix_length for unit in units):
            for unit, start in zip(units, starts.tolist()):
                labels[start : start + hidden_length(unit.plan, self.layout, self.labels)] = IGNORE_INDEX
        return labels

    @staticmethod
    def _blocks(length, units, starts):
        """Numbers of the prefixes that are read in both directions and -1 elsewhere; `None` without any."""
        if not any(unit.plan.prefix_length for unit in units):
            return None
        blocks = np.full(length, -1)
        for number, (unit, start) in enumerate(zip(units, starts.tolist())):
            blocks[start : start + unit.plan.prefix_length] = number
        return blocks

    def _weights(self, units):
        """Weights of the labels."""
        weights = []
        for unit in units:
            before = hidden_length(unit.plan, self.layout, "targets_only") if unit.plan.starts else unit.plan.size
            weights += [np.ones(before, np.float32), np.full(unit.plan.size - before, self.span_weight, np.float32)]
        return np.concatenate(weights)


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


__all__ = [
    "DataCollatorForCodeObjectives",
    "DataCollatorForGridTasks",
    "apply_symmetry",
    "draw_color_maps",
    "explain",
]
