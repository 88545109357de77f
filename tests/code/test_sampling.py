"""Samples: drawn from the right distribution, whatever the batch, kept through interruptions, run and scored."""

import json

import pytest
import torch

from modeling_lpn import CodeGen2ForCausalLM
from modeling_lpn.code.benchmarks import TRUNCATIONS, CodeTask
from modeling_lpn.code.sampling import (
    InverseSampler,
    SamplingConfig,
    check_benchmark,
    evaluate_benchmark,
    run_completions,
    sample_completions,
)
from modeling_lpn.records import read_records
from modeling_lpn.sandbox.execution import ExecutionResult


TASKS = [
    CodeTask(f"task/{name}", f"def {name}(a, b):\n", f"assert {name}(1, 2) == 3", "    return a + b\n")
    for name in ("add", "plus", "total_of_both")
]
HOLES = [
    CodeTask("hole/0", "def add(a, b):\n    return ", "assert add(1, 2) == 3", "a + b", suffix="\n\n\nx = 1\n"),
    CodeTask("hole/1", "def add(a, b):\n", "assert add(1, 2) == 3", "    c = a + b\n", suffix="    return c\n"),
]
SAMPLING = SamplingConfig(num_samples=3, temperature=1.0, top_p=0.9, max_new_tokens=12, batch_size=4, seed=5)


def changed(config, **settings):
    return SamplingConfig(**{**vars(config), **settings})


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_tokens_are_drawn_from_the_distribution(temperature, top_p):
    probs = torch.tensor([0.05, 0.45, 0.0, 0.3, 0.2])
    scores = probs.log() * temperature
    rows = 4000
    uniforms = torch.cat([torch.linspace(0, 1, rows - 1), torch.ones(1)])[:, None]  # 1 cannot occur, and does no harm
    chosen = InverseSampler(uniforms, temperature, top_p)(None, scores.expand(rows, -1))
    assert ((chosen == 0).sum(-1) == 1).all() and (chosen.isinf().sum(-1) == 4).all()
    frequencies = chosen.argmax(-1).bincount(minlength=5) / rows
    kept = probs if top_p == 1.0 else torch.tensor([0.0, 0.45, 0.0, 0.3, 0.2])  # 0.45 + 0.3 < 0.8 <= 0.45 + 0.3 + 0.2
    torch.testing.assert_close(frequencies, kept / kept.sum(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("tasks", [TASKS, HOLES], ids=["continue", "fill"])
@pytest.mark.parametrize("truncation", ["none", "codegen"])
def test_a_sample_does_not_depend_on_its_batch(tmp_path, model, tokenizer, tasks, truncation):
    samples = [
        sample_completions(
            model,
            tokenizer,
            tasks,
            changed(SAMPLING, batch_size=size, truncation=truncation),
            tmp_path / f"{size}.jsonl",
        )
        for size in (1, 2, 32)
    ]
    assert samples[0] == samples[1] == samples[2]
    assert [[record["task_id"] for record in some] for some in samples[0]] == [[task.task_id] * 3 for task in tasks]
    assert len({record["completion"] for some in samples[0] for record in some}) > 3 * len(tasks) // 2
    other = sample_completions(model, tokenizer, tasks, changed(SAMPLING, seed=6), tmp_path / "other.jsonl")
    assert other != samples[0]


@pytest.mark.parametrize("tasks", [TASKS, HOLES], ids=["continue", "fill"])
def test_a_greedy_completion_does_not_depend_on_its_batch(tmp_path, model, tokenizer, tasks):
    greedy = SamplingConfig(max_new_tokens=12)
    found = [
        sample_completions(model, tokenizer, tasks, changed(greedy, batch_size=size), tmp_path / f"{size}.jsonl")
        for size in (1, 2, 32)
    ]
    assert found[0] == found[1] == found[2]


def test_an_interrupted_run_goes_on(tmp_path, model, tokenizer, monkeypatch):
    whole = sample_completions(model, tokenizer, TASKS, SAMPLING, tmp_path / "whole.jsonl")
    path = tmp_path / "broken.jsonl"
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 9
    # What a kill leaves: some lines, one of them half written; and of a second process, one that is there twice.
    path.write_text("".join(lines[:4]) + lines[4][:20])
    path.with_suffix(".rank1.jsonl").write_text(lines[7] + lines[2])
    path.with_suffix(".settings.json").write_text((tmp_path / "whole.settings.json").read_text())
    written = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **kwargs: written.append(len(ids)) or generate(ids, **kwargs))
    assert sample_completions(model, tokenizer, TASKS, SAMPLING, path) == whole
    assert sum(written) == 4
    assert path.read_text() == "".join(lines)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "broken.jsonl",
        "broken.settings.json",
        "whole.jsonl",
        "whole.settings.json",
    ]
    more = sample_completions(model, tokenizer, TASKS, changed(SAMPLING, num_samples=4), path)
    assert [some[:3] for some in more] == whole and sum(written) == 4 + 3
    assert sample_completions(model, tokenizer, TASKS, changed(SAMPLING, num_samples=2), path) == [
        some[:2] for some in whole
    ]
    assert sum(written) == 4 + 3


