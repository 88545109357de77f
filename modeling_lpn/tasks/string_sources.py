"""Tasks on strings from files: tables, ExeDec's test sets, SyGuS benchmarks, PROSE benchmarks.

A row is that of a grid task with strings in place of grids: `{"task_id", "train": [{"input", "output"}], "test": [...]}`.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pairs import require_integer


SEPARATOR = " "  # between the strings of several inputs


def load_string_tasks(source: str | os.PathLike, num_examples: int | None = None) -> list[dict[str, Any]]:
    """
    Loads tasks on strings as rows.

    Args:
        source (`str` or path): A `.jsonl` file of ExeDec (Shi et al., 2024: RobustFill's strings, or DeepCoder's lists as
            `[1 -3 2]`), a SyGuS PBE benchmark `.sl`, a folder of those, or a folder of PROSE benchmarks (with
            `spec.json` files in it or in its subfolders). Several inputs are joined by a space.
        num_examples (`int`, *optional*): Demonstrations of a task; all other pairs become the test. By default all pairs
            but the last. Of pairs that a file holds more than once, the first is kept.

    Returns:
        `list[dict]`: In the order of the file, of a folder sorted by name.

    Raises:
        `FileNotFoundError`: there is no such file or folder, or nothing of these kinds in the folder.
        `ValueError`: a file has another layout, or a task has too few pairs.
    """
    if num_examples is not None:
        require_integer("num_examples", num_examples, 1)
    path = Path(source)
    files = [path]
    if path.is_dir():
        files = sorted(file for pattern in ("**/*.sl", "**/spec.json") for file in path.glob(pattern))
    if not files or not path.exists():
        raise FileNotFoundError(f"{str(path)!r} is no file, and no folder with .sl or spec.json files; check the path")
    named = [task for file in files for task in _reader(file)(file)]
    return [make_row(task_id, pairs, num_examples) for task_id, pairs in named]


def make_row(task_id: str, pairs: Sequence[tuple[str, str]], num_examples: int | None = None) -> dict[str, Any]:
    """A row out of the pairs of one task; see [`load_string_tasks`]."""
    pairs = list(dict.fromkeys(pairs))
    count = len(pairs) - 1 if num_examples is None else num_examples
    if not 0 < count < len(pairs):
        raise ValueError(
            f"Task {task_id!r} has {len(pairs)} different pairs, too few for {max(count, 1)} demonstrations and a test;"
            " ask for fewer, or drop it"
        )
    rows = [{"input": given, "output": output} for given, output in pairs]
    return {"task_id": task_id, "train": rows[:count], "test": rows[count:]}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def read_exedec(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tasks of an ExeDec file: one JSON object a line with `index`, `inputs` and `outputs`."""
    tasks = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pairs = list(zip(map(plain_lists, row["inputs"]), map(plain_lists, row["outputs"]), strict=True))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: {type(error).__name__}: {error}; a line is a JSON object with as many `inputs`"
                " as `outputs`, lists of strings"
            ) from error
        tasks.append((f"{path.stem}_{row.get('index', number - 1)}", pairs))
    return tasks


def plain_lists(text: str) -> str:
    """`x0 = [ 1 0 ] | x1 = [ 9 ]`, as ExeDec writes DeepCoder's lists, as `[1 0] [9]`; other strings stay as they are."""
    if re.fullmatch(r"\[ (-?\d+ )*\]", text) or text.startswith("x0 = "):
        values = [re.sub(r"^x\d+ = ", "", value) for value in text.split(" | ")]
        return SEPARATOR.join(value.replace("[ ", "[").replace(" ]", "]") for value in values)
    return text


TOKEN = re.compile(r'"(?:[^"]|"")*"|;[^\n]*|[()]|[^\s()";]+')


def parse_expressions(text: str) -> list[Any]:
    """S-expressions as nested lists; strings keep their opening quote. Raises `ValueError` for unbalanced brackets."""
    stack: list[list[Any]] = [[]]
    for token in TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise ValueError("a closing bracket too many")
            done = stack.pop()
            stack[-1].append(done)
        elif not token.startswith(";"):
            stack[-1].append(token[:-1].replace('""', '"') if token.startswith('"') else token)
    if len(stack) > 1:
        raise ValueError("a closing bracket is missing")
    return stack[0]


