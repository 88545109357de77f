"""Re-ARC's pairs as files: every form of source, held-out rows, errors."""

import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cases_datasets import TASK, card_header

from modeling_lpn.tasks.pairs import PairTask, read_pairs


TASK_IDS = ["00d62c1b", "017c7c7b"]


def re_arc_pairs(task, count=6):
    return [{"input": [[task] * (index + 1)], "output": [[index % 10]]} for index in range(count)]


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
        script("build_re_arc").main(["--source", str(source), "--output", str(tmp_path), "--overwrite"])
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
