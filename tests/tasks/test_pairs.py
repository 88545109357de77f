"""The table of pairs and the tasks drawn from it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases_tasks import GRID, NUM_TASKS, ROWS_PER_TASK, make_pairs

from modeling_lpn.tasks.pairs import PairTask, read_pairs


def rows_drawn(task, num_tasks=400):
    """(task, row) of every pair drawn, read from the grids of `make_pairs`."""
    batch = task.sample(num_tasks, np.random.default_rng(0))
    rows = batch["input_shapes"][..., 1] - 1
    assert (rows == batch["output_shapes"][..., 0] - 1).all()  # an output belongs to its input
    for task_id, grids in zip(batch["task_id"], batch["input_grids"], strict=True):
        assert (grids[:, 0, 0] == int(task_id[-1])).all()  # all pairs are of one task
    return batch["task_id"], rows


def test_pair_task_draws_different_pairs_of_one_task(pairs_path):
    task_ids, rows = rows_drawn(PairTask(pairs_path, num_pairs=5))
    assert set(task_ids) == {f"task{index}" for index in range(NUM_TASKS)}
    assert all(len(set(row)) == 5 for row in rows.tolist())
    everything = PairTask(pairs_path, num_pairs=ROWS_PER_TASK)
    assert all(sorted(row) == list(range(ROWS_PER_TASK)) for row in rows_drawn(everything)[1].tolist())


def test_pair_task_draws_uniformly(pairs_path):
    task_ids, rows = rows_drawn(PairTask(pairs_path, num_pairs=3), num_tasks=20_000)
    for position in rows.T:
        np.testing.assert_allclose(np.bincount(position) / len(position), 1 / ROWS_PER_TASK, atol=0.01)
    counts = np.unique(task_ids, return_counts=True)[1]
    np.testing.assert_allclose(counts / 20_000, 1 / NUM_TASKS, atol=0.02)


def test_held_out_rows_and_excluded_tasks(pairs_path):
    train = PairTask(pairs_path, held_out=4, exclude_task_ids=["task2"])
    validation = PairTask(pairs_path, held_out=4, split="validation")
    task_ids, rows = rows_drawn(train)
    assert set(rows.reshape(-1).tolist()) == set(range(8)) and "task2" not in task_ids
    assert set(rows_drawn(validation)[1].reshape(-1).tolist()) == {8, 9, 10, 11}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "test"}, "`split` is 'test'; give 'train' or 'validation'"),
        ({"split": "validation"}, "`held_out` is 0; say how many"),
        ({"held_out": 9}, "Task 'task0' .* has 3 rows for split 'train', fewer than `num_pairs` = 4"),
        ({"exclude_task_ids": ["tsk2"]}, "names 'tsk2', which is not in"),
        ({"exclude_task_ids": "task2"}, "is the string 'task2'; give a list"),
        ({"exclude_task_ids": [12345678]}, "names '12345678', which is not in"),
        ({"exclude_task_ids": [f"task{index}" for index in range(5)]}, "leaves no task"),
        ({"max_side": 11}, "`input` of row 55 .* has a side of 12 cells, over `max_side` = 11"),
        ({"num_pairs": 0}, "`num_pairs` is 0"),
    ],
)
def test_pair_task_errors(pairs_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        PairTask(pairs_path, **arguments)


@pytest.mark.parametrize("inner", [pa.int64(), pa.int8(), pa.uint8()])
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_read_pairs_takes_every_integer_type(tmp_path, inner, kind):
    table = read_pairs(make_pairs(tmp_path / "pairs.parquet", grid_type=kind(kind(inner))))
    assert len(table) == NUM_TASKS * ROWS_PER_TASK and table.task_ids[2] == "task2"
    for index in range(len(table)):
        row, task = divmod(index, NUM_TASKS)
        assert table.inputs[index].tolist() == [[task] * (row + 1)] * (task + 1)
        assert table.outputs[index].tolist() == [[9] * (task + 1)] * (row + 1)
    assert table.inputs.cells.dtype == np.uint8


@pytest.mark.parametrize(
    "grid, kind, message",
    [
        ([[1, 2], [3]], pa.int64(), "Column `output` .*: row 1 has rows of different lengths"),
        ([[], []], pa.int64(), "row 1 has rows of different lengths or without cells"),
        ([], pa.int64(), "row 1 is an empty grid"),
        ([[1, 10]], pa.int64(), "row 1 has a cell of 10, outside 0..9"),
        ([[-1]], pa.int64(), "row 1 has a cell of -1"),
        ([[300]], pa.int64(), "row 1 has a cell of 300"),  # would wrap to a colour as uint8
        ([[1.0]], pa.float64(), "has type list<.*double.*a grid is a list of lists of integers"),
        ([[1, None]], pa.int64(), "has missing values"),
        (None, pa.int64(), "has missing values"),
    ],
)
def test_read_pairs_names_the_bad_row(tmp_path, grid, kind, message):
    kind = pa.list_(pa.list_(kind))
    columns = {"task_id": ["a"] * 3, "input": [[[1]]] * 3, "output": [[[2]], grid, [[3]]]}
    schema = pa.schema([("task_id", pa.string()), ("input", GRID), ("output", kind)])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "pairs.parquet")


def test_read_pairs_errors_about_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*give a Parquet file of pairs"):
        read_pairs(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        read_pairs(tmp_path / "text.parquet")
    pq.write_table(pa.table({"task_id": ["a"], "train": [1]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"no column 'input' \(its columns: task_id, train\)"):
        read_pairs(tmp_path / "rows.parquet")
    schema = pa.schema([("task_id", pa.string()), ("input", GRID), ("output", GRID)])
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        read_pairs(tmp_path / "empty.parquet")
    nameless = pa.table({"task_id": [None], "input": [[[1]]], "output": [[[1]]]}, schema=schema)
    pq.write_table(nameless, tmp_path / "nameless.parquet")
    with pytest.raises(ValueError, match="1 rows without task_id"):
        read_pairs(tmp_path / "nameless.parquet")
