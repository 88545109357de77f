"""Task generators, the table of pairs, and the seeded stream."""

import itertools
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch.utils.data import DataLoader

from modeling_lpn.tasks.generators import TASK_GENERATORS, PatternTask
from modeling_lpn.tasks.pairs import PairTask, read_pairs
from modeling_lpn.tasks.stream import BLOCK_SIZE, TaskStream


REFERENCE = load_file(Path(__file__).parents[1] / "reference" / "lpn_data" / "io.safetensors")
GRID = pa.list_(pa.list_(pa.uint8()))
NUM_TASKS, ROWS_PER_TASK = 5, 12


def make_pairs(path, num_tasks=NUM_TASKS, rows_per_task=ROWS_PER_TASK, grid_type=GRID):
    """A table whose grids tell where they come from: the first input cell is the task, the shapes tell the row."""
    columns = {"task_id": [], "input": [], "output": []}
    for row, task in itertools.product(range(rows_per_task), range(num_tasks)):  # tasks interleaved on purpose
        columns["task_id"].append(f"task{task}")
        columns["input"].append([[task] * (row + 1)] * (task + 1))
        columns["output"].append([[9] * (task + 1)] * (row + 1))
    schema = pa.schema([("task_id", pa.string()), ("input", grid_type), ("output", grid_type)])
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=7)
    return str(path)


@pytest.fixture(scope="module")
def pairs_path(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


@pytest.fixture(params=sorted(TASK_GENERATORS))
def generator(request, pairs_path):
    return make_generator(request.param, pairs_path)


def make_generator(name, path):
    arguments = {"pairs": {"path": path}}.get(name, {})
    return TASK_GENERATORS[name](**arguments)


def same_items(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a) for a, b in zip(left, right)
    )


def check_pattern_structure(inputs, outputs, size, full=True):
    """What defines the task: `(pairs, rows, cols)` arrays; one blue cell marks where the same pattern is pasted."""
    patterns = []
    for input_grid, output_grid in zip(inputs, outputs):
        (corner,) = np.argwhere(input_grid)
        row, col = corner
        assert input_grid[row, col] == 1
        assert row <= input_grid.shape[0] - size and col <= input_grid.shape[1] - size
        pattern = output_grid[row : row + size, col : col + size]
        assert output_grid.sum() == pattern.sum(dtype=int)
        patterns.append(pattern)
    assert all((pattern == patterns[0]).all() for pattern in patterns)
    assert patterns[0].max() <= 9 and (not full or patterns[0].min() >= 1)
    return patterns[0]


@pytest.mark.parametrize("name", sorted(name for name in REFERENCE if name.startswith("pattern/")))
def test_official_pattern_tasks_have_the_structure_we_check(name):
    size = 4 if "/p4" in name else 2
    for task in REFERENCE[name]:
        check_pattern_structure(task[..., 0], task[..., 1], size, full="density" not in name)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.sampled_from([0.0, 0.3, 1.0]))
def test_pattern_task_has_the_official_structure(data, rows, cols, num_pairs, density):
    size = data.draw(st.integers(1, min(rows, cols)))
    task = PatternTask(num_pairs, rows, cols, size, density)
    batch = task.sample(6, np.random.default_rng(data.draw(st.integers(0, 2**32))))
    assert batch["input_grids"].shape == batch["output_grids"].shape == (6, num_pairs, rows, cols)
    for inputs, outputs in zip(batch["input_grids"], batch["output_grids"]):
        check_pattern_structure(inputs, outputs, size, full=density == 1)


def test_pattern_distribution_is_the_official_one():
    batch = PatternTask(2, 6, 7, 3, 0.5).sample(20_000, np.random.default_rng(0))
    inputs, outputs = batch["input_grids"], batch["output_grids"]
    corners = inputs.reshape(-1, 6, 7).mean(axis=0)
    assert corners[4:].sum() == corners[:, 5:].sum() == 0
    np.testing.assert_allclose(corners[:4, :5], 1 / 20, atol=0.005)  # all places that fit, equally often
    coloured = outputs[outputs > 0]
    assert coloured.size / (inputs.shape[0] * 2 * 9) == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(np.bincount(coloured)[1:] / coloured.size, 1 / 9, atol=0.005)
    first, second = inputs[:, 0].reshape(-1, 42).argmax(1), inputs[:, 1].reshape(-1, 42).argmax(1)
    assert (first == second).mean() == pytest.approx(1 / 20, abs=0.01)  # places of one task are independent


