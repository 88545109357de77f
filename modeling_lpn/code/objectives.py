"""Training objectives of code models on token ids: causal, span corruption, infilling, prefix-LM, and mixtures of them
(CodeGen2, arXiv 2305.02309, section 3; InCoder, arXiv 2204.05999; FIM, arXiv 2207.14255; UL2, arXiv 2205.05131).

An objective first *plans* a unit, the part of a file that it trains on (how many source tokens fit, which of them are
masked), then [`join_units`] builds its token ids; both are pure functions of their arguments and of a generator.
"""

import difflib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, pairwise

import numpy as np

from ..codegen2.infilling_codegen2 import MaskLayout, MiddleLayout
from .spans import SyntaxSplitter
from .token_splitter import TokenSplitter


LABEL_POLICIES = ("no_sentinels", "all", "targets_only")
IGNORE_INDEX = -100
MIN_LENGTH = 4  # shorter pieces of a file are trained causally
FEW = 8  # numbers that Python chooses faster than numpy
SPARE = 12  # random numbers drawn for those that come twice


def _check_range(name, shares):
    if len(shares) != 2 or not 0 <= shares[0] <= shares[1] <= 1:
        raise ValueError(f"`{name}` is {shares}; give two shares with 0 <= low <= high <= 1.")


# Two or more for every sequence, and kept until it is asked for: a frozen one takes four times as long to make.
@dataclass(slots=True)
class UnitPlan:
    """
    What an objective does with the next tokens of a file.

    Args:
        objective (`str`): key of `OBJECTIVES`; a piece too short for its objective is planned as `"causal"`.
        taken (`int`): number of source tokens of the unit; the rest of the file is left for the next one.
        size (`int`): number of tokens of the unit, sentinels included.
        starts, lengths (sequences of `int`, one each for every span): the masked spans, in tokens of the source; lists, or
            an `array.array` where they are many.
        ends (`bool`): whether an end of text is the last token.
        prefix_length (`int`): leading tokens that see each other in both directions (prefix-LM).
        suffix_first (`bool`): whether an infilling unit is in SPM order.
        source (`numpy.ndarray`, *optional*): ids that stand for the source where a cut lies within a token.
    """

    objective: str
    taken: int
    size: int
    starts: Sequence[int] = ()
    lengths: Sequence[int] = ()
    ends: bool = False
    prefix_length: int = 0
    suffix_first: bool = False
    source: np.ndarray | None = None


class Objective:
    """
    Base of the objectives: an instance holds the settings and is called as a pure function. A subclass has a `name` and
    `plan(token_ids, room, rng, layout, opens_sequence=False)`, which returns a [`UnitPlan`] of at most `room` tokens.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_lpn.code.objectives import OBJECTIVES
    >>> from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout

    >>> layout = MaskLayout(masks=(99, 98, 97), separator=90, end_of_span=91, end_of_text=92)
    >>> for name, objective in OBJECTIVES.items():
    ...     unit = objective()([1, 2, 3, 4, 5], np.random.default_rng(0), layout)
    ...     print(f"{name:15s}", unit["input_ids"].tolist())
    causal          [1, 2, 3, 4, 5, 92]
    span_corruption [99, 2, 98, 4, 97, 92, 90, 99, 1, 91, 98, 3, 91, 97, 5, 91, 92]
    infill          [1, 2, 3, 99, 92, 90, 99, 4, 5, 91, 92]
    prefix_lm       [1, 2, 3, 4, 5, 92]
    >>> unit["labels"].tolist()  # of the last one, whose prefix is read in both directions
    [-100, -100, 3, 4, 5, 92]
    >>> layout.restore([99, 2, 98, 4, 97, 92, 90, 99, 1, 91, 98, 3, 91, 97, 5, 91, 92])
    [1, 2, 3, 4, 5]

    ```
    """

    name: str

    def __call__(self, token_ids, rng, layout, room: int | None = None, labels: str = "no_sentinels") -> dict:
        """
        Trains on one file, or on as much of it as fits.

        Args:
            token_ids (`Sequence[int]` or `numpy.ndarray` of shape `(tokens,)`): the file, without any control token.
            rng (`numpy.random.Generator`): source of all randomness.
            layout ([`MaskLayout`] or [`MiddleLayout`]): the sentinels' ids, see [`infill_layout`].
            room (`int`, *optional*): number of tokens the unit may have; by default the file need not be cut.
            labels (`str`, defaults to `"no_sentinels"`): see [`unit_labels`].

        Returns:
            `dict`: `input_ids` and `labels`, int64 arrays of shape `(size,)`, and the `plan`.

        Raises:
            ValueError: for a file that holds control tokens, no tokens, no room, or an unknown `labels`.
        """
        token_ids = np.asarray(token_ids)
        check_source(token_ids, layout)
        room = 8 * len(token_ids) + 64 if room is None else room  # more than any objective's sentinels
        if len(token_ids) == 0 or room < 1:
            raise ValueError(f"{len(token_ids)} tokens and `room` {room}; a unit needs at least one of both.")
        plan = self.plan(token_ids, room, rng, layout)
        input_ids = join_units([token_ids], [plan], layout)
        return {"input_ids": input_ids, "labels": unit_labels(input_ids, plan, layout, labels), "plan": plan}

    def _piece(self, token_ids, most, rng, opens_sequence) -> int:
        """Number of tokens to take of a file of which only `most` fit: a random share of those to open a sequence."""
        if len(token_ids) <= most or not opens_sequence:
            return min(len(token_ids), most)
        low, high = self.cut_ratio
        return max(round(most * (low + (high - low) * rng.random())), min(self.min_length, most))


