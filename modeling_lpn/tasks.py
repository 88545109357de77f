"""Task generators for training, in batches, and a seeded stream of their tasks that any position can be read from.

A generator is a class with a `num_pairs` field and a method

    sample(num_tasks, rng) -> {"input_grids", "output_grids", "input_shapes", "output_shapes", ("task_id")}

whose grids are `(num_tasks, num_pairs, rows, cols)` uint8, zero outside the grids, and whose shapes are
`(num_tasks, num_pairs, 2)` int64 = (rows, cols). It draws only from `rng`. Its line in `TASK_GENERATORS` makes recipes
find it and the property tests cover it.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset


BLOCK_SIZE = 256  # tasks generated at once; part of the definition of a stream: another value is other data


class TaskGenerator(Protocol):
    """What [`TaskStream`] needs of a generator, see the module docstring."""

    num_pairs: int

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, Any]: ...


def _require_integer(name: str, value: Any, lowest: int, highest: int | None = None) -> None:
    in_range = isinstance(value, int) and lowest <= value and (highest is None or value <= highest)
    if isinstance(value, bool) or not in_range:
        wanted = f"an integer of at least {lowest}" if highest is None else f"an integer from {lowest} to {highest}"
        raise ValueError(f"`{name}` is {value!r}; give {wanted}")


@dataclass
class PatternTask:
    """
    The pattern task of the LPN paper (arXiv 2411.08706, section 5.1): a task is one square pattern of random colours;
    an input is black with a single blue cell (colour 1), its output has the pattern pasted with the top-left corner
    there. The official generator draws the same distribution with Python's `random`.

    Args:
        num_pairs (`int`, defaults to 4): Pairs per task.
        num_rows, num_cols (`int`, defaults to 10): Sides of every grid, in cells, at most 255.
        pattern_size (`int`, defaults to 4): Side of the pattern, in cells.
        density (`float`, defaults to 1.0): Probability that a cell of the pattern is coloured (uniformly 1 to 9);
            the others are black. Below 1 the corner cell of the pattern may be black as well.

    Raises:
        `ValueError`: a size is not an integer in range, the pattern is larger than the grid, or `density` is outside
        0..1.
    """

    num_pairs: int = 4
    num_rows: int = 10
    num_cols: int = 10
    pattern_size: int = 4
    density: float = 1.0

    def __post_init__(self):
        _require_integer("num_pairs", self.num_pairs, 1)
        _require_integer("num_rows", self.num_rows, 1, 255)
        _require_integer("num_cols", self.num_cols, 1, 255)
        _require_integer("pattern_size", self.pattern_size, 1)
        if self.pattern_size > min(self.num_rows, self.num_cols):
            raise ValueError(
                f"`pattern_size` is {self.pattern_size}, larger than the {self.num_rows} x {self.num_cols} grid; give"
                " a pattern that fits in the grid"
            )
        if not 0 <= self.density <= 1:
            raise ValueError(f"`density` is {self.density!r}; it is a probability, give a number from 0 to 1")

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws `num_tasks` tasks: grids `(num_tasks, num_pairs, num_rows, num_cols)` uint8 and their shapes."""
        size, rows, cols = self.pattern_size, self.num_rows, self.num_cols
        pattern = rng.integers(1, 10, (num_tasks, 1, size * size), dtype=np.uint8)
        if self.density < 1:
            pattern *= rng.random(pattern.shape) < self.density
        row = rng.integers(0, rows - size + 1, (num_tasks, self.num_pairs))
        col = rng.integers(0, cols - size + 1, (num_tasks, self.num_pairs))
        # Scattering into the flat array touches only the cells of the patterns, not the whole grids.
        grid_starts = np.arange(num_tasks * self.num_pairs).reshape(num_tasks, self.num_pairs) * (rows * cols)
        corners = grid_starts + row * cols + col
        offsets = (np.arange(size)[:, None] * cols + np.arange(size)).reshape(-1)
        input_grids = np.zeros((num_tasks, self.num_pairs, rows, cols), dtype=np.uint8)
        output_grids = np.zeros_like(input_grids)
        input_grids.reshape(-1)[corners] = 1
        output_grids.reshape(-1)[corners[..., None] + offsets] = pattern
        shapes = np.broadcast_to(np.array([rows, cols]), (num_tasks, self.num_pairs, 2))
        return {
            "input_grids": input_grids,
            "output_grids": output_grids,
            "input_shapes": shapes,
            "output_shapes": shapes,
        }