def test_pattern_speed():
    task, rng = PatternTask(num_pairs=4, num_rows=10, num_cols=10, pattern_size=4), np.random.default_rng(0)
    task.sample(1000, rng)
    start = time.perf_counter()
    task.sample(20_000, rng)
    assert 20_000 / (time.perf_counter() - start) > 50_000  # measured: 3 million a second on one core


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_pairs": 0}, "`num_pairs` is 0; give an integer of at least 1"),
        ({"num_rows": 300}, "`num_rows` is 300; give an integer from 1 to 255"),
        ({"num_cols": 2.5}, "`num_cols` is 2.5"),
        ({"pattern_size": True}, "`pattern_size` is True"),
        ({"pattern_size": 11}, "`pattern_size` is 11, larger than the 10 x 10 grid; give a pattern that fits"),
        ({"density": 1.5}, "`density` is 1.5; it is a probability"),
        ({"density": float("nan")}, "`density` is nan"),
    ],
)
def test_pattern_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatternTask(**arguments)


@pytest.mark.parametrize("name", sorted(TASK_GENERATORS))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63), num_tasks=st.integers(1, 40))
def test_every_generator_keeps_the_contract(name, pairs_path, seed, num_tasks):
    generator = make_generator(name, pairs_path)
    batch = generator.sample(num_tasks, np.random.default_rng(seed))
    again = generator.sample(num_tasks, np.random.default_rng(seed))
    assert all(
        batch[key] == again[key] if isinstance(batch[key], list) else np.array_equal(batch[key], again[key])
        for key in batch
    )
    most = generator.processor.vocab_size - 1 if hasattr(generator, "processor") else 9
    for side in ("input", "output"):
        grids, shapes = batch[f"{side}_grids"], batch[f"{side}_shapes"]
        assert grids.dtype == np.uint8 and grids.shape[:2] == (num_tasks, generator.num_pairs) and grids.max() <= most
        assert shapes.shape == (num_tasks, generator.num_pairs, 2) and shapes.dtype == np.int64
        assert shapes.min() >= 1 and (shapes.max(axis=(0, 1)) <= grids.shape[2:]).all()
        inside = (np.arange(grids.shape[2])[:, None] < shapes[..., :1, None]) & (
            np.arange(grids.shape[3]) < shapes[..., 1:, None]
        )
        assert not grids[~inside].any()
    assert "task_id" not in batch or len(batch["task_id"]) == num_tasks


def test_stream_items_depend_on_seed_and_index_only(generator):
    stream = TaskStream(generator, length=3 * BLOCK_SIZE, seed=7)
    items = [stream[index] for index in range(len(stream))]
    fresh = TaskStream(generator, length=10**12, seed=7)  # another length, another order, in batches
    order = np.random.default_rng(0).permutation(len(items))
    for chunk in np.array_split(order, 20):
        assert same_items(fresh.__getitems__(chunk.tolist()), [items[index] for index in chunk])
    assert len({item["seed"] for item in items}) == len(items)
    other = TaskStream(generator, length=3 * BLOCK_SIZE, seed=8)
    assert not same_items([other[index] for index in range(20)], items[:20])
    assert same_items([stream[-1]], items[-1:])


def test_stream_item_layout(generator):
    item = TaskStream(generator, length=10)[3]
    assert set(item) == {"task_id", "seed", "input_grids", "output_grids", "input_shapes", "output_shapes"}
    assert isinstance(item["seed"], int) and isinstance(item["task_id"], str)
    for side in ("input", "output"):
        grids, shapes = item[f"{side}_grids"], item[f"{side}_shapes"]
        assert grids.dtype == np.uint8 and grids.shape == (4, *shapes.max(axis=0))


