"""Sequences of exactly one length from a stream of files: nothing lost, nothing random but the seed."""

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from cases_codegen2 import tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_lpn import (
    DataCollatorForCodeObjectives,
    DocumentStream,
    ObjectiveMixture,
    PackedSequences,
    infill_layout,
)
from modeling_lpn.code.collator import explain
from modeling_lpn.code.objectives import PRESETS
from modeling_lpn.code.packing import StreamedSequences, TokenizedDocuments, _generator, _SequenceGenerator
from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout, MiddleLayout, encode_source


MASKS = MaskLayout(masks=tuple(range(95, 85, -1)), separator=85, end_of_span=84, end_of_text=83)
MIDDLE = MiddleLayout(prefix=95, suffix=94, middle=93, stops=(84,), end_of_text=83)


def make_files(count=30, seed=0, longest=150):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 80, rng.integers(0, longest)).tolist() for _ in range(count)]


def make_sequences(files, preset="codegen2", max_length=64, layout=MASKS, weights=None, shuffle=True, **options):
    files = files if isinstance(files, dict) else {"code": files}
    documents = {name: TokenizedDocuments.from_lists(rows) for name, rows in files.items()}
    mixture = ObjectiveMixture.from_preset(preset, options.pop("per", "sequence"))
    stream = DocumentStream(documents, weights, options.get("seed", 0), shuffle)
    return PackedSequences(stream, mixture, layout, max_length, **options)


def streamed(files, preset="codegen2", weights=None, seed=0, shuffle_window=1):
    """The same files as something that can only be read from the front."""
    sources = {name: lambda rows=rows: enumerate(rows) for name, rows in files.items()}
    mixture = ObjectiveMixture.from_preset(preset)
    return StreamedSequences(sources, mixture, MASKS, 64, weights, seed, shuffle_window)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


collate = DataCollatorForCodeObjectives(MASKS, information=True)


@pytest.mark.parametrize("preset", PRESETS)
@given(seed=st.integers(0, 2**31), max_length=st.integers(16, 90), per=st.sampled_from(["sequence", "document"]))
@settings(max_examples=12, deadline=None)
def test_every_token_of_the_stream_is_trained_on_once(preset, seed, max_length, per):
    layout = MIDDLE if preset == "fim" and seed % 2 else MASKS
    sequences = make_sequences(make_files(12, seed), preset, max_length, layout, per=per, seed=seed)
    collator = DataCollatorForCodeObjectives(layout)
    seen = []
    for index in range(len(sequences)):
        example = sequences[index]
        assert collator([example])["input_ids"].shape == (1, max_length)
        for unit in example["units"]:
            seen += unit.token_ids[: unit.plan.taken].tolist()
        assert example["source_tokens"].tolist() == [len(seen)]
    expected, number = [], 0
    while len(expected) < len(seen):
        expected += sequences.stream[number].tolist()
        number += 1
    assert seen == expected[: len(seen)]
    total = sequences.stream.documents[0].num_tokens
    assert total <= len(seen) < total + max_length  # one epoch, and what fills the last sequence


def test_any_order_of_access_gives_the_same_sequences():
    sequences, again = (make_sequences(make_files(), num_sequences=150) for _ in range(2))
    expected = [collate([sequences[index]]) for index in range(150)]
    for index in (149, 3, 77, 3, 0, 120):
        assert_same(collate([again[index]]), expected[index])
    with pytest.raises(IndexError):
        sequences[150]


@pytest.mark.parametrize("shuffle_window", [1, 7])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", [make_sequences, streamed])
def test_workers_change_nothing(kind, workers, shuffle_window):
    files, options = {"code": make_files()}, {"shuffle_window": shuffle_window}
    options |= {"num_sequences": 24} if kind is make_sequences else {}
    alone = iter(DataLoader(kind(files, **options), batch_size=4, collate_fn=collate))
    together = iter(DataLoader(kind(files, **options), batch_size=4, collate_fn=collate, num_workers=workers))
    for _ in range(6):
        assert_same(next(alone), next(together))


