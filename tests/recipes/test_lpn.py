"""The real commands, on tiny settings."""

import json
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import torch
from cases_recipes import ROOT, call, command, flags, launch, load_recipe, weights
from cases_tasks import make_pairs
from transformers import AutoModel, AutoProcessor

from modeling_lpn import LPNConfig, LPNModel, LPNProcessor, PatternTask, SearchConfig, TaskStream
from modeling_lpn.arguments import given, parse_recipe
from modeling_lpn.hub import assemble, verify
from modeling_lpn.tasks.arc import save_tasks
from modeling_lpn.tasks.arguments import make_task, task_arguments
from modeling_lpn.tasks.metrics import validate_submission
from modeling_lpn.tasks.stream import tasks_from_stream


RECIPES = sorted((ROOT / "recipes" / "lpn").glob("*.yaml"))
TINY = {
    "num_threads": 1,
    "task_num_rows": 4,
    "task_num_cols": 4,
    "task_pattern_size": 2,
    "max_rows": 4,
    "max_cols": 4,
    "latent_dim": 2,
    "encoder_num_heads": 2,
    "encoder_head_dim": 4,
    "decoder_num_heads": 2,
    "decoder_head_dim": 4,
    "per_device_train_batch_size": 4,
    "max_steps": 30,
    "save_steps": 10,
    "save_total_limit": 5,
    "logging_steps": 10,
    "num_eval_tasks": 4,
    "eval_budgets": [0, 1],
    "disable_tqdm": "true",
}
TINY_EVALUATION = {
    **{name: TINY[name] for name in ("num_threads", "task_num_rows", "task_num_cols", "task_pattern_size")},
    "num_tasks": 9,
    "budgets": [0, 2],
    "batch_size": 2,
    "search_lr": 0.5,
    "num_pictures": 1,
    "num_maps": 1,
}


