"""Training by the real command, on tiny settings."""

import json
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import torch
from cases_lpn_recipes import TINY, evaluate, train
from cases_recipes import ROOT, call, command, flags, launch, weights
from cases_tasks import make_pairs
from transformers import AutoModel, AutoProcessor, TrainingArguments

from modeling_lpn import LPNConfig, LPNModel, LPNProcessor, SearchConfig
from modeling_lpn.arguments import given, parse_recipe
from modeling_lpn.runs import find_checkpoint
from modeling_lpn.tasks.arguments import make_task, task_arguments


RECIPES = sorted((ROOT / "recipes" / "lpn").glob("*.yaml"))


def test_the_command_that_evaluates_names_the_tasks_of_the_training():
    defaults = [str(ROOT / "recipes" / "lpn" / "quickstart.yaml")]
    run, _, task_args, *_ = parse_recipe(train.argument_types(), defaults)
    command = shlex.split(train.evaluation_command(run, task_args, LPNProcessor(4, 4), "a folder"))
    assert command[:5] == ["accelerate", "launch", "recipes/evaluate_lpn.py", "--model_name_or_path", "a folder"]
    args, tasks = parse_recipe([evaluate.EvaluationArguments, task_arguments()], command[3:])
    assert (args.model_name_or_path, args.tasks) == ("a folder", "pattern") and given(tasks) == given(task_args)


def test_a_trained_model_loads_and_its_run_is_recorded(trained):
    model, processor = AutoModel.from_pretrained(trained), AutoProcessor.from_pretrained(trained)
    assert isinstance(model, LPNModel) and model.config.latent_dim == 2
    assert processor.max_rows == 4
    record = json.loads((trained / "run.json").read_text())
    assert record["num_parameters"] == model.num_parameters()
    assert record["arguments"]["task_pattern_size"] == 2 and record["arguments"]["learning_rate"] > 0
    log = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "grid_loss" in entry] == [10, 20, 30]
    assert [entry["step"] for entry in log if "eval_top_1_strict_task_accuracy_at_1" in entry] == [15, 30]