@pytest.mark.parametrize("kind", [make_sequences, streamed])
def test_ranks_share_the_batches_of_one_process(kind):
    files, options = {"code": make_files()}, {"num_sequences": 24} if kind is make_sequences else {}
    alone = iter(DataLoader(kind(files, **options), batch_size=4, collate_fn=collate))
    ranks = [
        iter(
            prepare_data_loader(
                DataLoader(kind(files, **options), batch_size=2, collate_fn=collate),
                num_processes=2,
                process_index=rank,
                dispatch_batches=False,
                put_on_device=False,
            )
        )
        for rank in range(2)
    ]
    for _ in range(3):
        whole, halves = next(alone), [next(rank) for rank in ranks]
        assert_same(whole, {name: torch.cat([half[name] for half in halves]) for name in whole})


def test_corruption_is_fresh_in_every_epoch_and_order_too():
    sequences = make_sequences([list(range(60))], "ul2_r", num_sequences=12)
    plans = {json.dumps([unit.plan.starts for unit in sequences[index]["units"]]) for index in range(12)}
    assert len(plans) > 8
    stream = DocumentStream({"code": TokenizedDocuments.from_lists(make_files(20, longest=9))})
    size = stream.num_documents_of_an_epoch
    stream[3 * size]
    epochs = [stream.document[epoch * size : (epoch + 1) * size].tolist() for epoch in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1] != epochs[2]
    assert stream.epoch[: 3 * size].tolist() == [0] * size + [1] * size + [2] * size
    first = collate([make_sequences(make_files(), seed=1)[0]])
    assert not torch.equal(first["input_ids"], collate([make_sequences(make_files(), seed=2)[0]])["input_ids"])


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 2**31), index=st.integers(0, 2**40))
def test_a_moved_generator_is_a_new_one(seed, epoch, index):
    move = copy.deepcopy(_SequenceGenerator(seed))
    for place in (index, index + 1, index):
        moved, new = move(epoch, place), _generator(seed, epoch, place)
        for draw in (
            lambda rng: rng.random(5),
            lambda rng: rng.integers(0, 9, 3, dtype=np.int8),
            lambda rng: rng.poisson(2, 3),
        ):
            assert (draw(moved) == draw(new)).all()


@pytest.mark.parametrize("weights", [None, (3, 1), (1, 9)])
def test_sources_are_mixed_by_tokens(weights):
    files = {"code": make_files(40, 1), "text": make_files(15, 2)}
    sequences = make_sequences(files, weights=weights, num_sequences=400)
    tokens = sequences[399]["source_tokens"]
    sizes = [documents.num_tokens for documents in sequences.stream.documents]
    share = (weights or sizes)[0] / sum(weights or sizes)
    assert sequences.source_names == ["code", "text"]
    assert abs(tokens[0] - share * tokens.sum()) <= 151  # one file
    halfway = sequences[100]["source_tokens"]
    assert abs(halfway[0] - share * halfway.sum()) <= 151


def test_what_is_laid_out_stays_when_the_stream_grows():
    documents = {name: TokenizedDocuments.from_lists(make_files(9, seed)) for seed, name in enumerate("ab")}
    short, long = DocumentStream(documents, (1, 2)), DocumentStream(documents, (1, 2))
    short.reserve(500)
    long.reserve(50_000)
    count = len(short.source)
    assert 0 < count < len(long.source)
    for name in ("source", "document", "epoch"):
        assert (getattr(short, name) == getattr(long, name)[:count]).all()


def test_a_window_shuffles_what_is_trained_on_and_nothing_else():
    files, options = {"code": make_files(20, 1), "text": make_files(7, 2)}, {"num_sequences": 150}
    ordered, shuffled = make_sequences(files, **options), make_sequences(files, shuffle_window=64, **options)
    order = []
    for start, end in ((0, 64), (64, 128), (128, 150)):  # the last window is smaller
        rows = {json.dumps(collate([ordered[index]])["input_ids"].tolist()): index for index in range(start, end)}
        order += [rows[json.dumps(collate([shuffled[index]])["input_ids"].tolist())] for index in range(start, end)]
        assert sorted(order[start:]) == list(range(start, end)) != order[start:]
        assert (shuffled[end - 1]["source_tokens"] == ordered[end - 1]["source_tokens"]).all()
    tokens = np.array([ordered[index]["source_tokens"] for index in range(150)])
    own = np.diff(tokens, prepend=0, axis=0)
    given = np.array([shuffled[index]["source_tokens"] for index in range(150)])
    assert (given == own[order].cumsum(axis=0)).all()
    assert order[:22] != [index - 128 for index in order[128:]]  # no window has the order of another