@dataclass
class FlatGrids:
    """Grids of any shapes in one flat array: grid i is `cells[starts[i]:][: rows * cols]`, `shapes[i] = (rows, cols)`.

    200,000 Re-ARC pairs take about 110 MB this way, a tenth of what lists or padded arrays take.
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
        for target, start, (rows, cols) in zip(canvas, self.starts[flat].tolist(), self.shapes[flat].tolist()):
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


def import_pyarrow():
    """Imports pyarrow where it is needed, so that the package works without it.

    Raises:
        `ImportError`: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow; install it with `pip install pyarrow`") from error
    return pyarrow


def _flat_grids(column: Any, name: str, path: str) -> FlatGrids:
    """Turns an Arrow column of lists of lists of integers into [`FlatGrids`], without a Python object per cell."""
    pa = import_pyarrow()
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
    pa = import_pyarrow()
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
        _require_integer("num_pairs", self.num_pairs, 1)
        _require_integer("held_out", self.held_out, 0)
        _require_integer("max_side", self.max_side, 1, 255)
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
        unknown = sorted(set(self.exclude_task_ids) - set(ids))
        if unknown:
            raise ValueError(
                f"`exclude_task_ids` names {unknown[0]!r}, which is not in {self.path}; check the id, the task meant"
                " would stay in the data"
            )
        order = np.argsort(self._table.task_index, kind="stable")
        per_task = np.split(order, np.cumsum(np.bincount(self._table.task_index, minlength=len(ids)))[:-1])
        chosen = []
        for task_id, rows in zip(ids, per_task):
            if task_id in set(self.exclude_task_ids):
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


TASK_GENERATORS: dict[str, Callable[..., TaskGenerator]] = {"pattern": PatternTask, "pairs": PairTask}
GROUPINGS = ("tokens", "canvas")


