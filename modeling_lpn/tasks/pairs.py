"""Tables of input/output pairs in Parquet, and tasks drawn from them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..optional import require


def require_integer(name: str, value: Any, lowest: int, highest: int | None = None) -> None:
    in_range = isinstance(value, int) and lowest <= value and (highest is None or value <= highest)
    if isinstance(value, bool) or not in_range:
        wanted = f"an integer of at least {lowest}" if highest is None else f"an integer from {lowest} to {highest}"
        raise ValueError(f"`{name}` is {value!r}; give {wanted}")


@dataclass
class FlatGrids:
    """Grids of any shapes in one flat array: grid i is `cells[starts[i]:][: rows * cols]`, `shapes[i] = (rows, cols)`.

    200,000 Re-ARC pairs take 112 MB this way; padded to 30 x 30 they would take 360 MB, as lists several GB.
    """

    cells: np.ndarray
    starts: np.ndarray
    shapes: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        """`(rows, cols)` view of grid `index`."""
        start, (rows, cols) = self.starts[index], self.shapes[index]
        return self.cells[start : start + rows * cols].reshape(rows, cols)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Grids `indices` `(...)` as `(..., rows, cols)` uint8 on the canvas of the largest, zero outside."""
        flat = indices.reshape(-1)
        rows, cols = self.shapes[flat].max(axis=0)
        canvas = np.zeros((len(flat), rows, cols), dtype=np.uint8)
        for target, start, (rows, cols) in zip(
            canvas, self.starts[flat].tolist(), self.shapes[flat].tolist(), strict=True
        ):
            target[:rows, :cols] = self.cells[start : start + rows * cols].reshape(rows, cols)
        return canvas.reshape(*indices.shape, *canvas.shape[1:])


@dataclass
class PairTable:
    """Pairs of many tasks, read from Parquet by [`read_pairs`]: pair i belongs to task `task_ids[task_index[i]]`."""

    task_ids: list[str]
    task_index: np.ndarray
    inputs: FlatGrids
    outputs: FlatGrids

    def __len__(self) -> int:
        return len(self.task_index)


def _flat_grids(column: Any, name: str, path: str) -> FlatGrids:
    """Turns an Arrow column of lists of lists of integers into [`FlatGrids`], without a Python object per cell."""
    pa = require("pyarrow.parquet", "data", "Parquet")
    where = f"Column `{name}` of {path}"
    kind, depth = column.type, 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth != 2 or not pa.types.is_integer(kind):
        raise ValueError(f"{where} has type {column.type}; a grid is a list of lists of integers (list<list<uint8>>)")
    grids = column.combine_chunks()
    grids = pa.concat_arrays(grids.chunks) if isinstance(grids, pa.ChunkedArray) else grids
    lines = grids.flatten()
    cells = lines.flatten()
    if grids.null_count or lines.null_count or cells.null_count:
        raise ValueError(f"{where} has missing values; drop the rows without a grid")
    cells, num_rows, line_lengths = (
        array.to_numpy(zero_copy_only=False) for array in (cells, grids.value_lengths(), lines.value_lengths())
    )
    num_rows, line_lengths = num_rows.astype(np.int64), line_lengths.astype(np.int64)
    first_lines = np.cumsum(num_rows) - num_rows
    if len(num_rows) and num_rows.min() == 0:
        raise ValueError(f"{where}: row {int(num_rows.argmin())} is an empty grid; drop it")
    num_cols = line_lengths[first_lines]
    wrong = np.flatnonzero(line_lengths != np.repeat(num_cols, num_rows))
    if len(wrong) or (len(num_cols) and num_cols.min() == 0):
        row = int(np.searchsorted(first_lines, wrong[0], "right")) - 1 if len(wrong) else int(num_cols.argmin())
        raise ValueError(
            f"{where}: row {row} has rows of different lengths or without cells; an ARC grid is a rectangle, drop it"
        )
    sizes = num_rows * num_cols
    starts = np.cumsum(sizes) - sizes
    bad = np.flatnonzero((cells < 0) | (cells > 9))
    if len(bad):
        row = int(np.searchsorted(starts, bad[0], "right")) - 1
        raise ValueError(f"{where}: row {row} has a cell of {cells[bad[0]]}, outside 0..9; map the colours or drop it")
    return FlatGrids(cells.astype(np.uint8, copy=False), starts, np.stack([num_rows, num_cols], axis=1))