@pytest.mark.parametrize("shuffle_window", [1, 32])
def test_a_stream_gives_the_sequences_of_the_index_and_continues_exactly(shuffle_window):
    files = {"code": make_files(20, 1), "text": make_files(7, 2)}
    weights, options = (2, 1), {"shuffle_window": shuffle_window}
    indexed = make_sequences(files, weights=weights, shuffle=False, num_sequences=96, **options)
    stream, states = streamed(files, weights=weights, **options), []
    iterator = iter(stream)
    for index in range(80):
        states.append(json.dumps(stream.state_dict()))
        assert_same(collate([next(iterator)]), collate([indexed[index]]))
    for index in (0, 1, 32, 33, 79):
        stream.load_state_dict(json.loads(states[index]))
        assert_same(collate([next(iter(stream))]), collate([indexed[index]]))


def test_a_stream_keeps_only_the_files_it_is_at():
    stream = streamed({"code": make_files(400)})
    iterator = iter(stream)
    for _ in range(300):
        next(iterator)
    reader = iterator.gi_frame.f_locals["reader"]
    assert len(reader._documents) <= 2 and len(reader.source) <= 2


@pytest.mark.parametrize(
    "preset, digest",
    [
        ("codegen2", "cde3a9da658d55bc"),
        ("t5", "be76d9ca64cfc3aa"),
        ("ul2", "5f4d2108aed7283b"),
        ("incoder", "add25f89aff5908a"),
        ("fim", "71cf5030ba1c526a"),
    ],
)
def test_sequences_are_those_of_every_version(preset, digest):
    """What is made faster draws the same: a resumed run and a published evaluation set depend on it."""
    sequences = make_sequences(make_files(40, longest=900), preset, max_length=512, num_sequences=32)
    batch = collate([sequences[index] for index in range(32)])
    content = b"".join(batch[name].numpy().tobytes() for name in sorted(batch))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_an_evaluation_set_is_always_the_same():
    first, second = (make_sequences(make_files(), "codegen2", shuffle=False) for _ in range(2))
    for index in range(len(first)):
        assert_same(collate([first[index]]), collate([second[index]]))


@pytest.mark.parametrize("attention", ["isolated", "isolated_4d", "joint"])
@pytest.mark.parametrize("preset", ["codegen2", "prefix_lm"])
def test_files_are_isolated(attention, preset):
    files = [list(range(2, 30)), list(range(30, 50)), list(range(50, 79))]
    model, collator = tiny_model(), DataCollatorForCodeObjectives(MASKS, attention)
    sequences = make_sequences(files, preset, shuffle=False, num_sequences=3)
    example = next(sequences[index] for index in range(3) if len(sequences[index]["units"]) > 1)
    batch = collator([example])
    labels = batch.pop("labels")
    start = example["units"][0].plan.size
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    changed["input_ids"][:, 1:4] = 1
    with torch.no_grad():
        before, after = (model(**inputs, use_cache=False).logits[:, start:] for inputs in (batch, changed))
    if attention == "joint":
        assert (before - after).abs().max() > 1e-3 and "position_ids" not in batch
        assert preset == "prefix_lm" or labels[0, start] == batch["input_ids"][0, start]
    else:
        torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
        assert labels[0, start] == -100


@pytest.mark.parametrize("preset", ["codegen2", "prefix_lm"])
def test_both_ways_to_isolate_files_are_one_attention(preset):
    model, sequences = tiny_model(), make_sequences(make_files(), preset, num_sequences=4)
    batches = [
        DataCollatorForCodeObjectives(MASKS, attention)([sequences[index] for index in range(4)])
        for attention in ("isolated", "isolated_4d")
    ]
    assert ("block_sequence_ids" in batches[0]) == (preset == "prefix_lm") and "attention_mask" in batches[1]
    with torch.no_grad():
        logits = [model(**batch, use_cache=False).logits for batch in batches]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset, layout", [("codegen2", MASKS), ("fim", MIDDLE), ("prefix_lm", MASKS)])
