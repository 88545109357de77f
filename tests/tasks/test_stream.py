"""The seeded stream of tasks."""

import time

import numpy as np
import pytest
from cases_tasks import make_generator
from torch.utils.data import DataLoader

from modeling_lpn.tasks.generators import TASK_GENERATORS, PatternTask
from modeling_lpn.tasks.pairs import PairTask
from modeling_lpn.tasks.stream import BLOCK_SIZE, TaskStream, tasks_from_stream


@pytest.fixture(params=sorted(TASK_GENERATORS))
def generator(request, pairs_path):
    return make_generator(request.param, pairs_path)


def same_items(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(left, right, strict=True)
    )


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
                shapes = [shape[..., ::-1] if turn else shape for shape, turn in zip(shapes, turns, strict=True)]
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


def test_tasks_from_a_stream_are_its_items_and_have_their_own_ids():
    stream = TaskStream(PatternTask(num_pairs=3, num_rows=4, num_cols=5, pattern_size=2), 7, seed=3)
    rows = tasks_from_stream(stream, 5)
    assert [row["task_id"] for row in rows] == ["0", "1", "2", "3", "4"]
    item = stream[2]
    assert [pair["input"] for pair in rows[2]["train"] + rows[2]["test"]] == item["input_grids"].tolist()
    assert rows[2]["test"][0]["output"] == item["output_grids"][2].tolist()
    assert (len(rows[2]["train"]), len(rows[2]["test"])) == (2, 1)

    class OneProgram(PatternTask):
        def sample(self, num_tasks, rng):
            return {**super().sample(num_tasks, rng), "task_id": ["p"] * num_tasks}

    assert [row["task_id"] for row in tasks_from_stream(TaskStream(OneProgram(), 3), 3)] == ["p", "p-2", "p-3"]
    with pytest.raises(ValueError, match="one pair each"):
        tasks_from_stream(TaskStream(PatternTask(num_pairs=1), 3), 3)
