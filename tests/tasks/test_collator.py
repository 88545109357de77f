"""The grid collator: padding, augmentation against the official code and a naive loop, independence, speed."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from modeling_lpn.lpn.processing_lpn import LPNProcessor
from modeling_lpn.tasks.collator import DataCollatorForGridTasks, apply_symmetry, draw_color_maps
from modeling_lpn.tasks.generators import PatternTask
from modeling_lpn.tasks.stream import TaskStream


REFERENCE = load_file(Path(__file__).parents[1] / "reference" / "lpn_data" / "io.safetensors")
NAMES = ["input_grids", "output_grids", "input_shapes", "output_shapes"]


def random_item(rng, num_pairs=3, max_side=6, seed=None):
    """A stream item with grids of different shapes; the canvas is larger than the grids need."""
    item = {"task_id": "t", "seed": int(rng.integers(2**63)) if seed is None else seed}
    for side in ("input", "output"):
        shapes = rng.integers(1, max_side + 1, (num_pairs, 2))
        grids = np.zeros((num_pairs, max_side + 1, max_side + 2), dtype=np.uint8)
        for grid, (rows, cols) in zip(grids, shapes, strict=True):
            grid[:rows, :cols] = rng.integers(0, 10, (rows, cols))
        item[f"{side}_grids"], item[f"{side}_shapes"] = grids, shapes
    return item


def cut(batch, task, side):
    """The grids of one task of a batch, without padding; checks that the padding is 0."""
    grids = []
    for grid, (rows, cols) in zip(batch[f"{side}_grids"][task], batch[f"{side}_shapes"][task].tolist(), strict=True):
        assert grid.sum() == grid[:rows, :cols].sum()
        grids.append(grid[:rows, :cols].numpy())
    return grids


def naive_symmetry(grid, symmetry):
    return np.rot90(grid[:, ::-1] if symmetry >= 4 else grid, k=-(symmetry % 4))


@pytest.mark.parametrize("turns", range(4))
def test_rotations_equal_the_official_code(turns):
    grids, shapes = REFERENCE["aug/rot_in"][:, None], REFERENCE["aug/rot_shapes"][:, None].astype(int)
    turned, turned_shapes = apply_symmetry(grids, shapes, np.full(3, turns))
    np.testing.assert_array_equal(turned[:, 0], REFERENCE[f"aug/rot{turns}_out"])
    np.testing.assert_array_equal(turned_shapes[:, 0], REFERENCE[f"aug/rot{turns}_shapes"])


@pytest.mark.parametrize("channel", [0, 1])
def test_rotation_then_colours_equal_the_official_code(channel):
    grids, shapes = REFERENCE["arc/grids"][..., channel], REFERENCE["arc/shapes"][..., channel].astype(int)
    turned, turned_shapes = apply_symmetry(grids, shapes, REFERENCE["aug/full_k"])
    coloured = np.stack([colors[task] for colors, task in zip(REFERENCE["aug/full_color_maps"], turned, strict=True)])
    np.testing.assert_array_equal(coloured, REFERENCE["aug/full_grids"][..., channel])
    np.testing.assert_array_equal(turned_shapes, REFERENCE["aug/full_shapes"][..., channel])


def test_colour_maps_permute_all_but_the_background():
    maps = draw_color_maps(range(5000))
    for official in REFERENCE["aug/color_maps"]:
        assert official[0] == 0 and sorted(official) == list(range(10))
    assert (maps[:, 0] == 0).all() and (np.sort(maps) == np.arange(10)).all()
    for colour in range(1, 10):
        np.testing.assert_allclose(np.bincount(maps[:, colour], minlength=10)[1:] / 5000, 1 / 9, atol=0.02)
    np.testing.assert_array_equal(draw_color_maps([7, 3])[1], draw_color_maps([3])[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from(["none", "rotations", "all"]), st.booleans())
def test_augmentation_equals_a_loop_over_grids(seed, batch_size, symmetries, permute_colors):
    rng = np.random.default_rng(seed)
    items = [random_item(rng, num_pairs=int(rng.integers(1, 4))) for _ in range(batch_size)]
    batch = DataCollatorForGridTasks(symmetries=symmetries, permute_colors=permute_colors)(items)
    canvas = batch["input_grids"].shape[2:]
    assert batch["output_grids"].shape == batch["input_grids"].shape
    all_shapes = torch.cat([batch["input_shapes"], batch["output_shapes"]]).reshape(-1, 2)
    assert canvas == tuple(all_shapes.max(0).values.tolist())  # rounded up to nothing
    for index, item in enumerate(items):
        colors = draw_color_maps([item["seed"]])[0] if permute_colors else np.arange(10)
        symmetry = item["seed"] % {"none": 1, "rotations": 4, "all": 8}[symmetries]
        assert batch["pair_mask"][index].sum() == len(item["input_shapes"])
        for side in ("input", "output"):
            got = cut(batch, index, side)
            for pair, (rows, cols) in enumerate(item[f"{side}_shapes"]):
                expected = naive_symmetry(colors[item[f"{side}_grids"][pair, :rows, :cols]], symmetry)
                np.testing.assert_array_equal(got[pair], expected)
            assert all(grid.shape == (1, 1) and not grid.any() for grid in got[len(item["input_shapes"]) :])


def test_the_eight_symmetries_differ_and_odd_seeds_exchange_rows_and_columns():
    item = random_item(np.random.default_rng(0))
    item["input_grids"][0] = 0
    item["input_grids"][0, :2, :3], item["input_shapes"][0] = np.arange(1, 7).reshape(2, 3), (2, 3)
    seen = set()
    for seed in range(8):
        batch = DataCollatorForGridTasks(symmetries="all")([{**item, "seed": seed}])
        seen.add(str(cut(batch, 0, "input")[0].tolist()))
        assert batch["input_shapes"][0, 0].tolist() == ([3, 2] if seed % 2 else [2, 3])
    assert len(seen) == 8


def test_a_task_is_augmented_the_same_in_any_batch():
    rng = np.random.default_rng(1)
    items = [random_item(rng) for _ in range(6)]
    collator = DataCollatorForGridTasks(symmetries="all", permute_colors=True)
    together = collator(items)
    for index, item in enumerate(items):
        alone = collator([item])
        for side in ("input", "output"):
            for left, right in zip(cut(alone, 0, side), cut(together, index, side), strict=True):
                np.testing.assert_array_equal(left, right)


def test_items_are_left_as_they_were():
    item = random_item(np.random.default_rng(2))
    before = {key: np.array(item[key]) for key in NAMES}
    DataCollatorForGridTasks(symmetries="all", permute_colors=True)([item])
    assert all(np.array_equal(item[key], before[key]) for key in NAMES)


def test_types_and_num_pairs():
    rng = np.random.default_rng(3)
    items = [random_item(rng, num_pairs=2), random_item(rng, num_pairs=5)]
    batch = DataCollatorForGridTasks(num_pairs=3)(items)
    assert list(batch) == [*NAMES, "pair_mask", "plan"]
    assert all(batch[key].dtype == torch.int64 for key in NAMES) and batch["pair_mask"].dtype == torch.bool
    assert batch["pair_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["input_shapes"][0].tolist() == [*items[0]["input_shapes"].tolist(), [1, 1]]
    for name in ("input_shapes", "output_shapes", "pair_mask"):
        assert (getattr(batch["plan"], name) == batch[name].numpy()).all()
    assert batch["plan"].num_colors == 10


def test_rows_give_the_tensors_of_the_processor():
    rows = [
        {"task_id": "a", "train": [{"input": [[1, 2]], "output": [[3], [4]]}], "test": [{"input": [[1]]}]},
        {"task_id": "b", "train": [{"input": [[5]], "output": [[6]]}] * 2, "test": [{"input": [[1]]}]},
    ]
    batch, expected = DataCollatorForGridTasks()(rows), LPNProcessor()(rows)
    for name in (*NAMES, "pair_mask"):
        assert torch.equal(batch[name], expected[name])
    augmented = DataCollatorForGridTasks(symmetries="all")([{**row, "seed": 1} for row in rows])
    assert augmented["input_shapes"][0].tolist() == [[2, 1], [1, 1]]


def test_errors():
    collator = DataCollatorForGridTasks(permute_colors=True)
    row = {"task_id": "a", "train": [{"input": [[1]], "output": [[3]]}]}
    for seed in ({}, {"seed": None}, {"seed": -1}, {"seed": 0.5}):
        with pytest.raises(ValueError, match="Task 'a' has seed .*read tasks through TaskStream"):
            collator([{**row, **seed}])
    with pytest.raises(ValueError, match="Task '0 of the batch', train pair 0, `input`: is empty"):
        collator([{"train": [{"input": [], "output": [[3]]}]}])
    with pytest.raises(ValueError, match="no examples"):
        collator([])
    with pytest.raises(ValueError, match="`symmetries` is 'flips'; give one of none, rotations, all"):
        DataCollatorForGridTasks(symmetries="flips")
    with pytest.raises(ValueError, match="`num_pairs` is 0"):
        DataCollatorForGridTasks(num_pairs=0)
    items = [TaskStream(PatternTask(num_rows=10, num_cols=4), 5)[0]]
    small = LPNProcessor(max_rows=10, max_cols=4)
    DataCollatorForGridTasks(small)(items)
    with pytest.raises(ValueError, match="up to 10 x 10 cells .* processor's 10 x 4 .*turned grids need both sides"):
        DataCollatorForGridTasks(small, symmetries="rotations")(items)
    with pytest.raises(ValueError, match=r"colours up to \d, over the processor's 30 x 30 and 4"):
        DataCollatorForGridTasks(LPNProcessor(vocab_size=5), permute_colors=True)(items)


@pytest.mark.parametrize("side, limit", [(10, 0.05), (30, 0.2)])  # measured: 0.003 and 0.007 s
def test_speed(side, limit):
    items = TaskStream(PatternTask(num_rows=side, num_cols=side), 128).__getitems__(range(128))
    collator = DataCollatorForGridTasks(symmetries="all", permute_colors=True)
    collator(items)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        collator(items)
        times.append(time.perf_counter() - start)
    assert min(times) < limit