def read_pairs(path: str | os.PathLike) -> PairTable:
    """
    Reads a Parquet file with one input/output pair a row (columns `task_id`, `input`, `output`; others are ignored),
    such as the output of `datasets_scripts/build_re_arc.py`. The grid check is the processor's, in vectorised form.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ImportError`: pyarrow is not installed.
        `ValueError`: not a Parquet file, a column is missing or of the wrong type, or a grid is not a rectangle of
        colours 0 to 9.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {path!r}; give a Parquet file of pairs (task_id, input, output)")
    pa = require("pyarrow.parquet", "data", "Parquet")
    try:
        file = pa.parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error}); give a Parquet file of pairs") from error
    with file:
        names = file.schema_arrow.names
        missing = [name for name in ("task_id", "input", "output") if name not in names]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]!r} (its columns: {', '.join(names)}); a table of pairs has"
                " `task_id`, `input` and `output`"
            )
        table = file.read(columns=["task_id", "input", "output"])
    if not len(table):
        raise ValueError(f"{path} has no rows; give a table with at least one pair")
    if nameless := table["task_id"].null_count:
        raise ValueError(f"{path} has {nameless} rows without task_id; give every pair the id of its task")
    task_id = table["task_id"].combine_chunks().dictionary_encode()
    inputs, outputs = (_flat_grids(table[name], name, path) for name in ("input", "output"))
    return PairTable(task_id.dictionary.to_pylist(), task_id.indices.to_numpy(), inputs, outputs)


@dataclass
class PairTask:
    """
    Tasks made of different pairs of one program, drawn from a table of pairs such as Re-ARC's: every task draws a
    program uniformly, then `num_pairs` of its rows without replacement.

    Args:
        path (`str`): Parquet file of pairs, see [`read_pairs`].
        num_pairs (`int`, defaults to 4): Pairs per task.
        held_out (`int`, defaults to 0): The last `held_out` rows of every task (in file order) are kept apart.
        split (`str`, defaults to `"train"`): `"train"` draws from all other rows, `"validation"` from the held-out.
        exclude_task_ids (`Sequence[str]`): Tasks to leave out, e.g. one that equals an evaluation task.
        max_side (`int`, defaults to 30): Largest side the model takes, in cells; larger grids are an error.

    Raises:
        `ValueError`: bad arguments, an unknown id in `exclude_task_ids`, a task with too few rows, a grid over
        `max_side`, or anything [`read_pairs`] raises.
    """

    path: str
    num_pairs: int = 4
    held_out: int = 0
    split: str = "train"
    exclude_task_ids: Sequence[str] = ()
    max_side: int = 30

    def __post_init__(self):
        require_integer("num_pairs", self.num_pairs, 1)
        require_integer("held_out", self.held_out, 0)
        require_integer("max_side", self.max_side, 1, 255)
        if self.split not in ("train", "validation"):
            raise ValueError(f"`split` is {self.split!r}; give 'train' or 'validation'")
        if self.split == "validation" and not self.held_out:
            raise ValueError(
                "`split` is 'validation' but `held_out` is 0; say how many last rows of each task are held out"
            )
        self._table = read_pairs(self.path)
        for name, grids in (("input", self._table.inputs), ("output", self._table.outputs)):
            if (largest := int(grids.shapes.max())) > self.max_side:
                row = int(grids.shapes.max(axis=1).argmax())
                raise ValueError(
                    f"`{name}` of row {row} of {self.path} has a side of {largest} cells, over `max_side` ="
                    f" {self.max_side}; drop the row, or raise `max_side` and use a model with larger grids"
                )
        self._choose_rows()

    def _choose_rows(self) -> None:
        """Lists, per task in use, the table rows it may draw: `_rows[_first[t]:][:_count[t]]`."""
        ids = self._table.task_ids
        if isinstance(self.exclude_task_ids, str):
            raise ValueError(f"`exclude_task_ids` is the string {self.exclude_task_ids!r}; give a list of ids")
        excluded = {str(task_id) for task_id in self.exclude_task_ids}  # YAML reads an id of digits as a number
        unknown = sorted(excluded - set(ids))
        if unknown:
            raise ValueError(
                f"`exclude_task_ids` names {unknown[0]!r}, which is not in {self.path}; check the id, the task meant"
                " would stay in the data"
            )
        order = np.argsort(self._table.task_index, kind="stable")
        per_task = np.split(order, np.cumsum(np.bincount(self._table.task_index, minlength=len(ids)))[:-1])
        chosen = []
        for task_id, rows in zip(ids, per_task, strict=True):
            if task_id in excluded:
                continue
            border = max(len(rows) - self.held_out, 0)
            rows = rows[:border] if self.split == "train" else rows[border:]
            if len(rows) < self.num_pairs:
                raise ValueError(
                    f"Task {task_id!r} of {self.path} has {len(rows)} rows for split {self.split!r}, fewer than"
                    f" `num_pairs` = {self.num_pairs}; exclude it, lower `num_pairs` or change `held_out`"
                )
            chosen.append((task_id, rows))
        if not chosen:
            raise ValueError(f"`exclude_task_ids` leaves no task of {self.path}; exclude fewer")
        self.task_ids = [task_id for task_id, _ in chosen]
        self._count = np.array([len(rows) for _, rows in chosen])
        self._first = np.cumsum(self._count) - self._count
        self._rows = np.concatenate([rows for _, rows in chosen])

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draws `num_tasks` tasks: `task_id` (list), grids `(num_tasks, num_pairs, rows, cols)` uint8 on the canvas of
        the largest drawn, and their shapes."""
        task = rng.integers(0, len(self.task_ids), num_tasks)
        # Floyd's algorithm draws a uniform subset in num_pairs steps, whatever the number of rows.
        drawn = np.full((num_tasks, self.num_pairs), -1)
        for step in range(self.num_pairs):
            last = self._count[task] - self.num_pairs + step
            pick = rng.integers(0, last + 1)
            drawn[:, step] = np.where((drawn == pick[:, None]).any(axis=1), last, pick)
        rows = self._rows[self._first[task][:, None] + rng.permuted(drawn, axis=1)]
        return {
            "task_id": [self.task_ids[index] for index in task],
            "input_grids": self._table.inputs.gather(rows),
            "output_grids": self._table.outputs.gather(rows),
            "input_shapes": self._table.inputs.shapes[rows],
            "output_shapes": self._table.outputs.shapes[rows],
        }


__all__ = ["FlatGrids", "PairTable", "PairTask", "read_pairs"]
