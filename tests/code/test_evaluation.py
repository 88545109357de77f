"""Held-out files: which spans are taken out, how their filling is scored, the loss per token."""

import math

import pytest
import torch
from cases_code import FILE, ROWS
from cases_codegen2 import Scripted, tokenizer_config

from modeling_lpn import CodeGen2ForCausalLM, infill_layout
from modeling_lpn.code.evaluation import InfillCase, causal_loss, evaluate_infilling, make_infill_cases
from modeling_lpn.code.generation import generate_rows
from modeling_lpn.codegen2.infilling_codegen2 import encode_source


# Cases


@pytest.mark.parametrize("kind", ["tokens", "line"])
@pytest.mark.parametrize("context_tokens", [None, 12])
def test_cases_are_spans_of_the_files(tokenizer, kind, context_tokens):
    settings = {"kind": kind, "tokenizer": tokenizer, "context_tokens": context_tokens, "max_span_tokens": 5}
    cases = make_infill_cases(ROWS, 9, seed=1, **settings)
    assert len({case.name for case in cases}) == len(cases) == 9
    texts = {row["path"]: row["text"] for row in ROWS}
    for turn in range(len(cases) // 3):  # every file before a file comes again
        names = [case.name.split(":")[0] for case in cases[3 * turn : 3 * turn + 3]]
        assert sorted(names) == sorted(texts)
    for case in cases:
        text = texts[case.name.split(":")[0]]
        whole = case.prefix + case.middle + case.suffix
        assert whole in text and case.prefix.strip() and case.middle.strip() and case.kind == kind
        if context_tokens is None:
            assert whole == text
        else:
            assert len(encode_source(tokenizer, case.prefix) + encode_source(tokenizer, case.suffix)) <= 12
        if kind == "line":
            assert case.middle in text.split("\n") and case.prefix.endswith("\n") and case.suffix.startswith("\n")
        else:
            assert len(encode_source(tokenizer, case.middle)) <= 5
    assert cases == make_infill_cases(ROWS, 9, seed=1, **settings)
    assert cases[:4] == make_infill_cases(ROWS, 4, seed=1, **settings)
    assert cases != make_infill_cases(ROWS, 9, seed=2, **settings)


def test_files_without_spans_are_made_up_for_by_the_next_files(tokenizer):
    rows = [{"path": f"{index}", "text": FILE if index % 2 else "x"} for index in range(10)]
    cases = make_infill_cases(rows, 5, kind="line")
    assert sorted(case.name.split(":")[0] for case in cases) == ["1", "3", "5", "7", "9"]


def test_all_lines_are_found_but_blank_first_and_endless_ones():
    rows = [{"path": "a.py", "text": "x = 1\n\n  y = 2\r\n" + "z" * 201 + "\nlast"}]
    cases = make_infill_cases(rows, 50, kind="line")
    assert sorted(case.middle for case in cases) == ["  y = 2\r", "last"]
    assert {case.name for case in cases} == {"a.py:line:3", "a.py:line:5"}


def test_impossible_cases_are_refused(tokenizer):
    with pytest.raises(ValueError, match="`kind` is 'word'; known: tokens, line"):
        make_infill_cases(ROWS, 1, kind="word")
    with pytest.raises(ValueError, match="`tokenizer` is missing"):
        make_infill_cases(ROWS, 1)
    with pytest.raises(ValueError, match="none of the 1 files has a span of kind 'tokens'"):
        make_infill_cases([{"path": "a", "text": "x"}], 1, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no cases"):
        evaluate_infilling(None, tokenizer, [])


# Infilling


def test_only_the_end_of_span_token_counts_as_its_end(tokenizer):
    """Four spans: ended by `<eom>`, by the end of the text, by another control token, and not at all."""
    ids = [[*encode_source(tokenizer, "return")] for _ in range(4)]
    for span, end in zip(ids, ("<eom>", "<|endoftext|>", "<mask_2>", None), strict=True):
        span += [] if end is None else [tokenizer.convert_tokens_to_ids(end)]

    class Observed(Scripted):
        def generate(self, input_ids, attention_mask, stopping_criteria, **kwargs):
            output = super().generate(input_ids, attention_mask, **kwargs)
            for end in range(input_ids.shape[1] + 1, output.shape[1] + 1):
                assert not stopping_criteria(output[:, :end], None).any()
            return output

    cases = [InfillCase(str(size), "a" * (9 - size), "return", "b", "line") for size in range(4)]
    scores, predictions = evaluate_infilling(Observed(ids), tokenizer, cases, max_new_tokens=8, batch_size=3)
    assert scores["exact_match"] == 1.0 and scores["eom_rate"] == 0.25 and scores["num_cases"] == 4
    assert [prediction["ended"] for prediction in predictions] == [True, False, False, False]
    assert predictions[2] == {
        "number": 2, "name": "2", "kind": "line", "prediction": "return", "reference": "return", "ended": False
    }  # fmt: skip


@pytest.mark.parametrize("left_to_right", [False, True])
def test_results_do_not_depend_on_batches_and_the_model_stays_as_it_was(tokenizer, model, left_to_right):
    cases = make_infill_cases(ROWS, 7, tokenizer=tokenizer, kind="line")
    model.train()
    model.config.use_cache = False  # as in training
    results = [
        evaluate_infilling(model, tokenizer, cases, batch_size=size, max_new_tokens=10, left_to_right=left_to_right)
        for size in (1, 3, 32)
    ]
    assert model.training
    model.eval()
    assert results[0] == results[1] == results[2]
    scores, predictions = results[0]
    assert [prediction["name"] for prediction in predictions] == [case.name for case in cases]
    assert ("eom_rate" in scores) == (not left_to_right) and scores["num_cases"] == len(cases)
    if left_to_right:
        for case, prediction in zip(cases, predictions, strict=True):
            size = min(10, len(encode_source(tokenizer, case.middle)))
            prompt = encode_source(tokenizer, case.prefix)[-54:]
            ((expected, _),) = generate_rows(model, [prompt], [tokenizer.eos_token_id], size, do_sample=False)
            assert prediction["prediction"] == tokenizer.decode(expected)


def test_what_a_generation_config_recommends_for_chatting_does_not_enter(tokenizer, model, caplog):
    cases = make_infill_cases(ROWS, 3, tokenizer=tokenizer)
    expected = evaluate_infilling(model, tokenizer, cases, max_new_tokens=6)
    before = model.generation_config
    model.generation_config = type(before)(
        **{**before.to_dict(), "do_sample": True, "temperature": 2.0, "top_p": 0.5, "repetition_penalty": 3.0}
    )
    try:
        assert evaluate_infilling(model, tokenizer, cases, max_new_tokens=6) == expected
    finally:
        model.generation_config = before
    assert "flags" not in caplog.text


def test_a_model_that_knows_the_file_fills_every_span(tokenizer):
    torch.manual_seed(0)
    model = CodeGen2ForCausalLM(tokenizer_config(tokenizer, mp_num=1, n_positions=192))
    text = "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n"
    cases = make_infill_cases([{"path": "a.py", "text": text}], 6, tokenizer=tokenizer)
    untrained, _ = evaluate_infilling(model, tokenizer, cases, max_new_tokens=16)
    layout = infill_layout(tokenizer)
    pieces = [[encode_source(tokenizer, part) for part in (case.prefix, case.suffix)] for case in cases]
    rows = [
        layout.sequence(around, [encode_source(tokenizer, case.middle)])
        for around, case in zip(pieces, cases, strict=True)
    ]
    width = max(map(len, rows))
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        model(labels.clamp(min=0), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    scores, _ = evaluate_infilling(model, tokenizer, cases, max_new_tokens=16)
    assert scores == {
        "exact_match": 1.0, "strict_exact_match": 1.0, "edit_similarity": 1.0, "eom_rate": 1.0, "num_cases": 6
    }  # fmt: skip
    assert untrained["exact_match"] == 0.0 and untrained["eom_rate"] < 1.0
    assert causal_loss(model, tokenizer, [{"text": text}])["loss"] < 3.0


# Loss


def test_the_loss_is_that_of_every_token_after_the_first_of_its_file(tokenizer, model):
    rows = [{"text": "def add(a, b): return a"}, {"text": "x"}, {"text": "y = <|endoftext|> + é"}]
    sums, count, size = 0.0, 0, 0
    for row in rows:
        ids = torch.tensor([encode_source(tokenizer, row["text"])])
        if ids.shape[1] > 1:
            log_probs = model(ids).logits[0, :-1].log_softmax(-1)
            sums -= log_probs.gather(-1, ids[0, 1:, None]).sum().item()
            count, size = count + ids.shape[1] - 1, size + len(tokenizer.decode(ids[0, 1:]).encode())
    for batch_size in (1, 4):
        scores = causal_loss(model, tokenizer, rows, batch_size=batch_size)
        assert scores["loss"] == pytest.approx(sums / count, rel=1e-5)
        assert scores["bits_per_byte"] == pytest.approx(sums / math.log(2) / size, rel=1e-5)
        assert (scores["num_tokens"], scores["num_files"]) == (count, 2)
    with pytest.raises(ValueError, match="none of the 1 files has two tokens"):
        causal_loss(model, tokenizer, [{"text": "x"}])


def test_long_files_are_read_in_windows(tokenizer, model):
    ids = encode_source(tokenizer, FILE)
    scores = causal_loss(model, tokenizer, [{"text": FILE}], max_length=16)
    total = 0.0
    for start in range(0, len(ids) - 1, 15):
        window = torch.tensor([ids[start : start + 16]])
        total += model(window, labels=window).loss.item() * (window.shape[1] - 1)
    assert scores["num_tokens"] == len(ids) - 1
    assert scores["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