class TaskStream(Dataset):
    """
    A fixed, endless-looking sequence of generated tasks: item i is a pure function of `seed` and i, so that any number
    of workers and processes reads the same data and training resumes at any step without replaying.

    Read it in order (`TrainingArguments(train_sampling_strategy="sequential")`): tasks are random anyway, the
    generated blocks are reused, and grouping survives.

    Args:
        task ([`TaskGenerator`]): E.g. [`PatternTask`] or [`PairTask`].
        length (`int`): Number of items. Does not change the items.
        seed (`int`, defaults to 0): Of the whole stream, at least 0.
        group_by (`str`, *optional*): Re-orders the items inside windows so that consecutive groups of `batch_size`
            hold tasks alike, and shuffles the groups. `"tokens"` groups by the largest pair of a task (for models that
            drop padded cells), `"canvas"` by the rows and columns of a task (for models that pad to the batch's
            canvas). On Re-ARC, batches of 32 x 4 pairs then compute 1.7 (without grouping 3.0) and 2.4 (3.2) times the
            cells they hold.
        batch_size (`int`, *optional*): Group size, for `group_by`: the batch of one process, or of all together.
        window (`int`, defaults to 64): Groups per window.
        turned (`bool`, defaults to `False`): For `group_by="canvas"` with a collator that turns grids: an item of odd
            `seed` is grouped with rows and columns exchanged.

    Raises:
        `ValueError`: bad arguments.
    """

    def __init__(
        self,
        task: TaskGenerator,
        length: int,
        seed: int = 0,
        group_by: str | None = None,
        batch_size: int | None = None,
        window: int = 64,
        turned: bool = False,
    ):
        _require_integer("length", length, 0)
        _require_integer("seed", seed, 0)
        if group_by is not None:
            if group_by not in GROUPINGS:
                raise ValueError(f"`group_by` is {group_by!r}; give one of {', '.join(GROUPINGS)}, or None")
            _require_integer("batch_size", batch_size, 1)
            _require_integer("window", window, 1)
        self.task = task
        self.length = length
        self.seed = seed
        self.group_by = group_by
        self.batch_size = batch_size
        self.window = window
        self.turned = turned
        self.position = 0
        self._blocks: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        window_blocks = 0 if group_by is None else -(-batch_size * window // BLOCK_SIZE) + 1
        self._max_blocks = max(2, window_blocks)  # two: a batch may lie across a border

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`: `task_id`, `input_grids` and `output_grids` `(pairs, rows, cols)` uint8, `input_shapes` and
        `output_shapes` `(pairs, 2)`, and `seed` (`int`), from which the collator draws the task's augmentation."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items `indices`; [`~torch.utils.data.DataLoader`] fetches a batch through it."""
        return [self._item(self._source(self._checked(index))) for index in indices]

    def _checked(self, index: int) -> int:
        if not -self.length <= index < self.length:
            raise IndexError(f"Item {index} is outside a stream of {self.length} items; give a larger `length`")
        return int(index) % self.length

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _block(self, number: int) -> dict[str, Any]:
        """Tasks `number * BLOCK_SIZE` and following, whole whatever the length, so that the length changes no item."""
        if number not in self._blocks:
            rng = self._rng(0, number)
            seeds = rng.integers(0, 2**63, BLOCK_SIZE)  # first: whatever the generator draws, these stay
            self._blocks[number] = {"seed": seeds, **self.task.sample(BLOCK_SIZE, rng)}
            while len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _item(self, source: int) -> dict[str, Any]:
        number, row = divmod(source, BLOCK_SIZE)
        block = self._block(number)
        task_id = block["task_id"][row] if "task_id" in block else str(source)
        item = {"task_id": task_id, "seed": int(block["seed"][row])}
        for side in ("input", "output"):
            shapes = block[f"{side}_shapes"][row]
            rows, cols = shapes.max(axis=0)
            item[f"{side}_grids"] = block[f"{side}_grids"][row, :, :rows, :cols]
            item[f"{side}_shapes"] = shapes
        return item

    def _source(self, index: int) -> int:
        """Which ungrouped item stands at position `index`."""
        if self.group_by is None:
            return index
        size = self.batch_size * self.window
        number = index // size
        if self._order[0] != number:
            self._order = (number, self._window_order(number, number * size, size))
        return int(self._order[1][index % size])

    def _window_order(self, number: int, start: int, size: int) -> np.ndarray:
        """Positions `start .. start + size - 1` sorted into groups alike, the groups shuffled."""
        sources = np.arange(start, start + size)
        parts = []
        for block_number in range(start // BLOCK_SIZE, (start + size - 1) // BLOCK_SIZE + 1):
            block = self._block(block_number)
            shapes = np.stack([block["input_shapes"], block["output_shapes"]], axis=2)  # (tasks, pairs, 2, 2)
            tokens = shapes.prod(axis=-1).sum(axis=-1).max(axis=-1)
            canvas = shapes.max(axis=(1, 2))
            if self.turned:
                canvas = np.where((block["seed"] & 1)[:, None] == 1, canvas[:, ::-1], canvas)
            parts.append(np.concatenate([tokens[:, None], canvas], axis=1))
        sizes = np.concatenate(parts)[start % BLOCK_SIZE :][:size]
        if self.group_by == "tokens":
            order = np.argsort(sizes[:, 0], kind="stable")
        else:
            order = _tile_order(sizes[:, 1:], self.batch_size)
        groups = sources[order].reshape(self.window, self.batch_size)
        return self._rng(1, number).permutation(groups).reshape(-1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Items from the current position on, for use without a DataLoader; `state_dict` continues it exactly."""
        while self.position < self.length:
            self.position += 1
            yield self[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        """Position of the sequential iteration and the seed it belongs to."""
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues the sequential iteration where `state` was taken.

        Raises:
            `ValueError`: the state belongs to a stream of another seed.
        """
        if state["seed"] != self.seed:
            raise ValueError(
                f"The state is of a stream with seed {state['seed']}, this one has {self.seed}; build the stream with"
                " the seed it was saved with"
            )
        self.position = state["position"]


def _tile_order(canvas: np.ndarray, batch_size: int) -> np.ndarray:
    """Order of `(n, 2)` canvases in which groups of `batch_size` have both sides alike: slabs of groups sorted by
    rows, each slab sorted by columns (sort-tile packing). Sorting by area alone would join 10 x 30 with 30 x 10."""
    num_groups = len(canvas) // batch_size
    order = np.argsort(canvas[:, 0], kind="stable").reshape(num_groups, batch_size)
    slabs = np.array_split(order, max(1, round(num_groups**0.5)))
    return np.concatenate([slab.reshape(-1)[np.argsort(canvas[slab.reshape(-1), 1], kind="stable")] for slab in slabs])


__all__ = ["TASK_GENERATORS", "PairTable", "PairTask", "PatternTask", "TaskGenerator", "TaskStream", "read_pairs"]