train, evaluate = load_recipe("train_lpn"), load_recipe("evaluate_lpn")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of an uninterrupted run of the quickstart recipe."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        recipe = ROOT / "recipes" / "lpn" / "quickstart.yaml"
        call(
            train,
            patch,
            recipe,
            *flags(TINY, output_dir=folder, save_strategy="steps", eval_strategy="steps", eval_steps=15),
        )
    return folder


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
    process = subprocess.Popen(
        **command(recipe="train_lpn", arguments=arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not (tmp_path / "checkpoint-10" / "trainer_state.json").exists() and time.monotonic() < until:
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
    settings = {**TINY, "save_strategy": "steps", "eval_strategy": "no", "max_steps": 20}
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


TINY_STRINGS = {
    **{name: value for name, value in TINY.items() if not name.startswith(("task_", "max_rows", "max_cols"))},
    "task": "string",
    "task_max_length": 16,
    "task_max_size": 2,
    "task_output_step": 4,
    "vocab_size": 96,
    "max_rows": 1,
    "max_cols": 16,
    "copy_inputs": "true",
    "max_steps": 4,
    "save_strategy": "no",
    "eval_strategy": "steps",
    "eval_steps": 4,
}


def test_strings_from_training_to_scores(tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    call(train, monkeypatch, *flags(TINY_STRINGS, output_dir=model))
    processor = AutoProcessor.from_pretrained(model)
    assert processor.output_step == 4 and processor.max_length == 16
    source = tmp_path / "some.jsonl"
    pairs = {"inputs": ["ab", "cd", "e" * 30], "outputs": ["a", "c", "e"]}
    readable = {"inputs": ["ab", "cd", "ef"], "outputs": ["a", "c", "e"]}
    source.write_text(json.dumps(pairs) + "\n" + json.dumps(readable) + "\n")
    settings = {name: TINY_STRINGS[name] for name in ("task_max_length", "task_max_size", "num_threads")}
    settings |= {"num_tasks": 4, "num_examples": [1, 3], "budgets": [0, 1], "seconds": 0.02, "num_ambiguity_tasks": 1}
    settings |= {"calibrate": "true", "num_calibration_tasks": 4, "tasks": ["string", str(source)]}
    settings |= {"searches": ["method=mean", "method=random,std=0.5", "num_samples=2", "rank_by=leave_one_out"]}
    settings["search_evaluations"] = 12
    strings = load_recipe("evaluate_strings")
    call(strings, monkeypatch, *flags(settings, model_name_or_path=model, output_dir=tmp_path / "out"))
    generated, read = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("string", "some"))
    by_number = generated["results_by_num_examples"]
    assert [len(by_number[count]) for count in ("1", "3")] == [2, 2] and generated["results"] == by_number["3"]
    compared = generated["results_by_search"]
    assert [row["num_evaluations"] for row in compared.values()] == [1, 12, 12, 12]
    assert compared["num_samples=2"]["search"]["num_steps"] == 12 and compared["num_samples=2"]["budget"] == 12
    assert (tmp_path / "out" / "string.png").is_file()
    assert generated["arguments"]["tasks"] == "string" and 0 <= generated["ambiguity"]["share_ambiguous"] <= 1
    assert set(generated["baselines"]) == {"enumeration", "enumeration_seconds", "nearest_pair"}
    assert read["num_tasks"] == 2 and list(read["errors"]) == ["some_0"]
    assemble(model, tmp_path / "card", [tmp_path / "out" / "string.json"], license="apache-2.0")
    verify(tmp_path / "card")
    assert (tmp_path / "card" / "calibration.json").is_file() and "num_examples 3), 4 tasks" in (
        tmp_path / "card" / "README.md"
    ).read_text()
    assert json.loads((model / "calibration.json").read_text()) == generated["calibration"]
    assert "some.jsonl: 2 tasks, 1 of them unreadable" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is a model of strings; evaluate it with recipes/evaluate_strings.py"):
        call(evaluate, monkeypatch, "--model_name_or_path", model, "--output_dir", tmp_path / "other")
    with pytest.raises(ValueError, match="string.json"):
        call(strings, monkeypatch, *flags(settings, model_name_or_path=model, output_dir=tmp_path / "out"))
    with pytest.raises(ValueError, match="'std' is no setting; write name=value"):
        wrong = {**settings, "searches": ["method=random,std"], "output_dir": tmp_path / "new"}
        call(strings, monkeypatch, *flags(wrong, model_name_or_path=model))
    with pytest.raises(ValueError, match="generator 'sequence' has no strings"):
        call(
            strings,
            monkeypatch,
            "--model_name_or_path",
            model,
            "--tasks",
            "sequence",
            "--output_dir",
            tmp_path / "new",
        )
    with pytest.raises(ValueError, match="`max_cols` is 20, but task 'string' has grids with 16; set `max_cols: 16`"):
        call(train, monkeypatch, *flags({**TINY_STRINGS, "max_cols": 20}, output_dir=tmp_path / "wrong"))


def test_variants_of_strings_get_the_same_time(tmp_path, monkeypatch, capsys):
    names = ("task_max_length", "task_max_size", "vocab_size", "max_rows", "max_cols", "copy_inputs")
    recipe = {name: TINY_STRINGS[name] for name in names} | {"per_device_train_batch_size": 4, "learning_rate": "1e-3"}
    file = tmp_path / "recipe.yaml"
    file.write_text("\n".join(f"{name}: {value}" for name, value in recipe.items()))
    settings = {"output": tmp_path / "out.json", "seconds": 0.5, "num_tasks": 3}
    ablation = load_recipe("benchmarks/strings")
    variants = ["--variant", "", "--variant", "num_previous_cells=2 learning_rate=2e-3"]
    for more in ([], ["--variant", "copy_inputs=false"]):
        call(ablation, monkeypatch, str(file), *flags(settings), *variants, *more)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["", "num_previous_cells=2 learning_rate=2e-3", "copy_inputs=false"]
    assert all(row["steps"] > 0 and row["validation"]["loss"] > 0 for row in rows)
    assert rows[2]["num_parameters"] < rows[0]["num_parameters"] < rows[1]["num_parameters"]
    assert capsys.readouterr().out.count("variant") == 3  # those that were there did not run again
    with pytest.raises(ValueError, match="sets 'learning_rat', which nothing reads"):
        call(ablation, monkeypatch, str(file), *flags(settings), "--variant", "learning_rat=1")