@dataclass(frozen=True)
class Causal(Objective):
    """Next-token prediction: the file, then the end of text."""

    name = "causal"

    def plan(self, token_ids, room, rng, layout, opens_sequence=False) -> UnitPlan:
        taken = min(len(token_ids), room)
        # A file that ends exactly where the room does goes without its end of text: no token of a sequence is wasted.
        ends = taken == len(token_ids) and taken < room
        return UnitPlan(self.name, taken, taken + ends, ends=ends)


class SpanLaw:
    """
    How spans are drawn: `draw(num_tokens, max_spans, rng)` gives the borders between them, 0 and the number of masked tokens
    included, where they lie one behind the other; `place(borders, num_tokens, rng)` gives starts and lengths in the source, in
    order, not empty and never touching.
    """

    mask_ratio: tuple[float, float]

    def _masked(self, num_tokens: int, rng) -> int:
        low, high = self.mask_ratio
        return min(max(round(num_tokens * (low + (high - low) * rng.random())), 1), num_tokens - 1)

    def place(self, borders, num_tokens: int, rng):
        # Distinct gaps between the visible tokens, the two ends included: at least one of them between two spans.
        count = len(borders) - 1
        slots = _choose(num_tokens - int(borders[-1]) + 1, count, rng)
        if count > FEW:
            borders = np.asarray(borders)
            return _compact(slots + borders[:-1]), _compact(borders[1:] - borders[:-1])
        borders = borders.tolist() if isinstance(borders, np.ndarray) else borders
        starts = [slot + before for slot, before in zip(map(int, slots), borders[:-1], strict=True)]
        return starts, [end - start for start, end in pairwise(borders)]