def test_samples_that_were_made_otherwise_are_not_taken(tmp_path, model, tokenizer):
    path = tmp_path / "samples.jsonl"
    sample_completions(model, tokenizer, TASKS[:1], SAMPLING, path)
    with pytest.raises(ValueError, match="made with temperature 1.0, now it is 0.5; give another output folder"):
        sample_completions(model, tokenizer, TASKS[:1], changed(SAMPLING, temperature=0.5), path)
    with pytest.raises(ValueError, match="made with tasks"):
        sample_completions(model, tokenizer, TASKS, SAMPLING, path)
    torch.manual_seed(1)
    trained_on = CodeGen2ForCausalLM(model.config).eval()
    with pytest.raises(ValueError, match="made with model"):
        sample_completions(trained_on, tokenizer, TASKS[:1], SAMPLING, path)
    with pytest.raises(ValueError, match="some tasks have a suffix and some have none"):
        sample_completions(model, tokenizer, TASKS + HOLES, SAMPLING, path)


def test_reading_skips_what_is_no_record(tmp_path):
    good = {"task_id": "a", "sample": 0, "completion": "ü\n\ud800", "finished": True}
    lines = [json.dumps(good).encode(), b"", b"[1]", b'{"task_id": "b"}', b"\xff\xfe", json.dumps(good).encode()[:-3]]
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join(lines))
    assert read_records(tmp_path / "samples.jsonl", set(good)) == [good]


def test_greedy_completions_end_where_they_will_be_cut(tmp_path, tokenizer, model):
    greedy = SamplingConfig(max_new_tokens=40, batch_size=2)
    full = sample_completions(model, tokenizer, TASKS, greedy, tmp_path / "full.jsonl")
    texts = [some[0]["completion"] for some in full]
    assert not any(some[0]["finished"] for some in full)
    word = texts[0][5:7]
    TRUNCATIONS["test"] = lambda text: text[: text.find(word)] if word in text else text
    try:
        cut = sample_completions(model, tokenizer, TASKS, changed(greedy, truncation="test"), tmp_path / "cut.jsonl")
        for text, (record,) in zip(texts, cut, strict=True):
            assert text.startswith(record["completion"])
            assert record["finished"] == (word in text)
            assert TRUNCATIONS["test"](record["completion"]) == TRUNCATIONS["test"](text)
        assert len(cut[0][0]["completion"]) < len(texts[0])
    finally:
        del TRUNCATIONS["test"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 2}, "2 samples at `temperature` 0 are all the same"),
        ({"top_p": 0.0}, r"`top_p` 0.0.*must be .* in \(0, 1\]"),
        ({"temperature": -1.0}, "`temperature` -1.0"),
        ({"truncation": "code"}, "`truncation` is 'code'; known: none, codegen"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


# Running


def test_completions_are_cut_and_every_program_is_run_once():
    ran = []

    def runner(program, timeout, memory_bytes):
        ran.append(program)
        scope = {}
        try:
            exec(program, scope)
        except Exception as error:
            return ExecutionResult("failed", 0.0, str(error))
        return ExecutionResult("passed", 0.0)

    options = {"runner": runner, "allow_code_execution": True}
    right, long = "    return a + b", "    return a + b\n\n\n1 / 0"
    completions = [[right, long, "    return 1"], [long], []]
    results = run_completions(TASKS, completions, "codegen", num_workers=1, **options)
    assert [[result.passed for result in some] for some in results] == [[True, True, False], [True], []]
    assert len(ran) == 3
    results = run_completions(TASKS[:1], [[right, long]], "none", **options)
    assert [result.passed for result in results[0]] == [True, False]
    with pytest.raises(ValueError, match="zip"):
        run_completions(TASKS, [[right]], **options)
    with pytest.raises(PermissionError, match="allow_code_execution=True"):
        run_completions(TASKS[:1], [[right]], runner=runner)


def test_a_benchmark_is_scored_for_real(tmp_path, model, tokenizer):
    options = {"isolation": "none", "allow_code_execution": True}
    assert check_benchmark(TASKS + HOLES, "canonical", **options) == 1.0
    assert check_benchmark(TASKS + HOLES, "empty", **options) == 0.0
    free = [CodeTask("free", "x = 1\n", "pass", "y = 2")]
    assert check_benchmark(TASKS[:1] + free, "empty", **options) == 0.5
    result = evaluate_benchmark(model, tokenizer, TASKS, SAMPLING, tmp_path / "samples.jsonl", k=[1, 3], **options)
    assert result["scores"] == {"pass@1": 0.0, "pass@3": 0.0, "finished_rate": pytest.approx(0, abs=1)}
    assert result["num_tasks"] == 3 and result["temperature"] == 1.0 and "end of text" in result["stop_rule"]
    with open(tmp_path / "samples.jsonl") as file:
        records = [json.loads(line) for line in file]
    for record in records:  # as if the model had written the first sample of every task rightly
        record["completion"] = "    return a + b" if record["sample"] == 0 else record["completion"]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = evaluate_benchmark(model, tokenizer, TASKS, SAMPLING, tmp_path / "samples.jsonl", k=[1, 2, 3], **options)
    assert [result["scores"][f"pass@{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
