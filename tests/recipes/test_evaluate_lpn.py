"""Evaluation by the real command, on tiny settings."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from cases_lpn_recipes import TINY_EVALUATION, evaluate
from cases_recipes import ROOT, call, command, flags, launch, load_recipe
from transformers import AutoModel

from modeling_lpn import PatternTask, TaskStream
from modeling_lpn.lpn import transformer_lpn
from modeling_lpn.tasks.arc import save_tasks
from modeling_lpn.tasks.metrics import validate_submission
from modeling_lpn.tasks.stream import tasks_from_stream


def test_evaluation_writes_results_submission_and_pictures_and_two_processes_agree(
    trained, tmp_path, monkeypatch, capsys
):
    recipe = ROOT / "recipes" / "lpn" / "quickstart_eval.yaml"
    arguments = [recipe, *flags(TINY_EVALUATION, model_name_or_path=trained)]
    call(evaluate, monkeypatch, *arguments, "--output_dir", tmp_path / "one")
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    for name in ("per_output", "fractional_task", "strict_task", "shape", "pixel"):
        for k in (1, 2):
            assert f"top_{k}_{name}_accuracy" in results["results"][1]["scores"]
            assert f"top_{k}_{name}_accuracy" in printed
    assert [row["num_evaluations"] for row in results["results"]] == [1, 3]
    assert results["num_tasks"] == 9 and results["errors"] == {} and results["seed"] == 1_000_000
    assert {"command", "git_commit", "hardware", "versions", "seconds"} <= set(results)
    assert results["seconds"]["cpu"] > 0 and (results["peak_memory_gb"] or 1) > 0.1
    stream = TaskStream(PatternTask(4, 4, 4, 2), 9, seed=1_000_000)
    validate_submission(json.loads((tmp_path / "one" / "submission.json").read_text()), tasks_from_stream(stream, 9))
    pictures = {path.name for path in (tmp_path / "one" / "pictures").iterdir()}
    assert pictures == {"accuracy_by_budget.png", "latent_map_0.png", "search.png", "task_0.png"}

    launch("evaluate_lpn", *map(str, arguments), "--output_dir", str(tmp_path / "two"), "--num_pictures", "0")
    other = json.loads((tmp_path / "two" / "results.json").read_text())
    assert other["hardware"]["processes"] == 2
    assert other["results"] == results["results"]
    assert (tmp_path / "two" / "submission.json").read_text() == (tmp_path / "one" / "submission.json").read_text()
    assert not (tmp_path / "two" / "pictures").exists()


@pytest.mark.slow
def test_compiled_searches_solve_the_same_tasks(trained, tmp_path, monkeypatch):
    settings = {**TINY_EVALUATION, "tasks": "pattern", "num_maps": 0, "num_pictures": 0, "model_name_or_path": trained}
    for compiled in ("false", "true"):
        call(
            evaluate,
            monkeypatch,
            *flags(settings, output_dir=tmp_path / compiled, torch_compile=compiled, budgets=[4]),
        )
    eager, compiled = (json.loads((tmp_path / name / "submission.json").read_text()) for name in ("false", "true"))
    assert compiled == eager


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_in_two_processes(trained, tmp_path, monkeypatch):
    recipe = str(ROOT / "recipes" / "lpn" / "quickstart_eval.yaml")
    settings = {**TINY_EVALUATION, "num_tasks": 100, "num_maps": 0, "num_pictures": 0, "model_name_or_path": trained}
    arguments = [recipe, *flags(settings, output_dir=tmp_path / "killed")]
    process = subprocess.Popen(
        **command(recipe="evaluate_lpn", arguments=arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    solved = tmp_path / "killed" / "solved" / "tasks.jsonl"
    until = time.monotonic() + 60
    while not (solved.exists() and solved.stat().st_size) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(solved.read_text().split()) > 0 and not (tmp_path / "killed" / "results.json").exists()
    launch("evaluate_lpn", *arguments)
    assert not solved.parent.exists()
    call(evaluate, monkeypatch, recipe, *flags(settings, output_dir=tmp_path / "whole"))
    killed, whole = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("killed", "whole"))
    assert killed["results"] == whole["results"]


def test_search_settings_are_chosen_and_saved_with_the_model(trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    before = json.loads((folder / "config.json").read_text())
    settings = {**TINY_EVALUATION, "num_pictures": 0, "num_maps": 0, "model_name_or_path": folder}
    settings |= {
        "output_dir": tmp_path / "out",
        "tasks": "pattern",
        "num_validation_tasks": 4,
        "choose_search": "true",
    }
    settings |= {"choose_prior_weight": [0.0, 0.1], "choose_rank_by": ["fit", "leave_one_out"], "save_search": "true"}
    call(evaluate, monkeypatch, *flags(settings))
    after = json.loads((folder / "config.json").read_text())
    assert {"num_steps", "lr", "prior_weight", "rank_by"} == set(after["search"]) and after["search"]["lr"] == 0.5
    assert {**after, "search": None} == {**before, "search": None}
    assert "chosen on 4 validation tasks" in capsys.readouterr().out
    assert AutoModel.from_pretrained(folder).config.search == after["search"]
    with pytest.raises(ValueError, match="choose on other tasks than you judge by"):
        call(evaluate, monkeypatch, *flags(settings, validation_seed=1_000_000, overwrite=True))
    with pytest.raises(ValueError, match="`save_search` needs `choose_search`"):
        call(evaluate, monkeypatch, *flags(settings, choose_search="false", overwrite=True))
    with pytest.raises(ValueError, match="`torch_compile_mode` is 'default' and `torch_compile` false"):
        call(evaluate, monkeypatch, *flags(settings, torch_compile_mode="default", overwrite=True))
    compiled = {
        "model_name_or_path": folder,
        "tasks": "pattern",
        "output_dir": tmp_path / "mean",
        "torch_compile": "true",
    }
    with pytest.raises(ValueError, match="`torch_compile` is true and the search method 'random'"):
        call(evaluate, monkeypatch, *flags(compiled, search_method="random", search_num_samples=2))


def test_evaluation_of_task_files_without_answers(trained, tmp_path, monkeypatch, capsys):
    tasks = tasks_from_stream(TaskStream(PatternTask(4, 4, 4, 2), 3), 3)
    challenges = {t["task_id"]: {"train": t["train"], "test": [{"input": t["test"][0]["input"]}]} for t in tasks}
    (tmp_path / "challenges.json").write_text(json.dumps(challenges))
    settings = {"num_threads": 1, "budgets": [1], "model_name_or_path": trained, "num_pictures": 1}
    call(evaluate, monkeypatch, *flags(settings, tasks=tmp_path / "challenges.json", output_dir=tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["results"][0]["scores"] == {}
    validate_submission(json.loads((tmp_path / "out" / "submission.json").read_text()), tasks)
    assert "log-likelihood" in capsys.readouterr().out
    solutions = {task["task_id"]: [task["test"][0]["output"]] for task in tasks}
    (tmp_path / "solutions.json").write_text(json.dumps(solutions))
    settings |= {"solutions": tmp_path / "solutions.json", "search_method": "random", "num_tasks": 2}
    call(
        evaluate,
        monkeypatch,
        *flags(settings, tasks=tmp_path / "challenges.json", output_dir=tmp_path / "out", overwrite=True),
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_tasks"] == 2 and len(results["results"][0]["scores"]) == 10


def test_tasks_of_the_training_data_are_flagged_or_refused(trained, tmp_path, monkeypatch, capsys):
    tasks = tasks_from_stream(TaskStream(PatternTask(4, 4, 4, 2), 3), 3)
    save_tasks(tasks, tmp_path / "tasks.parquet")
    save_tasks([{**tasks[1], "task_id": "another-name"}], tmp_path / "trained_on.parquet")
    settings = {"num_threads": 1, "budgets": [0], "model_name_or_path": trained, "num_pictures": 0}
    settings |= {"tasks": tmp_path / "tasks.parquet", "output_dir": tmp_path / "out"}
    call(evaluate, monkeypatch, *flags(settings, training_tasks=tmp_path / "trained_on.parquet"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["leaks"]["tasks"]) == [tasks[1]["task_id"]]
    assert "1 of 3 tasks occur in the training data" in capsys.readouterr().out
    assert len(results["results"][0]["scores_without_leaks"]) == 10
    settings |= {"training_tasks": tmp_path / "trained_on.parquet", "overwrite": True}
    with pytest.raises(ValueError, match="1 of 3 tasks occur in the training data: .* as another-name"):
        call(evaluate, monkeypatch, *flags(settings, leaks="refuse"))
    del settings["training_tasks"]
    call(evaluate, monkeypatch, *flags(settings))
    leaks = json.loads((tmp_path / "out" / "results.json").read_text())["leaks"]
    assert leaks["tasks"] == {} and "drawn by the generator 'pattern'" in leaks["not_compared"]


def test_grids_are_written_alike_by_steps_and_passes(trained, tmp_path, monkeypatch, capsys):
    settings = {name: value for name, value in TINY_EVALUATION.items() if name.startswith("task_")}
    settings |= {"model_name_or_path": trained, "tasks": "pattern", "num_tasks": 6, "batch_sizes": [1, 4]}
    settings |= {"output": tmp_path / "decoding.json", "num_steps": 1, "repeats": 1}
    monkeypatch.setattr(transformer_lpn, "WRITING_COSTS", {"cpu": transformer_lpn.ACCELERATOR_COSTS})
    call(load_recipe("benchmarks/decoding"), monkeypatch, *flags(settings))
    rows = json.loads((tmp_path / "decoding.json").read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1, 4]
    assert all(row["same_grids"] and row["cells"] >= 6 and row["ratio"] > 0 for row in rows)
    assert "the same: True" in capsys.readouterr().out
