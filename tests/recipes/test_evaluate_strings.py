"""Strings by the real commands, on tiny settings."""

import json

import pytest
from cases_lpn_recipes import TINY, evaluate, train
from cases_recipes import call, flags, load_recipe
from transformers import AutoProcessor

from modeling_lpn.hub import assemble, verify


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


def test_variants_get_the_same_time(tmp_path, monkeypatch, capsys):
    names = ("task", "task_max_length", "task_max_size", "vocab_size", "max_rows", "max_cols", "copy_inputs")
    recipe = {name: TINY_STRINGS[name] for name in names} | {"per_device_train_batch_size": 4, "learning_rate": "1e-3"}
    file = tmp_path / "recipe.yaml"
    file.write_text("\n".join(f"{name}: {value}" for name, value in recipe.items()))
    settings = {"output": tmp_path / "out.json", "seconds": 0.5, "num_tasks": 3}
    ablation = load_recipe("benchmarks/variants")
    variants = ["--variant", "", "--variant", "num_previous_cells=2 learning_rate=2e-3 muon=true"]
    for more in ([], ["--variant", "copy_inputs=false"]):
        call(ablation, monkeypatch, str(file), *flags(settings), *variants, *more)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == [
        "",
        "num_previous_cells=2 learning_rate=2e-3 muon=true",
        "copy_inputs=false",
    ]
    assert all(row["steps"] > 0 and row["validation"]["loss"] > 0 for row in rows)
    assert rows[2]["num_parameters"] < rows[0]["num_parameters"] < rows[1]["num_parameters"]
    assert capsys.readouterr().out.count("variant") == 3  # those that were there did not run again
    with pytest.raises(ValueError, match="sets 'learning_rat', which nothing reads"):
        call(ablation, monkeypatch, str(file), *flags(settings), "--variant", "learning_rat=1")


def test_variants_of_tasks_without_splits_are_judged_on_new_tasks(tmp_path, monkeypatch):
    sizes = {"task_num_rows": 3, "task_num_cols": 3, "task_pattern_size": 2, "max_rows": 3, "max_cols": 3}
    recipe = {"task": "pattern", **sizes, "per_device_train_batch_size": 4, "learning_rate": "1e-3"}
    file, output = tmp_path / "recipe.yaml", tmp_path / "out.json"
    file.write_text("\n".join(f"{name}: {value}" for name, value in recipe.items()))
    settings = flags({"output": output, "seconds": 0.5, "num_tasks": 3, "variant": "muon=true"})
    call(load_recipe("benchmarks/variants"), monkeypatch, str(file), *settings)
    row = json.loads(output.read_text())["rows"][0]
    assert row["steps"] > 0 and row["train"]["loss"] > 0 and "validation" not in row
