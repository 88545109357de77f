"""Records of runs, and the rules that all recipes share."""

import json
import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modeling_lpn.arguments import RecipeTrainingArguments
from modeling_lpn.codegen2.infilling_codegen2 import find_format
from modeling_lpn.runs import (
    ThreadChoice,
    TimeBudget,
    describe_run,
    find_checkpoint,
    is_finished,
    load_pretrained,
    refuse_existing,
    remove_checkpoints,
    run_recipe,
    write_results,
)


ROOT = Path(__file__).parent.parent


def arguments(folder, **settings):
    return RecipeTrainingArguments(output_dir=str(folder), use_cpu=True, max_steps=10, report_to="none", **settings)


def checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_a_results_file_says_how_it_came_about_and_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, 3, scores={"a": 0.5})
    record = json.loads(path.read_text())
    assert record["seed"] == 3 and record["scores"] == {"a": 0.5}
    assert {"command", "date", "git_commit", "hardware", "versions"} <= set(record)
    with pytest.raises(TypeError, match="keys must be"):
        write_results(path, 4, scores={(1, 2): 3})
    assert json.loads(path.read_text()) == record and os.listdir(path.parent) == ["results.json"]
    write_results(path, 5, loss=float("nan"), scores=[float("inf"), 1.0])
    record = json.loads(path.read_text())
    assert record["loss"] is None and record["scores"] == [None, 1.0]


def test_what_is_there_is_replaced_only_when_asked(tmp_path):
    refuse_existing(tmp_path / "results.json", overwrite=False)
    (tmp_path / "results.json").write_text("{}")
    refuse_existing(tmp_path / "results.json", overwrite=True)
    with pytest.raises(ValueError, match="results.json is there already.*--overwrite"):
        refuse_existing(tmp_path / "results.json", overwrite=False)


def test_an_earlier_training_is_continued_or_replaced_only_when_asked(tmp_path):
    assert find_checkpoint(arguments(tmp_path)) is None
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an earlier run.*--resume_from_checkpoint auto.*--overwrite"):
        find_checkpoint(arguments(tmp_path))
    with pytest.raises(ValueError, match="a finished run .run.json. and no checkpoint"):
        find_checkpoint(arguments(tmp_path, resume_from_checkpoint="auto"))
    path = checkpoint(tmp_path, 4)
    with pytest.raises(ValueError, match="the last: checkpoint-4"):
        find_checkpoint(arguments(tmp_path))
    resumed = arguments(tmp_path, resume_from_checkpoint="auto")
    assert find_checkpoint(resumed) == str(path)
    for number, text in ((6, '{"global_st'), (12, None)):  # killed while they were written
        (half := tmp_path / f"checkpoint-{number}").mkdir()
        if text is not None:
            (half / "trainer_state.json").write_text(text)
    assert find_checkpoint(resumed) == str(path)
    with pytest.raises(ValueError, match="give one of the two"):
        find_checkpoint(resumed, overwrite=True)
    assert find_checkpoint(arguments(tmp_path), overwrite=True) is None and path.exists()
    remove_checkpoints(arguments(tmp_path))
    assert not path.exists()


def test_a_finished_run_is_told_from_one_that_is_not(tmp_path, capsys):
    args = arguments(tmp_path)
    assert not is_finished(None, args) and not is_finished(str(checkpoint(tmp_path, 4)), args)
    assert capsys.readouterr().out == ""
    assert is_finished(str(checkpoint(tmp_path, 10)), args)
    assert "is finished: 10 of 10 steps are done, and nothing was changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, message",
    [({"eval_on_start": True}, "`eval_strategy` is no"), ({"max_minutes": 0.0}, "`max_minutes` is 0.0")],
)
def test_flags_that_exclude_each_other(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


def test_a_missing_folder_is_called_a_missing_folder(tmp_path):
    def load(name):
        raise OSError("the Hub cannot be reached\nand much more")

    for name in (str(tmp_path / "none"), "outputs/none"):
        with pytest.raises(FileNotFoundError, match=rf"there is no folder '{name}'.*cannot be reached\)"):
            load_pretrained(load, name)
    with pytest.raises(OSError, match="much more"):  # the folder is there: what its files lack is said as it is
        load_pretrained(load, str(tmp_path))


def test_a_mistake_ends_in_one_line_and_a_bug_in_its_traceback(monkeypatch, capsys):
    def mistaken():
        find_format("a")

    monkeypatch.setattr(sys, "argv", ["recipes/train.py"])
    with pytest.raises(SystemExit) as ended:
        run_recipe(mistaken)
    assert ended.value.code == 2
    assert "train.py: Unknown infill format 'a'" in (line := capsys.readouterr().err) and line.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["recipes/train.py", "--traceback"])
    with pytest.raises(ValueError, match="Unknown infill format"):
        run_recipe(mistaken)
    with pytest.raises(KeyError):
        run_recipe(lambda: {}["a bug"])
    with pytest.raises(ValueError):
        run_recipe(lambda: torch.zeros(2).numpy().reshape(3))


RECIPES = [path for path in (ROOT / "recipes").glob("*.py") if "parse_recipe" in path.read_text()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_a_mistake_in_one_line(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(recipe), "--no_such_flag", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(recipe), run_name="__main__")
    assert ended.value.code == 2
    assert re.search("`no_such_flag` is no known argument|are required: --", line := capsys.readouterr().err)
    assert line.count("\n") == 1


def test_a_time_budget_ends_a_run_and_says_what_it_will_take(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("modeling_lpn.runs.time.perf_counter", lambda: next(clock))
    budget, args = TimeBudget(max_minutes=5), SimpleNamespace(save_strategy="no")
    control = SimpleNamespace()
    state = SimpleNamespace(global_step=0, max_steps=100, is_world_process_zero=True, stateful_callbacks={})
    budget.on_train_begin(args, state, control)
    while not budget.ended:
        state.global_step += 1
        budget.on_step_end(args, state, control)
    assert state.global_step == 30 and control.should_training_stop and not control.should_save
    assert "20 steps took 200.0 s: 13.3 minutes for the other steps" in capsys.readouterr().out


@pytest.mark.parametrize("most,tried", [(1, []), (2, [1, 2]), (8, [1, 4, 8])])
def test_the_fastest_number_of_threads_is_chosen(most, tried, monkeypatch, capsys):
    cost, now, used, before = {1: 3.0, 2: 2.0, 4: 1.0, 8: 4.0}, [0.0], [], torch.get_num_threads()
    monkeypatch.setattr("modeling_lpn.runs.time.perf_counter", lambda: now[0])
    choice, state = ThreadChoice(most), SimpleNamespace(is_world_process_zero=True)
    try:
        for _ in range(20):
            choice.on_step_begin(None, state, None)
            used.append(torch.get_num_threads())
            now[0] += cost.get(used[-1], 0.0)
            choice.on_step_end(None, state, None)
        best = min(tried, key=cost.__getitem__) if tried else before
        trials = [number for number in tried for _ in range(ThreadChoice.STEPS)]
        assert used == trials + [best] * (20 - len(trials)) and torch.get_num_threads() == best
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert (f"going on with {best}" in printed) if tried else not printed


def test_a_run_is_described():
    record = describe_run(7)
    assert record["seed"] == 7 and record["versions"]["torch"] == torch.__version__
    assert {"command", "date", "git_commit", "hardware"} <= set(record)
    assert record["hardware"]["processes"] == 1
