"""The objectives: what can be undone, what carries loss, what is drawn how often."""

import itertools
from array import array
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from cases_codegen2 import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lpn import (
    DataCollatorForCodeObjectives,
    DocumentStream,
    ObjectiveMixture,
    PackedSequences,
    infill_layout,
)
from modeling_lpn.arguments import given as given_settings
from modeling_lpn.arguments import parse_recipe
from modeling_lpn.code.arguments import objective_arguments
from modeling_lpn.code.objectives import (
    OBJECTIVES,
    PRESETS,
    Infill,
    PrefixLM,
    SpanCorruption,
    _choose,
    join_units,
    unlearned_ids,
)
from modeling_lpn.code.packing import TokenizedDocuments
from modeling_lpn.code.token_splitter import TokenSplitter
from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout, MiddleLayout, encode_source


MASKS = MaskLayout(masks=tuple(range(1099, 1000, -1)), separator=1100, end_of_span=1101, end_of_text=1102)
MIDDLE = MiddleLayout(prefix=1001, suffix=1002, middle=1003, stops=(1004,), end_of_text=1005)
VARIANTS = {
    "causal": OBJECTIVES["causal"](),
    "prefix_lm": PrefixLM(),
    "prefix_lm, UL2": PrefixLM((0.0, 0.5)),
    "infill": Infill(),
    "spans": SpanCorruption(),
    "spans without the final end of text": SpanCorruption(final_end_of_text=False),
    "short spans": SpanCorruption(span_length=(1, 3)),
    "few spans": SpanCorruption(span_length=(1, 3), max_spans=2),
    "nothing masked": SpanCorruption(mask_ratio=(0.0, 0.0)),
    "all masked": SpanCorruption(mask_ratio=(1.0, 1.0)),
    "InCoder": SpanCorruption(poisson_spans=1.0),
    "T5": SpanCorruption((0.15, 0.15), mean_span_length=3.0),
    "half masked, single tokens": SpanCorruption((0.5, 0.5), mean_span_length=1.0, min_length=2),
}
SPANS = [name for name, objective in VARIANTS.items() if isinstance(objective, SpanCorruption)]
SPLITTER = TokenSplitter(tiny_tokenizer())
lengths, seeds = st.integers(1, 600), st.integers(0, 2**32)


def source_of(length):
    return np.arange(length) % 1000


def restore(unit, layout):
    ids, plan = unit["input_ids"].tolist(), unit["plan"]
    return layout.restore(ids) if plan.starts else ids[: len(ids) - plan.ends]