def read_sygus(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """The one task of a SyGuS PBE benchmark: its constraints `(= (f input ...) output)`; see sygus.org."""
    try:
        commands = parse_expressions(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a SyGuS file: {error}") from error
    names = [command[1] for command in commands if isinstance(command, list) and command[:1] == ["synth-fun"]]
    pairs = []
    for command in commands:
        if not isinstance(command, list) or command[:1] != ["constraint"]:
            continue
        sides = command[1][1:] if isinstance(command[1], list) and command[1][:1] == ["="] else []
        sides = sides[::-1] if len(sides) == 2 and isinstance(sides[1], list) and sides[1][:1] == names[:1] else sides
        known = len(sides) == 2 and isinstance(sides[0], list) and sides[0][:1] == names[:1]
        if not known or any(isinstance(value, list) for value in [*sides[0][1:], sides[1]]):
            raise ValueError(f"{path}: constraint {len(pairs)} is not an example; only programming by example is read")
        given, output = [[value.removeprefix('"') for value in side] for side in (sides[0][1:], sides[1:])]
        pairs.append((SEPARATOR.join(given), output[0]))
    if not pairs:
        raise ValueError(f"{path} has no constraints that are examples; give a SyGuS PBE benchmark")
    return [(path.stem, pairs)]


def read_prose(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """The one task of a `spec.json` of microsoft/prose-benchmarks, Transformation.Text; its name is that of the folder."""
    try:
        examples = json.loads(_read(path))["Examples"]
        pairs = [(SEPARATOR.join(example["Input"]), example["Output"]) for example in examples]
        if any(not isinstance(output, str) for _, output in pairs):
            raise TypeError("an `Output` is not a string")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: {type(error).__name__}: {error}; a specification is {{"Examples": [{{"Input": ["..."], "Output":'
            ' "..."}]}'
        ) from error
    return [(path.parent.name, pairs)]


READERS: dict[str, Callable[[Path], list[tuple[str, list[tuple[str, str]]]]]] = {
    ".jsonl": read_exedec,
    ".sl": read_sygus,
    ".json": read_prose,
}


def _reader(path: Path) -> Callable[[Path], list[tuple[str, list[tuple[str, str]]]]]:
    if path.suffix not in READERS:
        raise ValueError(f"{str(path)!r} is none of {', '.join(READERS)}; read a table with `read_table`")
    return READERS[path.suffix]


@dataclass
class Table:
    """
    A table as text, with one column to fill.

    Args:
        columns (`list[str]`): Names, in order.
        rows (`list[list[str]]`): A string for every column.
        output_column (`str`): The column to fill.
        input_columns (`list[str]`): The columns that it depends on.
        delimiter (`str`): Between the cells of the file.
    """

    columns: list[str]
    rows: list[list[str]]
    output_column: str
    input_columns: list[str]
    delimiter: str = ","

    def given(self, row: list[str]) -> str:
        """The input cells of a row, joined by a space."""
        return SEPARATOR.join(row[self.columns.index(name)] for name in self.input_columns)

    def task(self) -> dict[str, Any]:
        """The row of a task: filled rows demonstrate, the others (in order) are the test.

        Raises:
            `ValueError`: no row is filled, or all are.
        """
        place = self.columns.index(self.output_column)
        pairs = [{"input": self.given(row), "output": row[place]} for row in self.rows]
        train = [pair for pair in pairs if pair["output"]]
        test = [{"input": pair["input"]} for pair in pairs if not pair["output"]]
        if not train or not test:
            raise ValueError(
                f"Column {self.output_column!r} is filled in {len(train)} of {len(pairs)} rows; fill it in two or three"
                " rows by hand as examples, and leave the others empty"
            )
        return {"task_id": self.output_column, "train": train, "test": test}


def read_table(path: str | os.PathLike, output_column: str, input_columns: Sequence[str] | None = None) -> Table:
    """
    Reads a CSV or TSV file with a header.

    Args:
        path (`str` or path): A `.csv` (comma or semicolon) or `.tsv` file in UTF-8.
        output_column (`str`): Name of the column to fill.
        input_columns (`Sequence[str]`, *optional*): The columns it depends on; all others by default.

    Returns:
        [`Table`]

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: no such column, a header that names one twice, rows of different lengths, or no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; give a .csv or .tsv file")
    text = _read(path)
    header = text.partition("\n")[0]
    delimiter = "\t" if path.suffix == ".tsv" else max(",;", key=header.count)
    try:
        lines = [line for line in csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True) if line]
    except csv.Error as error:
        raise ValueError(f"{path} is not a table ({error}); save it as CSV with a header") from error
    if len(lines) < 2:
        raise ValueError(f"{path} has {len(lines)} lines; a table is a header and at least one row")
    columns, rows = lines[0], lines[1:]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"{path}: the header names {twice[0]!r} twice; rename one of the columns")
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells, the header {len(columns)}; fill in or quote them"
            )
    inputs = [name for name in columns if name != output_column] if input_columns is None else list(input_columns)
    for name in [output_column, *inputs]:
        if name not in columns:
            raise ValueError(f"{path} has no column {name!r}; its columns: {', '.join(columns)}")
    if not inputs or output_column in inputs:
        raise ValueError(f"The inputs of column {output_column!r} are {inputs}; name one or more other columns")
    return Table(columns, rows, output_column, inputs, delimiter)


__all__ = ["Table", "load_string_tasks", "make_row", "read_table"]
