"""Corpora as they lie on people's disks: kinds of files, compression, faults of rows, folders, the Hub."""

import bz2
import gzip
import json
import logging
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_lpn import open_sources
from modeling_lpn.code.corpora import (
    find_data_files,
    load_corpus,
    read_rows,
    split_source,
    stream_corpus,
    tokenize_corpus,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


ROWS = [{"text": "a = 1\n", "path": "a.py"}, {"text": "é\n", "path": "b.py"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
WRITTEN = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES.rstrip(b"\n"),
    "rows.JSONL": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "blank.jsonl": LINES.replace(b"\n", b"\r\n\r\n"),
    "rows.jsonl.gz": gzip.compress(LINES),
    "unnamed_gzip.jsonl": gzip.compress(LINES),
    "rows.jsonl.bz2": bz2.compress(LINES),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "lines.json": LINES,
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", WRITTEN)
def test_every_kind_of_file(name, tmp_path):
    path = write(tmp_path / name, WRITTEN[name])
    assert list(load_corpus(str(path))) == ROWS
    assert list(load_corpus(str(path), streaming=True)) == ROWS


def test_zstd(tmp_path):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(LINES)
    assert list(load_corpus(str(write(tmp_path / "a.jsonl.zst", sink.getvalue().to_pybytes())))) == ROWS


def test_several_files_folders_and_patterns(tmp_path):
    write(tmp_path / "many" / "b" / "2.jsonl.gz", gzip.compress(LINES))
    write(tmp_path / "many" / "1.jsonl", LINES)
    write(tmp_path / "many" / ".hidden" / "3.jsonl", b"broken")
    write(tmp_path / "many" / "settings.json", "{}")
    assert read_rows([str(tmp_path / "many")]) == ROWS * 2
    assert read_rows([str(tmp_path / "many" / "*.jsonl")]) == ROWS
    assert [path.name for path in find_data_files(str(tmp_path / "many"))] == ["1.jsonl", "2.jsonl.gz"]
    assert split_source(str(tmp_path / "many"))[0] == split_source(str(tmp_path / "many" / "*.jsonl"))[0] == "many"
    parquet(tmp_path / "many" / "x.parquet", text=["x"])
    with pytest.raises(ValueError, match="has 2 JSON lines, 1 Parquet files; give the files themselves"):
        load_corpus(str(tmp_path / "many"))
    for split in ("train", "validation"):
        parquet(tmp_path / "built" / f"{split}.parquet", text=["x"])
    with pytest.raises(ValueError, match="has the splits train, validation, which would be mixed"):
        load_corpus(str(tmp_path / "built"))
    with pytest.raises(FileNotFoundError, match="has no Parquet, JSON or JSON lines files"):
        load_corpus(str(write(tmp_path / "none" / "a.py", "x").parent))


FAULTY = [
    {"text": None},
    {"text": "good"},
    {"text": ""},
    {"other": 1, "text": "too"},
    {"path": "p"},
    {"text": "\ud800"},
]
FAULTY += [{"text": "\ufeff"}, {"text": "\ufeffbom"}]


def test_rows_without_a_text_are_skipped_and_counted(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, FAULTY)))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset = load_corpus(str(path))
        assert list(dataset["text"]) == ["good", "too", "bom"]
        assert list(dataset["path"]) == [f"{path}:{row}" for row in (2, 4, 8)]
        messages = [record.getMessage() for record in caplog.records]
        assert f"{path}: 1 rows skipped, 'text' is null: {path}:1" in messages
        assert f"{path}: 2 rows skipped, 'text' is empty: {path}:3, {path}:7" in messages
        assert f"{path}: 1 rows skipped, no 'text': {path}:5" in messages
        assert f"{path}: 1 rows skipped, 'text' has half a surrogate pair: {path}:6" in messages
    assert [row["text"] for row in load_corpus(str(path), streaming=True)] == ["good", "too", "bom"]
    path = parquet(tmp_path / "b.parquet", content=pa.array([b"caf\xc3\xa9", b"\xff", None], pa.binary()))
    assert read_rows([str(path)]) == [{"text": "café", "path": f"{path}:1"}]


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "old"}')
    assert list(load_corpus(str(path))["text"]) == ["old"]
    write(path, '{"text": "new one"}')
    assert list(load_corpus(str(path))["text"]) == ["new one"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ', "a.jsonl:3 is not JSON .*give one JSON object a line"),
        ("a.jsonl", b"[1]", "a.jsonl:1 is a list; give one JSON object a line"),
        ("a.json", b'["x"]', "a.json: entry 1 of the list is a str; give a list of objects"),
        ("a.json", b"[{]", "a.json is not JSON"),
        ("a.jsonl", b"", "No row of .*a.jsonl has a text: there are none"),
        ("a.jsonl", b'{"text": null}', "has a text: 1 'text' is null; check the column"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: 'text' is a int, not a text"),
        (
            "a.jsonl",
            b'{"body": "x"}',
            "a.jsonl:1' has none of the columns text, content, code; set `text_column` to one of body",
        ),
        ("a.jsonl.gz", gzip.compress(LINES * 2000)[:200], "a.jsonl.gz is cut off or damaged after line"),
        ("a.parquet", b"PAR1", "a.parquet is not a Parquet file"),
        ("a.txt", b"text", "'a.txt' is no Parquet, JSON or JSON lines file"),
    ],
)
def test_faults_are_named(tmp_path, name, content, message, streaming):
    path = write(tmp_path / name, content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(load_corpus(str(path), streaming=streaming))


def test_columns(tmp_path):
    path = parquet(tmp_path / "a.parquet", body=["x"], max_stars_repo_path=["m.py"])
    assert read_rows([str(path)], "body") == [{"text": "x", "path": "m.py"}]
    with pytest.raises(ValueError, match="a.parquet' has no column 'text'; name the one of file contents: body, max"):
        load_corpus(str(path), "text")


def test_hub_places(tmp_path, monkeypatch):
    asked = []
    datasets = pytest.importorskip("datasets")

    def load_dataset(path, **settings):
        asked.append({"path": path, **settings})
        return datasets.Dataset.from_dict({"content": ["x", None], "path": ["a", "b"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for place, settings in {
        "hub:a/b": {"split": "train"},
        "hub:a/b:test": {"split": "test"},
        "hub:a/b:python:test": {"name": "python", "split": "test"},
        "hub:a/b?data_dir=data/python&revision=v1.1": {
            "split": "train",
            "data_dir": "data/python",
            "revision": "v1.1",
        },
        "hub:a/b:test?config=c": {"name": "c", "split": "test"},
    }.items():
        assert read_rows([place]) == [{"text": "x", "path": "a"}]
        assert asked[-1] == {"path": "a/b", "streaming": False, **settings}
        assert split_source(place)[0] == "b"
    for place, message in {
        "hub:a/b:c:d:e": "has 3 parts behind the name; write hub:ID",
        "hub:a/b?splt=x": "has the setting 'splt'",
        "hub:a/b:x?split=y": "gives 'split' twice",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_corpus(place)


def test_a_data_set_of_the_hub_layout_is_read_for_real(tmp_path):
    parquet(tmp_path / "set" / "train.parquet", text=["a"])
    parquet(tmp_path / "set" / "test.parquet", text=["b", ""])
    assert read_rows([f"x=hub:{tmp_path / 'set'}:test"]) == [{"text": "b", "path": f"hub:{tmp_path / 'set'}:1"}]
    rows = load_corpus(f"hub:{tmp_path / 'set'}", streaming=True)
    assert [row["text"] for row in rows] == ["a"]


def test_tokenised_and_streamed_alike(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, FAULTY)).encode()))
    documents, streamed = tokenize_corpus(str(path), tokenizer), list(stream_corpus(str(path), tokenizer)())
    assert [ids.tolist() for _, ids in streamed] == [documents[index].tolist() for index in range(3)]
    assert [name for name, _ in streamed] == [documents.name(index) for index in range(3)]
    opened = open_sources([f"one={path}", str(path)], tokenizer)
    assert list(opened) == ["one", "a"] and opened["one"].num_tokens == documents.num_tokens


def test_without_datasets_the_tokens_stay_in_memory(tmp_path, tokenizer, monkeypatch, cache, caplog):
    path = str(write(tmp_path / "rows.jsonl", LINES + b'{"text": null}\n'))
    cached = tokenize_corpus(path, tokenizer)
    monkeypatch.setitem(sys.modules, "datasets", None)
    shutil.rmtree(cache)
    caplog.clear()
    kept = tokenize_corpus(path, tokenizer)
    assert [kept[index].tolist() for index in range(len(kept))] == [cached[index].tolist() for index in range(2)]
    assert [kept.name(index) for index in range(2)] == ["a.py", "b.py"]
    assert "1 rows skipped, 'text' is null" in caplog.text and not cache.exists()
    assert read_rows([path]) == ROWS