@pytest.mark.parametrize("name", VARIANTS)
@given(length=lengths, room=st.one_of(st.none(), st.integers(1, 700)), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_undoing_a_unit_gives_the_source_and_it_fits(name, length, room, seed):
    source = source_of(length)
    unit = VARIANTS[name](source, np.random.default_rng(seed), MASKS, room=room)
    ids, labels, plan = unit["input_ids"], unit["labels"], unit["plan"]
    assert restore(unit, MASKS) == source[: plan.taken].tolist()
    assert len(ids) == plan.size and 1 <= plan.taken <= length
    assert plan.size <= room if room is not None else plan.taken == length
    assert ((labels == -100) | (labels == ids)).all()
    again = VARIANTS[name](source, np.random.default_rng(seed), MASKS, room=room)
    assert (again["input_ids"] == ids).all()


def check_promise(objective, length, room, seed, layout):
    """What every objective of the registry promises, whatever it is: see [`Objective`]."""
    source, policies = source_of(length), ("no_sentinels", "all", "targets_only")
    units = [objective(source, np.random.default_rng(seed), layout, room=room, labels=policy) for policy in policies]
    for policy, unit in zip(policies, units, strict=True):
        ids, labels, plan = unit["input_ids"], unit["labels"], unit["plan"]
        assert restore(unit, layout) == source[: plan.taken].tolist(), "undoing it gives the file back"
        assert len(ids) == plan.size <= room and 1 <= plan.taken <= length, "the length budget is kept"
        assert ids.tolist() == units[0]["input_ids"].tolist(), "a pure function of its arguments and the generator"
        learned = labels != -100
        assert (labels[learned] == ids[learned]).all() and not learned[: plan.prefix_length].any()
        assert source.tolist() == source_of(length).tolist(), "the source is left as it was"
        assert policy != "no_sentinels" or not np.isin(labels, unlearned_ids(layout)).any()
        hidden = sum(plan.lengths) + len(plan.lengths) + plan.ends
        assert policy != "targets_only" or not plan.starts or learned.sum() <= hidden, (
            "only what was masked is learned"
        )
    opening = objective.plan(source, room, np.random.default_rng(seed), layout, True)
    assert opening.size <= room and 1 <= opening.taken <= length, "also where it opens a sequence"


def check_registry(layout, length, room, seed):
    """[`check_promise`] of all that is registered; what no layout can express is no objective."""
    objectives = [kind() for kind in OBJECTIVES.values()]
    objectives += [objective for preset in PRESETS.values() for _, objective in preset]
    assert {objective.name for objective in objectives} == set(OBJECTIVES)
    for objective in objectives:
        assert any(reads(objective, some) for some in (MASKS, MIDDLE)), "some layout can express it"
        if reads(objective, layout):
            check_promise(objective, length, room, seed, layout)


def reads(objective, layout):
    try:
        objective(source_of(50), np.random.default_rng(0), layout)
    except ValueError as error:
        assert "mask tokens" in str(error)  # refused by name, not by chance
        return False
    return True


@pytest.mark.parametrize("layout", [MASKS, MIDDLE], ids=["masks", "middle"])
@given(length=lengths, room=st.integers(1, 700), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_every_objective_and_preset_keeps_its_promise(layout, length, room, seed):
    check_registry(layout, length, room, seed)


class Wrong(SpanCorruption):
    """A registered objective with one fault."""

    name = "wrong"

    def __init__(self, fault):
        super().__init__()
        object.__setattr__(self, "fault", fault)

    def plan(self, token_ids, room, rng, layout, opens_sequence=False):
        if self.fault == "unreadable":
            raise ValueError("needs numbered mask tokens")
        if self.fault == "source":
            token_ids[0] += 1
        beyond = self.fault == "room" or (self.fault == "opening" and opens_sequence)
        return super().plan(token_ids, room + 40 * beyond, rng, layout, opens_sequence)

    def __call__(self, token_ids, rng, layout, room=None, labels="no_sentinels"):
        unit = super().__call__(token_ids, rng, layout, room, labels)
        if self.fault == "drops":
            place = np.flatnonzero(unit["input_ids"] < 1000)[0]
            unit |= {name: np.delete(unit[name], place) for name in ("input_ids", "labels")}
            unit["plan"] = replace(unit["plan"], size=unit["plan"].size - 1)
        if self.fault == "labels":
            unit["labels"] = unit["input_ids"].copy()
        if self.fault == "draws":
            unit["input_ids"] = unit["input_ids"][:: 1 if labels == "all" else -1]
        return unit


@pytest.mark.parametrize("fault", ["room", "opening", "drops", "labels", "draws", "source", "unreadable"])
def test_a_wrong_objective_is_caught(monkeypatch, fault):
    monkeypatch.setitem(OBJECTIVES, "wrong", lambda: Wrong(fault))
    with pytest.raises((AssertionError, ValueError)):  # undoing refuses what is no sequence
        for seed in range(20):
            check_registry(MASKS, 200, 90, seed)


def test_an_objective_registered_later_is_collated(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "wrong", lambda: Wrong("none"))
    check_registry(MASKS, 200, 90, 0)
    stream = DocumentStream({"code": TokenizedDocuments.from_lists([range(200)])}, shuffle=False)
    sequences = PackedSequences(stream, ObjectiveMixture((Wrong("none"),)), MASKS, max_length=90)
    batch = DataCollatorForCodeObjectives(MASKS, information=True)([sequences[0]])
    assert list(OBJECTIVES).index("wrong") in batch["objective_ids"]


def test_flags_carry_the_name_of_their_objective():
    names = [field.name for field in fields(objective_arguments())]
    wanted = [f"{name}_{field.name}" for name, kind in OBJECTIVES.items() for field in fields(kind)]
    assert set(names) == set(wanted) - {"infill_splitter", "span_corruption_splitter"} and len(names) == len(
        set(names)
    )


def test_an_objective_registered_later_has_flags(monkeypatch):
    @dataclass(frozen=True)
    class Later:
        max_length: int = 3

    monkeypatch.setitem(OBJECTIVES, "later", Later)
    flags = ["--later_max_length", "5", "--infill_suffix_first_rate", "0.25"]
    (parsed,) = parse_recipe([objective_arguments()], flags)
    assert given_settings(parsed) == {"later_max_length": 5, "infill_suffix_first_rate": 0.25}
    monkeypatch.setitem(OBJECTIVES, "later", lambda: Later(7))  # a factory has no settings
    with pytest.raises(ValueError, match="`later_max_length` is no known argument"):
        parse_recipe([objective_arguments()], flags)


@pytest.mark.parametrize("name", SPANS)
@given(length=lengths, room=st.integers(8, 700), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_spans_are_well_formed(name, length, room, seed):
    objective = VARIANTS[name]
    unit = objective(source_of(length), np.random.default_rng(seed), MASKS, room=room)
    plan, ids, labels = unit["plan"], unit["input_ids"].tolist(), unit["labels"]
    if plan.objective == "causal":
        assert min(length, room - 6) < objective.min_length
        return
    count, ends = len(plan.starts), np.add(plan.starts, plan.lengths)
    assert 1 <= count <= min(MASKS.max_holes, objective.max_spans or 99) and min(plan.lengths) >= 1
    assert (np.array(plan.starts[1:]) > ends[:-1]).all() and ends[-1] <= plan.taken
    assert 1 <= sum(plan.lengths) < plan.taken
    assert plan.size == plan.taken + 3 * count + 2 + objective.final_end_of_text
    separator = ids.index(MASKS.separator)
    numbered = list(MASKS.masks[:count])
    assert [token for token in ids[:separator] if token in MASKS.masks] == numbered
    assert [token for token in ids[separator:] if token in MASKS.masks] == numbered
    # Every span ends in an <eom>, and every <eom> is learned; masks and <sep> never are.
    places = np.flatnonzero(np.array(ids) == MASKS.end_of_span)
    assert len(places) == count and (labels[places] == MASKS.end_of_span).all()
    assert not np.isin(labels, unlearned_ids(MASKS)).any()


def test_as_many_spans_as_there_are_masks():
    objective = SpanCorruption((0.5, 0.5), mean_span_length=1.0)
    unit = objective(source_of(600), np.random.default_rng(0), MASKS)
    assert len(unit["plan"].starts) == MASKS.max_holes and restore(unit, MASKS) == source_of(600).tolist()


def naive_unit(source, plan, layout):
    """A unit by the layout alone."""
    source = source[: plan.taken].tolist()
    if not plan.starts:
        return source + [layout.end_of_text] * plan.ends
    pieces, spans, at = [], [], 0
    for start, length in zip(plan.starts, plan.lengths, strict=True):
        pieces.append(source[at:start])
        spans.append(source[start : start + length])
        at = start + length
    return layout.sequence([*pieces, source[at:]], spans, plan.ends)


INCODER = MaskLayout(masks=MASKS.masks, separator=None, end_of_span=MASKS.end_of_span, end_of_text=MASKS.end_of_text)
STARTED = replace(MASKS, start=(MASKS.end_of_text, MASKS.end_of_span))


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    seed=seeds,
    final=st.booleans(),
    layout=st.sampled_from([MASKS, INCODER, STARTED]),
)
@settings(max_examples=150, deadline=None)
def test_index_arithmetic_equals_the_layout(lengths, seed, final, layout):
    rng = np.random.default_rng(seed)
    means = (1.0, 2.0, 8.0)
    objectives = [SpanCorruption((0.4, 0.6), mean_span_length=mean, final_end_of_text=final) for mean in means]
    objectives += [SpanCorruption(final_end_of_text=final), OBJECTIVES["causal"]()]
    sources = [source_of(length) for length in lengths]
    plans = [
        objectives[rng.integers(len(objectives))].plan(source, 4 * len(source) + 64, rng, layout) for source in sources
    ]
    expected = [
        token for source, plan in zip(sources, plans, strict=True) for token in naive_unit(source, plan, layout)
    ]
    found = join_units(sources, plans, layout)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_a_plan_of_many_spans_is_kept_compact():
    plan = SpanCorruption((0.5, 0.5), mean_span_length=2.0).plan(source_of(300), 2000, np.random.default_rng(0), MASKS)
    for numbers in (plan.starts, plan.lengths):
        assert isinstance(numbers, array) and len(numbers) == 75 and numbers.itemsize == 8
    few = SpanCorruption((0.1, 0.1), mean_span_length=10.0).plan(source_of(300), 2000, np.random.default_rng(0), MASKS)
    assert few.starts and all(type(number) is int for number in (*few.starts, *few.lengths))


@pytest.mark.parametrize("total, count", [(5, 2), (5, 3), (6, 6), (4, 0), (20, 9), (40, 12)])
def test_every_choice_is_equally_likely(total, count):
    rng, counts = np.random.default_rng(0), np.zeros(total)
    pairs, rounds = np.zeros((total, total)), 4000
    for _ in range(rounds):
        chosen = list(_choose(total, count, rng))
        assert len(set(chosen)) == count and chosen == sorted(chosen)
        counts[chosen] += 1
        pairs[np.ix_(chosen, chosen)] += 1
    share = count / total
    deviation = 5 * np.sqrt(rounds * max(share * (1 - share), 1e-9))
    assert np.abs(counts - rounds * share).max() <= deviation
    both = share * (count - 1) / (total - 1)
    off = pairs[~np.eye(total, dtype=bool)]
    assert np.abs(off - rounds * both).max() <= 5 * np.sqrt(rounds * max(both * (1 - both), 1e-9))


def test_spans_lie_everywhere_with_the_same_probability():
    objective = SpanCorruption(mask_ratio=(0.2, 0.2), mean_span_length=1.0)
    rng, masked = np.random.default_rng(0), np.zeros(20)
    rounds = 4000
    for _ in range(rounds):
        masked[objective.plan(source_of(20), 100, rng, MASKS).starts] += 1
    expected = rounds * 4 / 20
    # Non-adjacent places: the ends have one neighbour less and are a little likelier, the middle is flat.
    assert masked.min() > 0 and masked[0] > expected * 0.9 and masked[-1] > expected * 0.9
    middle = masked[4:16]
    chi_square = ((middle - middle.mean()) ** 2 / middle.mean()).sum()
    assert chi_square < 31.3  # 11 degrees of freedom, p = 0.001


def test_the_first_span_starts_uniformly():
    objective = SpanCorruption(mask_ratio=(0.25, 0.25), span_length=(4, 4))
    rng, counts = np.random.default_rng(1), np.zeros(13)
    for _ in range(3900):
        plan = objective.plan(source_of(16), 100, rng, MASKS)
        assert plan.lengths == [4]
        counts[plan.starts[0]] += 1
    chi_square = ((counts - 300) ** 2 / 300).sum()
    assert chi_square < 32.9  # 12 degrees of freedom, p = 0.001


def test_masked_share_and_span_lengths_follow_their_laws():
    rng, objective = np.random.default_rng(0), SpanCorruption()
    plans = [objective.plan(source_of(1000), 5000, rng, MASKS) for _ in range(3000)]
    shares = np.array([sum(plan.lengths) / 1000 for plan in plans])
    assert abs(shares.mean() - 0.5) < 0.02 and abs(np.quantile(shares, 0.9) - 0.9) < 0.02
    assert 2.5 < np.mean([len(plan.starts) for plan in plans]) < 2.9  # e - ...: the number of draws that reach a sum
    # The span that was cut to fit the sum is at every place: first and last are alike on average.
    several = [plan.lengths for plan in plans if len(plan.lengths) > 2]
    first, last = (np.mean([spans[place] / sum(spans) for spans in several]) for place in (0, -1))
    assert abs(first - last) < 0.03
    t5 = SpanCorruption((0.15, 0.15), mean_span_length=3.0)
    assert all(len(t5.plan(source_of(200), 900, rng, MASKS).starts) == 10 for _ in range(50))


@given(length=lengths, room=st.integers(1, 700), seed=seeds, rate=st.sampled_from([None, 0.0, 1.0]))
@settings(max_examples=100, deadline=None)
def test_fill_in_the_middle_in_both_orders(length, room, seed, rate):
    objective = Infill(suffix_first_rate=rate)
    unit = objective(source_of(length), np.random.default_rng(seed), MIDDLE, room=room)
    plan, ids = unit["plan"], unit["input_ids"].tolist()
    assert restore(unit, MIDDLE) == source_of(length)[: plan.taken].tolist() and len(ids) <= room
    if plan.objective == "infill":
        assert ids[-1] == MIDDLE.stops[0] == unit["labels"][-1] and ids[0] == MIDDLE.prefix
        assert rate is None or plan.suffix_first == bool(rate)
        assert not plan.suffix_first or ids[1] == MIDDLE.suffix
        assert not np.isin(unit["labels"], [MIDDLE.prefix, MIDDLE.suffix, MIDDLE.middle]).any()


def test_half_of_the_fill_in_the_middle_units_have_the_suffix_first():
    rng = np.random.default_rng(0)
    count = sum(Infill().plan(source_of(9), 50, rng, MIDDLE).suffix_first for _ in range(1000))
    assert 437 < count < 563  # four standard deviations


@given(text=st.text(st.sampled_from("def f(x):\n    return é日🎉 "), min_size=1, max_size=120), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_cuts_within_tokens_keep_the_text(text, seed):
    tokenizer = SPLITTER.tokenizer
    layout = infill_layout(tokenizer)
    objective = Infill(splitter=SPLITTER)
    ids = np.array(encode_source(tokenizer, text))
    unit = objective(ids, np.random.default_rng(seed), layout, room=80)
    restored = restore(unit, layout)
    assert tokenizer.decode(restored) == tokenizer.decode(ids[: unit["plan"].taken])
    assert len(unit["input_ids"]) == unit["plan"].size <= 80


def test_cuts_within_tokens_are_uniform_over_characters_and_encoded_as_at_inference():
    tokenizer = SPLITTER.tokenizer
    text = "def add(a, b):\n    return a + b\n"
    ids, places = np.array(encode_source(tokenizer, text)), []
    for seed in range(400):
        _, source, (start, end) = SPLITTER.cut(ids, len(ids), 100, np.random.default_rng(seed))
        pieces = [source[:start], source[start:end], source[end:]]
        texts = [tokenizer.decode(piece) for piece in pieces]
        assert "".join(texts) == text
        assert [encode_source(tokenizer, part) for part in texts] == [piece.tolist() for piece in pieces]
        places += [len(texts[0]), len(texts[0]) + len(texts[1])]
    assert len(ids) < len(text) and set(places) == set(range(len(text) + 1))


def test_a_room_in_which_no_cut_fits_is_trained_causally():
    ids = np.array(encode_source(SPLITTER.tokenizer, "def add(alpha, beta):\n    return alpha + beta\n"))
    layout, found = infill_layout(SPLITTER.tokenizer), set()
    for room, seed in itertools.product(range(8, 16), range(60)):
        plan = Infill(splitter=SPLITTER).plan(ids, room, np.random.default_rng(seed), layout)
        assert 1 <= plan.size <= room
        found.add(plan.objective)
    assert found == {"causal", "infill"}
    results = [SPLITTER.cut(ids, 1, 1, np.random.default_rng(seed)) for seed in range(200)]
    assert any(result is None for result in results) and any(result is not None for result in results)


@pytest.mark.parametrize("kind, layout", [(SpanCorruption, MASKS), (Infill, MASKS), (Infill, MIDDLE)])
def test_the_end_of_a_cut_unit_is_not_that_of_its_sequence(kind, layout):
    """Else a model learns to end spans where sequences end."""
    rng = np.random.default_rng(0)
    plans = [kind().plan(source_of(500), 200, rng, layout, True) for _ in range(400)]
    sizes = np.array([plan.size for plan in plans])
    assert sizes.min() < 110 and sizes.max() > 190 and np.unique(sizes).size > 60
    assert kind(cut_ratio=(1.0, 1.0)).plan(source_of(500), 200, rng, layout, True).size == 200
    assert kind().plan(source_of(500), 200, rng, layout).size == 200  # behind another unit its place is random anyway
    assert kind().plan(source_of(100), 400, rng, layout, True).taken == 100  # what fits is not cut


def test_labels_by_policy():
    rng = np.random.default_rng(3)
    unit = SpanCorruption((0.4, 0.4), mean_span_length=2.0)(source_of(10), rng, MASKS, labels="all")
    assert (unit["labels"] == unit["input_ids"]).all()
    rng = np.random.default_rng(3)
    unit = SpanCorruption((0.4, 0.4), mean_span_length=2.0)(source_of(10), rng, MASKS, labels="targets_only")
    learned = unit["labels"][unit["labels"] != -100].tolist()
    plan, expected = unit["plan"], []
    for start, length in zip(plan.starts, plan.lengths, strict=True):
        expected += [*range(start, start + length), MASKS.end_of_span]
    assert learned == [*expected, MASKS.end_of_text]
    unit = Infill(suffix_first_rate=1.0)(source_of(30), np.random.default_rng(0), MIDDLE, labels="targets_only")
    (start,), (length,) = unit["plan"].starts, unit["plan"].lengths
    assert unit["labels"][unit["labels"] != -100].tolist() == [*range(start, start + length), 1004]
    unit = PrefixLM()(source_of(30), np.random.default_rng(0), MASKS, labels="all")
    prefix = unit["plan"].prefix_length
    assert 0 < prefix < 30 and unit["labels"].tolist() == [-100] * prefix + [*range(prefix, 30), 1102]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_draw_by_their_weights(name):
    mixture, rng = ObjectiveMixture.from_preset(name), np.random.default_rng(0)
    drawn = [mixture.objectives.index(mixture.draw(rng)) for _ in range(2000)]
    shares = np.diff(mixture._bounds, prepend=0)
    for index, share in enumerate(shares):
        deviation = 4 * np.sqrt(2000 * share * (1 - share)) + 1e-9
        assert abs(drawn.count(index) - 2000 * share) <= deviation
    assert abs(shares.sum() - 1) < 1e-12


@pytest.mark.parametrize(
    "action, message",
    [
        (lambda: ObjectiveMixture.from_preset("codegen"), "nearest known one is 'codegen2'"),
        (
            lambda: ObjectiveMixture.from_preset("causal", span_corruption_mask_ratio=(0, 1)),
            "No objective of the preset 'causal'",
        ),
        (lambda: ObjectiveMixture((), ()), "0 objectives have the weights"),
        (lambda: ObjectiveMixture((Infill(),), (1.0, 2.0)), "1 objectives have the weights"),
        (lambda: ObjectiveMixture((Infill(),), per="batch"), "`per` is 'batch'"),
        (lambda: SpanCorruption(mask_ratio=(0.5, 0.1)), r"`mask_ratio` is \(0.5, 0.1\)"),
        (lambda: Infill(cut_ratio=(0.5, 1.5)), r"`cut_ratio` is \(0.5, 1.5\)"),
        (lambda: ObjectiveMixture.from_preset("codegen2", mask_ratio=(0, 1)), "has the setting 'mask_ratio'"),
        (
            lambda: ObjectiveMixture.from_preset("codegen2", span_corruption_mask_ration=(0, 1)),
            "'span_corruption_mask_ration'; the nearest known one is 'span_corruption_mask_ratio'",
        ),
        (lambda: SpanCorruption((0.1, 0.2), poisson_spans=1.0), "`mask_ratio` would have no effect"),
        (lambda: SpanCorruption(mean_span_length=3.0, poisson_spans=1.0), "`mean_span_length` would have no effect"),
        (lambda: SpanCorruption(span_length=(1, 2), mean_span_length=3.0), "`span_length` would have no effect"),
        (lambda: SpanCorruption(max_spans=0), "`max_spans` is 0"),
        (lambda: SpanCorruption(span_length=(1, 0)), r"`span_length` is \(1, 0\)"),
        (lambda: PrefixLM((3.0, 5.0)), r"`target_ratio` is \(3.0, 5.0\)"),
        (lambda: Infill(suffix_first_rate=7.0), "`suffix_first_rate` is 7.0"),
        (
            lambda: Infill(final_end_of_text=False)(source_of(9), np.random.default_rng(0), MIDDLE),
            "`final_end_of_text` is False",
        ),
        (lambda: SpanCorruption(poisson_spans=0.0), "`poisson_spans` is 0.0"),
        (lambda: SpanCorruption(mean_span_length=0.5), "`mean_span_length` is 0.5"),
        (lambda: SpanCorruption(span_length=(3, 2)), r"`span_length` is \(3, 2\)"),
        (lambda: SpanCorruption(span_length=(3,)), r"`span_length` is \(3,\)"),
        (lambda: Infill()([1, 1099, 2], np.random.default_rng(0), MASKS), "control token 1099 at position 1"),
        (lambda: Infill()([], np.random.default_rng(0), MASKS), "0 tokens and `room`"),
        (lambda: Infill()([1, 2], np.random.default_rng(0), MASKS, labels="some"), "`labels` is 'some'"),
        (lambda: Infill(0.5)([1, 2], np.random.default_rng(0), MASKS), "no suffix-first order"),
        (lambda: SpanCorruption()(source_of(9), np.random.default_rng(0), MIDDLE), "needs numbered mask tokens"),
    ],
)
def test_errors_say_what_is_wrong(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_fim_by_the_names_of_megatron_and_starcoder():
    mixture = ObjectiveMixture.from_preset("fim", fim_rate=0.9, fim_spm_rate=1.0)
    assert mixture.objectives == (OBJECTIVES["causal"](), Infill(suffix_first_rate=1.0))
    assert mixture.weights == pytest.approx((0.1, 0.9))
    with pytest.raises(ValueError, match="`fim_rate` is 2; give a share"):
        ObjectiveMixture.from_preset("fim", fim_rate=2)
    with pytest.raises(ValueError, match="another name of `infill_suffix_first_rate`; give one"):
        ObjectiveMixture.from_preset("fim", fim_spm_rate=0.5, infill_suffix_first_rate=0.5)
    with pytest.raises(ValueError, match="No objective of the preset 'codegen2' .* has the setting 'fim_rate'"):
        ObjectiveMixture.from_preset("codegen2", fim_rate=0.5)