@dataclass(frozen=True)
class UniformSpans(SpanLaw):
    """A uniform share is masked, in spans of uniform lengths (CodeGen2)."""

    mask_ratio: tuple[float, float]
    span_length: tuple[int, int | None]

    def __post_init__(self):
        _check_range("mask_ratio", self.mask_ratio)
        low, high = self.span_length if len(self.span_length) == 2 else (0, 0)
        if low < 1 or (high is not None and high < low):
            raise ValueError(f"`span_length` is {self.span_length}; give two lengths with 1 <= low <= high.")

    def draw(self, num_tokens: int, max_spans: int, rng):
        masked = self._masked(num_tokens, rng)
        most = min(max_spans, masked, num_tokens - masked + 1)
        shortest, longest = self.span_length
        longest = masked if longest is None else min(longest, masked)
        shortest = min(shortest, longest)
        lengths, total = [], 0
        while total < masked and len(lengths) <= most:
            for number in rng.random(4 + masked // (shortest + longest)).tolist():
                lengths.append(shortest + int(number * (longest - shortest + 1)))
                total += lengths[-1]
                if total >= masked:
                    break
        if len(lengths) > most:
            return _composition(masked, most, rng)
        lengths[-1] -= total - masked
        other = int(rng.random() * len(lengths))  # the one that was cut must not always be the last
        lengths[-1], lengths[other] = lengths[other], lengths[-1]
        return list(accumulate(lengths, initial=0))


@dataclass(frozen=True)
class MeanSpans(SpanLaw):
    """A uniform share is masked, in as many spans of random lengths as give the mean length (T5, UL2)."""

    mask_ratio: tuple[float, float]
    mean_span_length: float

    def __post_init__(self):
        _check_range("mask_ratio", self.mask_ratio)
        if not self.mean_span_length >= 1:
            raise ValueError(f"`mean_span_length` is {self.mean_span_length}; give 1 token or more.")

    def draw(self, num_tokens: int, max_spans: int, rng):
        masked = self._masked(num_tokens, rng)
        most = min(max_spans, masked, num_tokens - masked + 1)
        return _composition(masked, min(max(round(masked / self.mean_span_length), 1), most), rng)


@dataclass(frozen=True)
class PoissonSpans(SpanLaw):
    """A Poisson number of spans, zero excluded, all of whose borders are uniform (InCoder, section 2.1)."""

    rate: float

    def __post_init__(self):
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"`poisson_spans` is {self.rate}; give a positive rate.")

    def draw(self, num_tokens: int, max_spans: int, rng):
        """One token for each span: the real lengths are drawn with the places."""
        spans = 0
        while spans == 0:
            spans = int(rng.poisson(self.rate))
        spans = min(spans, max_spans, 256, num_tokens // 2)
        return range(spans + 1)

    def place(self, borders, num_tokens: int, rng):
        borders = [int(border) for border in _choose(num_tokens + 1, 2 * (len(borders) - 1), rng)]
        if borders == [0, num_tokens]:
            borders[1] -= 1  # something has to be visible
        return borders[0::2], [end - start for start, end in zip(borders[0::2], borders[1::2], strict=True)]


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """
    File-level span corruption (CodeGen2, section 3.2): a share of the file is masked in spans, each replaced by
    `<mask_i>`; behind the end of text and `<sep>` every mask is followed by its span and `<eom>`.

    First the exact number of masked tokens is drawn, then lengths of spans that sum to it, then distinct places among
    the visible tokens, so that spans never touch and every arrangement is equally likely. The paper does not give the
    ranges of its uniform distributions; the defaults are the ones without a free parameter.

    Args:
        mask_ratio (`tuple[float, float]`, defaults to `(0.0, 1.0)`): range of the uniform share of masked tokens.
        span_length (`tuple[int, int | None]`, defaults to `(1, None)`): range of the uniform span lengths; `None` is
            the number of masked tokens.
        mean_span_length (`float`, *optional*): instead of `span_length`, there are `masked / mean_span_length` spans of random lengths
            (T5, UL2) instead.
        poisson_spans (`float`, *optional*): if given, the number of spans is Poisson with this rate, zero excluded,
            and all their borders are uniform (InCoder, section 2.1); `mask_ratio` and the lengths are then refused.
        max_spans (`int`, *optional*): most spans of a unit; the number of mask tokens is a limit in any case.
        final_end_of_text (`bool`, defaults to `True`): whether the end of text follows the last span.
        min_length (`int`, defaults to 4): shorter files, or pieces of them, are trained causally.
        cut_ratio (`tuple[float, float]`, defaults to `(0.5, 1.0)`): where a file does not fit into a whole sequence, the
            range of the uniform share that is taken of what would. With `(1.0, 1.0)` units begin and end where their
            sequences do, and a model learns to end its spans by counting, which fails at inference.
        splitter ([`SyntaxSplitter`], *optional*): takes of the drawn spans the parts of the syntax that lie in them, see
            [`SyntaxSplitter.shrink`]; what was drawn is then the most that is masked.
    """

    mask_ratio: tuple[float, float] | None = None
    span_length: tuple[int, int | None] | None = None
    mean_span_length: float | None = None
    poisson_spans: float | None = None
    max_spans: int | None = None
    final_end_of_text: bool = True
    min_length: int = MIN_LENGTH
    cut_ratio: tuple[float, float] = (0.5, 1.0)
    splitter: SyntaxSplitter | None = None
    name = "span_corruption"

    def __post_init__(self):
        _check_range("cut_ratio", self.cut_ratio)
        if self.max_spans is not None and self.max_spans < 1:
            raise ValueError(f"`max_spans` is {self.max_spans}; give 1 or more, or leave it out for no limit.")
        given = [name for name in ("mask_ratio", "span_length", "mean_span_length") if getattr(self, name) is not None]
        if self.poisson_spans is not None and given:
            raise ValueError(
                f"`poisson_spans` draws all borders of the spans, so `{given[0]}` would have no effect; give one of the two."
            )
        if self.mean_span_length is not None and self.span_length is not None:
            raise ValueError(
                "`mean_span_length` draws random lengths, so `span_length` would have no effect; give one of the two."
            )
        if self.splitter is not None and not isinstance(self.splitter, SyntaxSplitter):
            raise ValueError(
                f"`splitter` is a {type(self.splitter).__name__}, but the spans of a file lie between tokens; give a "
                "SyntaxSplitter, or leave it out for random spans."
            )
        object.__setattr__(self, "_law", self._make_law())

    def _make_law(self) -> "UniformSpans | MeanSpans | PoissonSpans":
        if self.poisson_spans is not None:
            return PoissonSpans(self.poisson_spans)
        mask_ratio = (0.0, 1.0) if self.mask_ratio is None else self.mask_ratio
        if self.mean_span_length is not None:
            return MeanSpans(mask_ratio, self.mean_span_length)
        return UniformSpans(mask_ratio, (1, None) if self.span_length is None else self.span_length)

    def plan(self, token_ids, room, rng, layout, opens_sequence=False) -> UnitPlan:
        _require_masks(layout, self.name)
        fixed = layout.overhead(0) + self.final_end_of_text
        taken = self._piece(token_ids, room - 3 - fixed, rng, opens_sequence)
        if taken < self.min_length:
            return CAUSAL.plan(token_ids, room, rng, layout)
        draw = self._law.draw
        most = min(layout.max_holes, self.max_spans or layout.max_holes)
        borders = draw(taken, most, rng)
        spans = len(borders) - 1
        # The piece is made to fit before anything is placed, never cut afterwards: every span keeps its <eom>.
        fitting = min(taken, room - fixed - 3 * spans)
        if fitting < max(self.min_length, borders[-1] + spans - 1):
            fitting = room - fixed - 3 * spans
            if fitting < max(self.min_length, 2 * spans):
                fitting, most = taken, 1
            borders = draw(fitting, min(most, spans), rng)
        starts, lengths = self._law.place(borders, fitting, rng)
        if self.splitter is not None:
            starts, lengths = self.splitter.shrink(token_ids[:fitting], starts, lengths, rng)
        size = fitting + 3 * len(starts) + fixed
        return UnitPlan(self.name, fitting, size, starts, lengths, ends=self.final_end_of_text)


@dataclass(frozen=True)
class Infill(Objective):
    """
    One hole between two uniform cut points (FIM): prefix, suffix, then the middle. Any of the three may be empty.

    With a [`MaskLayout`] this is CodeGen2's own infilling sequence with one mask; with a [`MiddleLayout`] the order is
    prefix-suffix-middle (PSM) or, in a share of the units, suffix-prefix-middle (SPM, variant 2 of FIM, section 4.3);
    families that know one order only (Seed-Coder, Codestral) have it in every unit.

    Args:
        suffix_first_rate (`float`, *optional*): share of SPM units; 0.5 (FIM) where the layout knows both orders.
        splitter ([`TokenSplitter`], *optional*): draws the cut points uniformly over characters, as FIM does, and
            encodes what a cut leaves of a token anew. Without it the cuts lie between tokens.
        final_end_of_text (`bool`, defaults to `True`): whether the end of text follows `<eom>`.
        min_length, cut_ratio: see [`SpanCorruption`].
    """

    suffix_first_rate: float | None = None
    splitter: TokenSplitter | None = None
    final_end_of_text: bool = True
    min_length: int = MIN_LENGTH
    cut_ratio: tuple[float, float] = (0.5, 1.0)
    name = "infill"

    def __post_init__(self):
        _check_range("cut_ratio", self.cut_ratio)
        if self.suffix_first_rate is not None and not 0 <= self.suffix_first_rate <= 1:
            raise ValueError(f"`suffix_first_rate` is {self.suffix_first_rate}; give a share in [0, 1].")

    def plan(self, token_ids, room, rng, layout, opens_sequence=False) -> UnitPlan:
        rate = self.suffix_first_rate
        if isinstance(layout, MiddleLayout) and not self.final_end_of_text:
            raise ValueError(
                "`final_end_of_text` is False, but a span of a fill-in-the-middle format always ends in its stop; leave "
                "it out."
            )
        if isinstance(layout, MaskLayout) and rate:
            raise ValueError(
                f"`suffix_first_rate` is {rate}, but numbered masks have no suffix-first order; use a format with "
                "fill-in-the-middle tokens, or leave it out."
            )
        if isinstance(layout, MiddleLayout):
            rate = self._suffix_first_rate(layout)
        ends = self.final_end_of_text
        overhead = layout.overhead(1) + (ends and isinstance(layout, MaskLayout))
        taken = self._piece(token_ids, room - overhead, rng, opens_sequence)
        if taken < self.min_length:
            return CAUSAL.plan(token_ids, room, rng, layout)
        suffix_first = bool(rate) and rng.random() < rate
        if self.splitter is None:
            source, length = None, taken
            start, end = sorted(rng.integers(0, taken + 1, 2).tolist())
        else:
            cut = self.splitter.cut(token_ids, taken, room - overhead, rng)
            if cut is None:
                return CAUSAL.plan(token_ids, room, rng, layout)
            taken, source, (start, end) = cut
            length = len(source)
        size = length + overhead
        return UnitPlan(self.name, taken, size, [start], [end - start], ends, 0, suffix_first, source)

    def _suffix_first_rate(self, layout: MiddleLayout) -> float:
        rate, orders = self.suffix_first_rate, layout.orders
        if len(orders) == 2:
            return 0.5 if rate is None else rate
        only = float(True in orders)
        if rate not in (None, only):
            raise ValueError(
                f"`suffix_first_rate` is {rate}, but the family knows the order {layout.order!r} only; leave it out."
            )
        return only


@dataclass(frozen=True)
class PrefixLM(Objective):
    """
    The first part of the file is read in both directions, the rest predicted (T5's prefix-LM; UL2's S-denoiser).

    Args:
        target_ratio (`tuple[float, float]`, defaults to `(0.0, 1.0)`): range of the uniform share of predicted tokens;
            `(0.0, 0.5)` has UL2's mean of 0.25.
        min_length (`int`, defaults to 4): shorter files, or pieces of them, are trained causally.
    """

    target_ratio: tuple[float, float] = (0.0, 1.0)
    min_length: int = MIN_LENGTH
    name = "prefix_lm"

    def __post_init__(self):
        _check_range("target_ratio", self.target_ratio)

    def plan(self, token_ids, room, rng, layout, opens_sequence=False) -> UnitPlan:
        plan = CAUSAL.plan(token_ids, room, rng, layout)
        if plan.taken < self.min_length:
            return plan
        low, high = self.target_ratio
        targets = round(plan.taken * (low + (high - low) * rng.random()))
        prefix = plan.taken - min(max(targets, 1), plan.taken - 1)
        return UnitPlan(self.name, plan.taken, plan.size, ends=plan.ends, prefix_length=prefix)


OBJECTIVES = {kind.name: kind for kind in (Causal, SpanCorruption, Infill, PrefixLM)}
CAUSAL = Causal()


def objective_numbers() -> dict[str, int]:
    """A number for every objective of the registry, as it is now."""
    return {name: number for number, name in enumerate(OBJECTIVES)}


@dataclass(frozen=True)
class ObjectiveMixture:
    """
    A weighted choice of objectives (CodeGen2, section 3.3: causal and span corruption with equal probability).

    Args:
        objectives (`tuple[Objective, ...]`): what may be drawn.
        weights (`tuple[float, ...]`, *optional*): their probabilities up to a factor; equal if not given.
        per (`str`, defaults to `"sequence"`): one draw for each `"sequence"`, as in the paper, or each `"document"`.

    Raises:
        ValueError: for no objectives, weights that do not belong to them, or another `per`.

    Example:

    ```python
    >>> from modeling_lpn.code.objectives import OBJECTIVES
    >>> from modeling_lpn import ObjectiveMixture

    >>> mixture = ObjectiveMixture((OBJECTIVES["causal"](), OBJECTIVES["infill"]()), weights=(0.1, 0.9))
    >>> [objective.name for objective in ObjectiveMixture.from_preset("codegen2").objectives]
    ['causal', 'span_corruption']

    ```
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...] | None = None
    per: str = "sequence"
    _bounds: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        weights = np.ones(len(self.objectives)) if self.weights is None else np.array(self.weights, dtype=float)
        if len(weights) != len(self.objectives) or not len(weights) or weights.min() < 0 or weights.sum() <= 0:
            raise ValueError(
                f"{len(self.objectives)} objectives have the weights {self.weights}; give each one a weight of at "
                "least 0, and one of them more."
            )
        if self.per not in ("sequence", "document"):
            raise ValueError(f"`per` is {self.per!r}; give 'sequence' (one objective for each) or 'document'.")
        object.__setattr__(self, "_bounds", (weights.cumsum() / weights.sum()).tolist())

    @classmethod
    def from_preset(cls, name: str, per: str = "sequence", **settings) -> "ObjectiveMixture":
        """
        The mixture of a paper, or a variant of it.

        Args:
            name (`str`): a key of `PRESETS`.
            per (`str`, defaults to `"sequence"`): see the class.
            settings: arguments of its objectives to change, with the objective's name before them:
                `span_corruption_mask_ratio`, `infill_splitter`. The preset `"fim"` also has them by the names of Megatron
                and StarCoder: `fim_rate`, the share of infilling, and `fim_spm_rate`, which is `infill_suffix_first_rate`.

        Raises:
            ValueError: for an unknown name, or a setting that none of its objectives has; the nearest is named.

        Example:

        ```python
        >>> from modeling_lpn import ObjectiveMixture

        >>> ObjectiveMixture.from_preset("codegen2", span_corruption_mask_ratio=(0.1, 0.5)).objectives[1].mask_ratio
        (0.1, 0.5)

        ```
        """
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
            raise ValueError(f"Unknown preset {name!r}; the nearest known one is {near!r} (of {', '.join(PRESETS)}).")
        weights, objectives = zip(*PRESETS[name], strict=True)
        if name == "fim":
            weights, settings = _with_fim_names(weights, settings)
        changed, known = [], set()
        for objective in objectives:
            keys = {field.name: f"{objective.name}_{field.name}" for field in fields(objective)}
            own = {field: settings[key] for field, key in keys.items() if key in settings}
            changed.append(replace(objective, **own) if own else objective)
            known |= set(keys.values())
        if unused := sorted(set(settings) - known):
            kinds = ", ".join(sorted({objective.name for objective in objectives}))
            near = difflib.get_close_matches(unused[0], known, n=1, cutoff=0.0)
            cure = f"; the nearest known one is {near[0]!r}" if near else ""
            raise ValueError(f"No objective of the preset {name!r} ({kinds}) has the setting {unused[0]!r}{cure}.")
        return cls(tuple(changed), weights, per)

    def draw(self, rng) -> Objective:
        """One of the objectives, by the weights."""
        if len(self.objectives) == 1:
            return self.objectives[0]
        return self.objectives[bisect_right(self._bounds, rng.random())]


_UL2_SPANS = ((3.0, 0.15), (8.0, 0.15), (3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))  # mean length, share: R, X
_UL2 = tuple(SpanCorruption((share, share), mean_span_length=mean) for mean, share in _UL2_SPANS)
PRESETS = {
    "codegen2": ((0.5, CAUSAL), (0.5, SpanCorruption())),
    "codegen2_short": ((0.5, CAUSAL), (0.5, SpanCorruption((0.02, 0.15), max_spans=1, cut_ratio=(0.25, 1.0)))),
    "incoder": ((1.0, SpanCorruption(poisson_spans=1.0)),),
    "t5": ((1.0, SpanCorruption((0.15, 0.15), mean_span_length=3.0)),),
    "ul2": (*((1.0, denoiser) for denoiser in _UL2), (1.0, PrefixLM((0.0, 0.5)))),
    "ul2_r": tuple((1.0, denoiser) for denoiser in _UL2[:2]),
    "ul2_s": ((1.0, PrefixLM((0.0, 0.5))),),
    "ul2_x": tuple((1.0, denoiser) for denoiser in _UL2[2:]),
    "fim": ((0.5, CAUSAL), (0.5, Infill())),
    "causal": ((1.0, CAUSAL),),
    "prefix_lm": ((1.0, PrefixLM()),),
}


def _with_fim_names(weights, settings: dict) -> tuple[tuple[float, ...], dict]:
    """Weights and settings of the preset `fim` with `fim_rate` and `fim_spm_rate` put into them."""
    settings = dict(settings)
    if (rate := settings.pop("fim_rate", None)) is not None:
        if not 0 <= rate <= 1:
            raise ValueError(f"`fim_rate` is {rate}; give a share in [0, 1].")
        weights = (1 - rate, rate)
    if (rate := settings.pop("fim_spm_rate", None)) is not None:
        if "infill_suffix_first_rate" in settings:
            raise ValueError("`fim_spm_rate` is another name of `infill_suffix_first_rate`; give one of the two.")
        settings["infill_suffix_first_rate"] = rate
    return weights, settings


def join_units(token_ids: Sequence[np.ndarray], plans: Sequence[UnitPlan], layout) -> np.ndarray:
    """
    The ids of units, one behind the other.

    Args:
        token_ids (`Sequence[numpy.ndarray]`): the source of each unit, from its first token on.
        plans (`Sequence[UnitPlan]`): what to do with it.
        layout ([`MaskLayout`] or [`MiddleLayout`]): the sentinels.

    Returns:
        `numpy.ndarray` of shape `(sum of plan.size,)`: int64.
    """
    ids = np.empty(sum([plan.size for plan in plans]), dtype=np.int64)
    masked: list[tuple[int, np.ndarray, UnitPlan]] = []
    at = 0
    for source, plan in zip(token_ids, plans, strict=True):
        source = source[: plan.taken] if plan.source is None else plan.source
        if not plan.starts:
            ids[at : at + len(source)] = source
            if plan.ends:
                ids[at + plan.size - 1] = layout.end_of_text
        elif isinstance(layout, MaskLayout):
            masked.append((at, source, plan))
        else:
            (start,), (length,) = plan.starts, plan.lengths
            pieces, span = [source[:start], source[start + length :]], source[start : start + length]
            parts = layout.parts(pieces, [span], plan.suffix_first)
            np.concatenate(parts, out=ids[at : at + plan.size], casting="unsafe")
        at += plan.size
    if masked:
        _rearrange(ids, *zip(*masked, strict=True), layout)
    return ids


def _rearrange(ids, places, sources, plans, layout) -> None:
    """
    Writes units in a [`MaskLayout`] by index arithmetic, those of a batch at once: a unit's own spans are too few for what a call of
    numpy costs.

    Args:
        ids (`numpy.ndarray`): written in place.
        places (`Sequence[int]`), sources (`Sequence[numpy.ndarray]`), plans (`Sequence[UnitPlan]`): where each unit begins
            in `ids`, its tokens, and its spans, in order and not touching.
    """
    units, places = np.arange(len(plans)), np.array(places)
    counts, sizes = np.array([len(plan.starts) for plan in plans]), np.array([len(source) for source in sources])
    layout.check_holes(int(counts.max()))
    total, begin, between = int(counts.sum()), len(layout.start), len(layout.between(1))
    starts, lengths = _flat([plan.starts for plan in plans]), _flat([plan.lengths for plan in plans])
    first = counts.cumsum() - counts  # of each unit's spans among all
    final = first + counts - 1
    unit = units.repeat(counts)
    numbers = np.arange(total) - first[unit]  # of a span in its unit
    ends, sums = starts + lengths, lengths.cumsum()
    until = sums[first] - lengths[first]  # masked tokens of the units before
    masked = sums[final] - until
    before = sums - lengths - until[unit]  # masked tokens of the unit before each span
    visible = places + begin + sizes - masked + counts  # where the ids between a unit's source and its spans stand
    targets = (visible + between)[unit] + before + 2 * numbers  # where the spans' masks stand
    shift = begin - sizes.cumsum() + sizes  # from a token's place among all sources to its place in its unit
    moved = numbers - before

    # A unit is runs of what is seen and what is masked, in turn, each of which moves as a whole.
    runs, shifts = np.empty((2, 2 * total + len(plans)), np.int64)
    seen, last = 2 * np.arange(total) + unit, 2 * final + units + 2
    previous = np.concatenate(([0], ends[:-1]))
    previous[first] = 0
    runs[seen], runs[seen + 1], runs[last] = starts - previous, lengths, sizes - ends[final]
    shifts[seen], shifts[last] = (places + shift)[unit] + moved, places + shift + counts - masked
    shifts[seen + 1] = targets + 1 - starts + (shift - begin)[unit]
    where = shifts.repeat(runs)
    where += np.arange(len(where))
    ids[where] = np.concatenate(sources, dtype=np.int64)  # of the type of `ids`, or every token is converted by itself

    masks = np.array(layout.masks)[numbers]
    ids[starts + moved + (places + begin)[unit]] = masks
    ids[targets], ids[targets + lengths + 1] = masks, layout.end_of_span
    ids[visible[:, None] + np.arange(between)] = (
        layout.between(1) if layout.separator is not None else [layout.between(count) for count in counts.tolist()]
    )
    if begin:
        ids[places[:, None] + np.arange(begin)] = layout.start
    finished = [plan.ends for plan in plans]
    ids[(targets + lengths + 2)[final[finished]]] = layout.end_of_text


def _flat(rows) -> np.ndarray:
    """The numbers of all rows; of those that [`_compact`] made without a look at each of them."""
    return np.frombuffer(b"".join([row if isinstance(row, array) else array("q", row) for row in rows]), np.int64)


def unit_labels(input_ids, plan: UnitPlan, layout, policy: str = "no_sentinels") -> np.ndarray:
    """
    Labels of a unit: a copy of its ids (models shift inside), -100 where nothing is to be learned.

    Args:
        input_ids (`numpy.ndarray` of shape `(size,)`): the unit.
        plan ([`UnitPlan`]): its plan.
        layout ([`MaskLayout`] or [`MiddleLayout`]): the sentinels.
        policy (`str`): `"no_sentinels"`: everything but masks and separators, which a model that completes code is not
            to write unasked; `<eom>` and the end of text are learned. `"all"`: every token (a literal reading of
            CodeGen2). `"targets_only"`: only what was masked (T5, UL2). A bidirectional prefix never has labels.

    Returns:
        `numpy.ndarray` of shape `(size,)`, int64.

    Raises:
        ValueError: for an unknown policy.
    """
    check_label_policy(policy)
    labels = np.array(input_ids, dtype=np.int64)
    if policy != "all":
        labels[np.isin(labels, unlearned_ids(layout))] = IGNORE_INDEX
    labels[: hidden_length(plan, layout, policy)] = IGNORE_INDEX
    return labels


def check_label_policy(policy: str) -> None:
    if policy not in LABEL_POLICIES:
        raise ValueError(f"`labels` is {policy!r}; give one of {', '.join(LABEL_POLICIES)}.")


def hidden_length(plan: UnitPlan, layout, policy: str) -> int:
    """Number of leading tokens of a unit that have no label whatever they are."""
    if policy != "targets_only" or not plan.starts:
        return plan.prefix_length
    closing = 2 * len(plan.starts) + plan.ends if isinstance(layout, MaskLayout) else 1
    return plan.size - sum(plan.lengths) - closing


def unlearned_ids(layout) -> list[int]:
    """Sentinels that carry no label under `"no_sentinels"`: all but the ones that end something."""
    return sorted(layout.control_ids - set(layout.stops))


def check_source(token_ids, layout, name: str = "The file") -> None:
    """
    Refuses source ids that hold control tokens, which would be taken for the sentinels of an objective.

    Args:
        token_ids (`numpy.ndarray`): ids of a file.
        layout ([`MaskLayout`] or [`MiddleLayout`]): the sentinels.
        name (`str`): what the error calls the file.

    Raises:
        ValueError: naming the first control token and its place.
    """
    found = np.isin(token_ids, sorted(layout.control_ids))
    if found.any():
        place = int(found.argmax())
        raise ValueError(
            f"{name} holds the control token {int(token_ids[place])} at position {place}; encode it with "
            "`encode_source`, which keeps sentinels written in a source as text."
        )


def _require_masks(layout, name):
    if not isinstance(layout, MaskLayout):
        raise ValueError(
            f"The objective {name!r} needs numbered mask tokens, which a fill-in-the-middle layout has not; train with "
            "`infill`, or add the CodeGen2 sentinels to the tokenizer."
        )


def _choose(total: int, count: int, rng) -> list[int] | np.ndarray:
    """`count` distinct numbers below `total`, in order, every such set equally likely; an array where they are many."""
    if count == 0 or (count <= FEW and total > 4 * count):  # rarely a number twice
        chosen: set[int] = set()
        while len(chosen) < count:
            chosen.add(int(rng.random() * total))
        return sorted(chosen)
    hit = np.zeros(total, dtype=bool)
    _mark(hit, count, rng)
    return hit.nonzero()[0]


def _mark(hit: np.ndarray, count: int, rng) -> None:
    """Sets `count` places of an array of `False`, every such set equally likely, in half the time of numpy's `choice`."""
    # Places are drawn until so many different ones are there: those that are left out, where they are fewer.
    total = len(hit)
    rest = 2 * count > total
    if missing := total - count if rest else count:
        drawn = (rng.random(missing + SPARE) * float(total)).astype(np.int64)
        hit[drawn[:missing]] = True
        spare, missing = drawn[missing:].tolist(), missing - int(np.count_nonzero(hit))
        while missing:  # a few, which Python sets faster
            for number in spare:
                if not hit[number]:
                    hit[number] = True
                    missing -= 1
                    if not missing:
                        break
            else:
                spare = [int(number * total) for number in rng.random(missing + SPARE).tolist()]
    if rest:
        np.logical_not(hit, out=hit)


def _composition(total: int, parts: int, rng) -> list[int] | np.ndarray:
    """
    The borders between `parts` positive numbers that sum to `total`, 0 and `total` included, every such sequence equally
    likely; an array where they are many.
    """
    if parts - 1 <= FEW:
        return [0, *(int(border) + 1 for border in _choose(total - 1, parts - 1, rng)), total]
    hit = np.zeros(total + 1, dtype=bool)
    hit[0] = hit[total] = True
    _mark(hit[1:total], parts - 1, rng)
    return hit.nonzero()[0]


def _compact(numbers: np.ndarray) -> array:
    """Numbers of a plan that is kept until its sequence is asked for: a fifth of the memory of a list, and read back at once."""
    return array("q", numbers.astype(np.int64, copy=False).tobytes())