def test_what_was_masked_can_count_more(preset, layout):
    sequences = make_sequences(make_files(), preset, layout=layout, num_sequences=20)
    examples = [sequences[index] for index in range(20)]
    batch = DataCollatorForCodeObjectives(layout, span_weight=4.0)(examples)
    plain, targets = (DataCollatorForCodeObjectives(layout, labels=name)(examples) for name in ("all", "targets_only"))
    assert_same({**plain, "labels": batch["labels"]}, {key: batch[key] for key in plain})
    masked = torch.zeros_like(batch["loss_weights"], dtype=torch.bool)
    for row, example in zip(masked, examples, strict=True):
        start = 0
        for unit in example["units"]:
            row[start : start + unit.plan.size] = bool(unit.plan.starts)
            start += unit.plan.size
    masked &= (targets["labels"] != -100) & (batch["labels"] != -100)
    learned = batch["labels"] != -100
    assert (batch["loss_weights"][learned] == torch.where(masked, 4.0, 1.0)[learned]).all()
    assert masked.any() == (preset != "prefix_lm")


def test_a_packed_file_equals_the_file_alone():
    files = [list(range(2, 30)), list(range(30, 52)), list(range(40, 79))]
    sequences = make_sequences(files, "causal", shuffle=False, num_sequences=1)
    batch = DataCollatorForCodeObjectives(MASKS)([sequences[0]])
    model = tiny_model()
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0, 29:51]
        alone = model(torch.tensor([files[1]])).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    positions = batch["position_ids"][0].tolist()
    assert positions[:31] == [*range(29), 0, 1] and batch["labels"][0, 29] == -100


def test_files_with_control_tokens_are_refused_by_name():
    documents = TokenizedDocuments.from_lists([[1, 2], [3, 4, 95, 5]], names=["good.py", "bad.py"])
    mixture = ObjectiveMixture.from_preset("codegen2")
    with pytest.raises(ValueError, match="'bad.py' holds the control token 95 at position 2"):
        PackedSequences(DocumentStream({"code": documents}), mixture, MASKS)
    stream = StreamedSequences({"code": lambda: [("bad.py", [85, 1])]}, mixture, MASKS, 16)
    with pytest.raises(ValueError, match="'bad.py' holds the control token 85"):
        next(iter(stream))


@pytest.mark.parametrize(
    "action, message",
    [
        (lambda: make_sequences([[], []]), "Source 'code' has no tokens"),
        (lambda: make_sequences(make_files(), weights=(1, 2)), r"weights \[1.0, 2.0\]"),
        (lambda: make_sequences(make_files(), weights=(0,)), "a weight above 0"),
        (lambda: make_sequences(make_files(), max_length=8), "`max_length` is 8"),
        (lambda: make_sequences(make_files(), shuffle_window=0), "`shuffle_window` is 0"),
        (lambda: next(iter(streamed({"code": [[], []]}))), "Source 'code' has no tokens"),
        (lambda: collate([{"input_ids": [1, 2]}]), r"got \['input_ids'\], not planned sequences"),
        (lambda: DataCollatorForCodeObjectives(MASKS, "packed"), "`attention` is 'packed'"),
        (lambda: DataCollatorForCodeObjectives(MASKS, labels="none"), "`labels` is 'none'"),
        (lambda: DataCollatorForCodeObjectives(MASKS, span_weight=0), "`span_weight` is 0"),
    ],
)
def test_errors_say_what_is_wrong(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_an_example_is_explained():
    tokenizer = tiny_tokenizer()
    layout = infill_layout(tokenizer)
    files = [encode_source(tokenizer, "def add(a, b):\n    return a + b  # <mask_1> is text\n")] * 4
    sequences = make_sequences(files, "t5", 64, layout, num_sequences=4)
    text = explain(sequences[0], tokenizer, layout, color=False)
    assert "sequence 0: 64 tokens" in text and "unit 1: span_corruption, file 0 from token 0" in text
    assert "⟦" in text and "{" in text
    ids = DataCollatorForCodeObjectives(layout)([sequences[0]])["input_ids"][0]
    for token in ("<mask_1>", "<sep>", "<eom>"):
        assert text.count(token) == ids.tolist().count(tokenizer.convert_tokens_to_ids(token))
    coloured = explain(sequences[0], tokenizer, layout)
    assert "\033[1;36m<mask_1>\033[0m" in coloured and "\033[32m" in coloured