def test_a_killed_and_resumed_run_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    """Killed in earnest, some steps after its first checkpoint; all that it wrote after that is thrown away."""
    arguments = [str(ROOT / "recipes" / "lpn" / "quickstart.yaml")]
    arguments += flags(TINY, output_dir=tmp_path, save_strategy="steps", eval_strategy="steps", eval_steps=15)
    auto = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="auto")
    process = subprocess.Popen(
        **command(recipe="train_lpn", arguments=arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while find_checkpoint(auto) is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in tmp_path.iterdir():
        if path.name != "checkpoint-10":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["TimeBudget"]["attributes"]["earlier"] > 0
    state["stateful_callbacks"]["TimeBudget"]["attributes"]["earlier"] = 3600.0  # as if it had taken an hour
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="the last: checkpoint-10.*--resume_from_checkpoint auto"):
        call(train, monkeypatch, *arguments)
    call(train, monkeypatch, *arguments, "--resume_from_checkpoint", "auto")
    expected, resumed = weights(trained), weights(tmp_path)
    assert set(expected) == set(resumed)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    record = json.loads((tmp_path / "run.json").read_text())
    assert 3600 < record["seconds"] < 3600 + 120 and record["metrics"]["train_runtime"] < 120
    assert any(not torch.equal(expected[name], weights(tmp_path / "checkpoint-10")[name]) for name in expected)


def test_two_processes_train_like_one_with_their_batches_together(tmp_path, monkeypatch):
    settings = {
        **TINY,
        "max_steps": 5,
        "variational": "false",
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
    }
    launch("train_lpn", *flags(settings, output_dir=tmp_path / "two", per_device_train_batch_size=2))
    call(train, monkeypatch, *flags(settings, output_dir=tmp_path / "one"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["hardware"]["processes"] == 2
    logs = [json.loads((tmp_path / run / "trainer_state.json").read_text())["log_history"] for run in ("one", "two")]
    for one, two in zip(logs[0][:-1], logs[1][:-1], strict=True):  # the last entry sums up process 0 alone
        assert {**one, "epoch": 0} == pytest.approx({**two, "epoch": 0}, rel=1e-4, abs=1e-6)


def test_evaluation_tasks_that_are_trained_on_are_named_before_training(tmp_path, monkeypatch, capsys):
    path = make_pairs(tmp_path / "pairs.parquet", num_tasks=2, rows_per_task=3)
    (seen := tmp_path / "seen").mkdir()
    trained_on = {"input": [[1], [1]], "output": [[9, 9]]}  # the first row of task1
    for name, pair in (("other", trained_on), ("new", {"input": [[1, 1]], "output": [[9], [9]]})):
        (seen / f"{name}.json").write_text(json.dumps({"train": [pair], "test": [{"input": [[7]], "output": [[7]]}]}))
    settings = {name: value for name, value in TINY.items() if not name.startswith("task")}
    settings |= {"task": "pairs", "task_path": path, "task_num_pairs": 2, "max_steps": 1, "eval_steps": 1}
    settings |= {"eval_strategy": "steps", "eval_tasks": seen, "save_strategy": "no", "output_dir": tmp_path / "out"}
    with pytest.raises(ValueError, match="1 of 2 tasks occur in the training data: other as task1"):
        call(train, monkeypatch, *flags(settings, leaks="refuse"))
    with pytest.raises(ValueError, match="`leaks` is 'no'; give flag or refuse"):
        call(train, monkeypatch, *flags(settings, leaks="no"))
    call(train, monkeypatch, *flags(settings))
    assert "1 of 2 tasks occur in the training data: other as task1" in capsys.readouterr().out
    leaks = json.loads((tmp_path / "out" / "run.json").read_text())["leaks"]
    assert list(leaks["tasks"]) == ["other"] and leaks["not_compared"] is None


def test_training_continues_from_a_model_with_other_settings(trained, tmp_path, monkeypatch):
    start = {"model_name_or_path": trained, "num_threads": 1, "disable_tqdm": "true", "max_steps": 1}
    start |= {name: TINY[name] for name in ("task_num_rows", "task_num_cols", "task_pattern_size")}
    start |= {"per_device_train_batch_size": 2, "save_strategy": "no"}
    call(train, monkeypatch, *flags(start, output_dir=tmp_path, prior_kl_weight=0.5, train_search_num_steps=2))
    config = AutoModel.from_pretrained(tmp_path).config
    assert (config.prior_kl_weight, config.latent_dim) == (0.5, 2)
    with pytest.raises((RuntimeError, ValueError), match="(?i)mismatch"):
        call(train, monkeypatch, *flags(start, output_dir=tmp_path, overwrite=True, latent_dim=3))


def test_bf16_trains(tmp_path, monkeypatch):
    call(train, monkeypatch, *flags(TINY, output_dir=tmp_path, max_steps=2, save_strategy="no", bf16="true"))
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


@pytest.mark.slow
def test_torch_compile_trains(tmp_path, monkeypatch):
    call(train, monkeypatch, *flags(TINY, output_dir=tmp_path, max_steps=3, save_strategy="no", torch_compile="true"))
    call(train, monkeypatch, *flags(TINY, output_dir=tmp_path / "eager", max_steps=3, save_strategy="no"))
    compiled, eager = weights(tmp_path), weights(tmp_path / "eager")
    assert all(torch.allclose(compiled[name], eager[name], atol=1e-3) for name in eager)


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path):
    settings = {**TINY, "save_strategy": "steps", "eval_strategy": "no", "max_steps": 20, "muon": True}
    launch("train_lpn", *flags(settings, output_dir=tmp_path))
    expected = weights(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-20")
    launch("train_lpn", *flags(settings, output_dir=tmp_path, resume_from_checkpoint="auto"))
    resumed = weights(tmp_path)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood(path, tmp_path):
    if path.stem.endswith("_eval"):
        args, task_args, search = parse_recipe(
            [evaluate.EvaluationArguments, task_arguments(), evaluate.SearchArguments], [str(path)]
        )
        make_task(args.tasks, task_args)
    else:
        run, model_args, task_args, train_search, search, args = parse_recipe(
            train.argument_types(), [str(path), "--output_dir", str(tmp_path)]
        )
        LPNConfig(**given(model_args))
        SearchConfig(**given(train_search, "train_search_"))
        assert args.max_steps > 0
        if run.task != "pairs":
            make_task(run.task, task_args)
        else:
            assert task_args.task_held_out == 20 and task_args.task_exclude_task_ids == ["40853293"]
    SearchConfig(**given(search, "search_"))
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("# ") and f"recipes/lpn/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("pattern", 243_360), ("pattern_2d", 254_664), ("pattern_ood", 154_496), ("arc", 44_604_928 - 61_440)],
)
def test_recipes_of_the_paper_build_models_of_its_size(name, parameters):
    """Counts from the hyperparameter tables; with rotary positions `arc` has no position tables (2 x 2 x 30 x 512)."""
    model_args = parse_recipe(train.argument_types(), [str(ROOT / "recipes" / "lpn" / f"{name}.yaml")])[1]
    with torch.device("meta"):
        model = LPNModel(LPNConfig(**given(model_args)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_mistakes_are_named(tmp_path, monkeypatch):
    quickstart = ROOT / "recipes" / "lpn" / "quickstart.yaml"
    with pytest.raises(ValueError, match="`latent_dims` is no known argument; did you mean `latent_dim`"):
        call(train, monkeypatch, quickstart, "--latent_dims", "3")
    with pytest.raises(FileNotFoundError, match="quickstar.yaml does not exist; .*quickstart.yaml"):
        call(train, monkeypatch, str(quickstart).replace("start.", "star."))
    with pytest.raises(ValueError, match="`task` is 'patern'; known: pattern, pairs"):
        call(train, monkeypatch, *flags(TINY, output_dir=tmp_path, task="patern"))
    with pytest.raises(ValueError, match="`task_path` is no option of task 'pattern'"):
        call(train, monkeypatch, *flags(TINY, output_dir=tmp_path, task_path="x"))
    with pytest.raises(ValueError, match="`eval_seed` have the same seed 5"):
        call(train, monkeypatch, *flags(TINY, output_dir=tmp_path, seed=5, eval_seed=5))
    excluding = [
        ({"eval_budgets": [0, -1]}, "`eval_budgets` hold -1"),
        ({"num_eval_tasks": 0, "eval_strategy": "steps"}, "`num_eval_tasks` is 0 while `eval_strategy` is steps"),
        ({"load_best_model_at_end": "true"}, "`load_best_model_at_end` is True while `eval_strategy` is no"),
    ]
    for settings, message in excluding:
        with pytest.raises(ValueError, match=message):
            call(train, monkeypatch, *flags({**TINY, **settings}, output_dir=tmp_path / "none"))
    assert not (tmp_path / "none" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="model_name_or_path"):
        call(evaluate, monkeypatch, "--tasks", "pattern")
    with pytest.raises(FileNotFoundError, match="neither a known source nor a file"):
        monkeypatch.setattr(evaluate.AutoModel, "from_pretrained", lambda *a, **k: LPNModel(LPNConfig()))
        monkeypatch.setattr(evaluate.AutoProcessor, "from_pretrained", lambda *a, **k: None)
        call(evaluate, monkeypatch, "--model_name_or_path", "x", "--tasks", "arcagi:evaluations-of-2031")