def test_a_far_item_costs_as_much_as_a_near_one(generator):
    stream = TaskStream(generator, length=10**12)
    start = time.perf_counter()
    stream[10**12 - 1]
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("group_by", [None, "tokens", "canvas"])
def test_workers_and_ranks_read_the_same_data(generator, group_by):
    def batches(num_workers=0, ranks=1, rank=0):
        stream = TaskStream(generator, 96, seed=3, group_by=group_by, batch_size=8, window=5)
        chosen = [list(range(start, start + 8)) for start in range(0, 96, 8)][rank::ranks]
        return list(DataLoader(stream, batch_sampler=chosen, num_workers=num_workers, collate_fn=list))

    alone = batches()
    with_workers = batches(num_workers=2)
    two_ranks = [batches(ranks=2, rank=rank) for rank in (0, 1)]
    for index, batch in enumerate(alone):
        assert same_items(batch, with_workers[index])
        assert same_items(batch, two_ranks[index % 2][index // 2])


@pytest.mark.parametrize("group_by", ["tokens", "canvas"])
@pytest.mark.parametrize("turned", [False, True])
def test_grouping_reorders_inside_windows_and_joins_alike(pairs_path, group_by, turned):
    task, size = PairTask(pairs_path), 8 * 40
    plain = TaskStream(task, 3 * size, seed=1)
    stream = TaskStream(task, 3 * size, seed=1, group_by=group_by, batch_size=8, window=40, turned=turned)
    plain_seeds, seeds = ([item["seed"] for item in source] for source in (plain, stream))
    for start in range(0, 3 * size, size):
        assert sorted(seeds[start : start + size]) == sorted(plain_seeds[start : start + size])
    assert seeds != plain_seeds

    def padded_cells(source):
        total, sizes = 0, []
        for start in range(0, 3 * size, 8):
            items = source.__getitems__(range(start, start + 8))
            shapes = [np.stack([item["input_shapes"], item["output_shapes"]]) for item in items]
            if group_by == "tokens":
                sizes.append(max(shape.prod(-1).sum(0).max() for shape in shapes))
            else:
                turns = [turned and item["seed"] % 2 for item in items]
                shapes = [shape[..., ::-1] if turn else shape for shape, turn in zip(shapes, turns)]
                sizes.append(np.max(shapes, axis=(0, 1, 2)).prod())
            total += sizes[-1]
        return total, sizes

    grouped, sizes = padded_cells(stream)
    assert grouped < 0.8 * padded_cells(plain)[0]
    assert sizes[:40] != sorted(sizes[:40])  # groups come in random order: no curriculum
    longer = TaskStream(task, 10**9, seed=1, group_by=group_by, batch_size=8, window=40, turned=turned)
    assert same_items(longer.__getitems__(range(500, 520)), stream.__getitems__(range(500, 520)))


def test_stream_errors(generator):
    stream = TaskStream(generator, length=5)
    for index in (5, -6):
        with pytest.raises(IndexError, match="outside a stream of 5 items"):
            stream[index]
    with pytest.raises(ValueError, match="`length` is -1"):
        TaskStream(generator, length=-1)
    with pytest.raises(ValueError, match="`seed` is -1"):
        TaskStream(generator, length=1, seed=-1)
    with pytest.raises(ValueError, match="`group_by` is 'length'; give one of tokens, canvas"):
        TaskStream(generator, length=1, group_by="length")
    with pytest.raises(ValueError, match="`batch_size` is None; give an integer of at least 1"):
        TaskStream(generator, length=1, group_by="canvas")


def test_sequential_iteration_resumes_exactly(generator):
    stream = TaskStream(generator, length=300, seed=2)
    iterator = iter(stream)
    for _ in range(100):
        next(iterator)
    state, rest = stream.state_dict(), list(iterator)
    resumed = TaskStream(generator, length=300, seed=2)
    resumed.load_state_dict(state)
    assert len(rest) == 200 and same_items(list(resumed), rest)
    with pytest.raises(ValueError, match="seed 2, this one has 3"):
        TaskStream(generator, length=300, seed=3).load_state_dict(state)


def rows_drawn(task, num_tasks=400):
    """(task, row) of every pair drawn, read from the grids of `make_pairs`."""
    batch = task.sample(num_tasks, np.random.default_rng(0))
    rows = batch["input_shapes"][..., 1] - 1
    assert (rows == batch["output_shapes"][..., 0] - 1).all()  # an output belongs to its input
    for task_id, grids in zip(batch["task_id"], batch["input_grids"]):
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
