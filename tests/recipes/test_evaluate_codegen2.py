"""The evaluation of code models as a command, in one process and in two."""

import contextlib
import io
import json
import sys

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from cases_code import HUMANEVAL, INFILL, MBPP, ROWS, write
from cases_codegen2 import tiny_tokenizer, tokenizer_config
from cases_recipes import ROOT, call, flags, launch, load_recipe

from modeling_lpn import CodeGen2ForCausalLM
from modeling_lpn.arguments import parse_recipe
from modeling_lpn.code import evaluation
from modeling_lpn.sandbox.execution import isolation_level


evaluate = load_recipe("evaluate_codegen2")
ISOLATION = isolation_level() if sys.platform == "linux" else "none"
SETTINGS = {"num_threads": 1, "allow_code_execution": "true", "isolation": ISOLATION, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, held-out files and small benchmarks."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("evaluation")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    CodeGen2ForCausalLM(tokenizer_config(tokenizer, mp_num=1, n_positions=128)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), folder / "validation.parquet")
    write(folder / "humaneval.jsonl", HUMANEVAL)
    write(folder / "mbpp.jsonl", MBPP)
    write(folder / "HumanEval-SingleLineInfilling.jsonl.gz", INFILL)
    return folder


def arguments(folder, **more):
    return flags(
        SETTINGS,
        model_name_or_path=folder / "model",
        benchmarks=["infill", "loss", "humaneval", "humaneval_infill:single-line", "mbpp"],
        validation_files=[folder / "validation.parquet"],
        humaneval_path=folder / "humaneval.jsonl",
        humaneval_infill_path=folder,
        mbpp_path=folder / "mbpp.jsonl",
        num_cases=5,
        num_samples=3,
        temperature=0.8,
        k=[1, 2],
        batch_size=2,
        **more,
    )


def without_time(results):
    return {name: {**result, "seconds": 0} for name, result in results["results"].items()}


@pytest.fixture(scope="module")
def evaluated(folder):
    """What one process printed and wrote."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        call(evaluate, patch, *arguments(folder, output_dir=folder / "one"))
    return printed.getvalue(), json.loads((folder / "one" / "results.json").read_text())


def test_everything_is_evaluated_and_recorded(folder, evaluated):
    printed, record = evaluated
    results = record["results"]
    names = ["infill:tokens", "infill:line", "loss", "humaneval", "humaneval_infill:single-line", "mbpp"]
    assert list(results) == names and all(f"\n{name} {{" in f"\n{printed}" for name in names)
    assert {"command", "date", "git_commit", "hardware", "seed", "arguments", "num_parameters"} <= set(record)
    assert results["infill:tokens"]["scores"]["num_cases"] == 5 and "eom_rate" in results["infill:line"]["scores"]
    assert results["loss"]["scores"]["num_files"] == 3
    assert set(results["infill:line"]["intervals_95"]) == set(results["infill:line"]["scores"]) - {"num_cases"}
    assert ", 95 %: pass@1 0." in printed
    for name in names[3:]:
        result = results[name]
        assert set(result["scores"]) == {"pass@1", "pass@2", "finished_rate"}
        for score, (low, high) in result["intervals_95"].items():
            assert 0 <= low <= result["scores"][score] <= high <= 1 and high > low
        assert (result["floor"], result["ceiling"]) == (0.0, 1.0) and result["isolation"] == ISOLATION
        assert result["num_samples"] == 3 and result["temperature"] == 0.8 and result["infill_format"] == "codegen2"
        assert result["whitespace_policy"] == "as it is" and result["stop_rule"]
    assert [results[name]["truncation"] for name in names[3:]] == ["codegen", "none", "mbpp_stop_words"]
    assert len((folder / "one" / "samples_mbpp.jsonl").read_text().splitlines()) == 6
    assert len((folder / "one" / "spans_infill_line.jsonl").read_text().splitlines()) == 5


def compare(folder, evaluated, name):
    other = json.loads((folder / name / "results.json").read_text())
    assert other["hardware"]["processes"] == 2
    assert without_time(other) == without_time(evaluated[1])
    for path in (folder / "one").glob("s*.json*"):
        assert (folder / name / path.name).read_text() == path.read_text()
    assert {path.name for path in (folder / name).iterdir()} == {path.name for path in (folder / "one").iterdir()}


class Killed(Exception):
    pass


def test_a_killed_evaluation_goes_on(folder, evaluated, monkeypatch):
    written, fill = [], evaluation.infill

    def killed_in_the_third_batch(*args, **kwargs):
        if len(written) == 2:
            raise Killed
        written.append(len(args[2]))
        return fill(*args, **kwargs)

    given = arguments(folder, output_dir=folder / "killed")
    monkeypatch.setattr(evaluation, "infill", killed_in_the_third_batch)
    with pytest.raises(Killed):
        call(evaluate, monkeypatch, *given)
    assert len((folder / "killed" / "spans_infill_tokens.jsonl").read_text().splitlines()) == 4
    assert not (folder / "killed" / "results.json").exists()
    counting = []
    monkeypatch.setattr(evaluation, "infill", lambda *a, **k: counting.append(len(a[2])) or fill(*a, **k))
    call(evaluate, monkeypatch, *given)
    assert counting == [1, 2, 2, 1]  # the last batch of tokens, and all of the lines
    again = json.loads((folder / "killed" / "results.json").read_text())
    assert without_time(again) == without_time(evaluated[1])
    with pytest.raises(ValueError, match="holds records made with max_new_tokens 64, now it is 7"):
        call(evaluate, monkeypatch, *given, "--overwrite", "true", "--infill_max_new_tokens", "7")


def evaluate_in_child(given):
    PartialState._reset_state()
    AcceleratorState._reset_state()
    sys.argv = ["evaluate_codegen2", *map(str, given)]
    evaluate.main()


def test_files_that_are_trained_on_are_flagged_refused_or_left_out(folder, tmp_path, monkeypatch, capsys):
    trained_on = [{"path": "copy.py", "text": ROWS[0]["text"].replace("\n", "\n\n") + " "}]
    write(tmp_path / "train.jsonl", trained_on)
    settings = {"model_name_or_path": folder / "model", "benchmarks": ["loss"], "num_threads": 1, "overwrite": "true"}
    settings |= {"validation_files": folder / "validation.parquet", "output_dir": tmp_path / "out"}

    def record(**more):
        call(evaluate, monkeypatch, *flags(settings, **more))
        result = json.loads((tmp_path / "out" / "results.json").read_text())
        return result["leaks"], result["results"]["loss"]["scores"]["num_files"]

    leaks, num_files = record()
    assert leaks["files"] == {} and "there is no record of the training" in leaks["not_compared"]
    leaks, same = record(training_files=tmp_path / "train.jsonl")
    assert leaks["files"] == {ROWS[0]["path"]: "copy.py"} and same == num_files
    assert (
        f"1 of {len(ROWS)} files occur in the training data: {ROWS[0]['path']} as copy.py" in capsys.readouterr().out
    )
    assert record(training_files=tmp_path / "train.jsonl", leaks="leave_out")[1] == num_files - 1
    with pytest.raises(ValueError, match="as copy.py ...; evaluate on others"):
        record(training_files=tmp_path / "train.jsonl", leaks="refuse")


def test_two_processes_agree(folder, evaluated):
    debug_launcher(evaluate_in_child, (arguments(folder, output_dir=folder / "two"),), num_processes=2)
    compare(folder, evaluated, "two")


@pytest.mark.slow
def test_two_launched_processes_agree(folder, evaluated):
    launch("evaluate_codegen2", *arguments(folder, output_dir=folder / "launched"))
    compare(folder, evaluated, "launched")


@pytest.mark.parametrize("check", ["canonical", "empty"])
def test_the_harness_is_checked_without_a_model(folder, tmp_path, monkeypatch, check):
    sources = {"humaneval_path": folder / "humaneval.jsonl", "mbpp_path": folder / "mbpp.jsonl"}
    given = flags(
        SETTINGS, check=check, benchmarks=["humaneval", "mbpp", "mbpp:3-shot"], output_dir=tmp_path, **sources
    )
    call(evaluate, monkeypatch, *given)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    expected = {"pass@1": 1.0 if check == "canonical" else 0.0}
    assert [result["scores"] for result in results.values()] == [expected] * 3


def test_mistakes_are_said_before_anything_is_done(folder, monkeypatch):
    def refused(error, message, **settings):
        with pytest.raises(error, match=message):
            call(evaluate, monkeypatch, *flags({"check": "canonical", "benchmarks": "humaneval", **settings}))

    refused(PermissionError, "--allow_code_execution true")
    allowed = {"allow_code_execution": "true", "isolation": "none"}
    refused(ValueError, "no `?humanevil|has 'humanevil'; known: infill:tokens", **allowed, benchmarks="humanevil")
    refused(ValueError, "'loss' needs `model_name_or_path` and `validation_files`", **allowed, benchmarks="loss")
    refused(ValueError, "or `check` one of empty, canonical", **allowed, model_name_or_path="x")
    refused(ValueError, "or `check` one of", **allowed, check="nothing")
    with pytest.raises(ValueError, match="pass@10 needs `num_samples` of at least 10"):
        call(evaluate, monkeypatch, *flags({**allowed, "model_name_or_path": "x", "benchmarks": "humaneval", "k": 10}))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "codegen2").glob("*_eval.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_is_understood(path):
    (args,) = parse_recipe([evaluate.EvaluationArguments], [str(path)])
    assert evaluate.plan(args) == ["infill:tokens", "loss"]
    assert path.read_text().startswith("# ") and f"recipes/codegen2/{path.name}" in path.read_text()


def test_a_benchmark_of_holes_is_scored_by_exact_match(folder, tmp_path, monkeypatch):
    rows = [
        {"language": "py", "name": "a", "prompt": "def f():\n", "suffix": "\n", "canonical_solution": "    return 1"}
    ]
    write(tmp_path / "santa.jsonl", rows)
    settings = {"model_name_or_path": folder / "model", "benchmarks": "santacoder_fim", "output_dir": tmp_path / "out"}
    call(evaluate, monkeypatch, *flags(SETTINGS, santacoder_fim_path=tmp_path / "santa.jsonl", **settings))
    result = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["santacoder_fim"]
    assert result["scores"]["num_cases"] == 1 and result["scores"]["exact_match"] == 0.0
    assert json.loads((tmp_path / "out" / "spans_santacoder_fim.jsonl").read_text())["kind"] == "py"
    with pytest.raises(ValueError, match="'safim' needs `model_name_or_path` and `safim_path`"):
        call(evaluate, monkeypatch, *flags(SETTINGS, **{**settings, "benchmarks": "safim", "overwrite": "true"}))
