"""Task generators: what each promises, and the distribution of the official ones."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases_tasks import make_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from modeling_lpn.arguments import parse_recipe
from modeling_lpn.tasks.arguments import make_task, task_arguments
from modeling_lpn.tasks.generators import TASK_GENERATORS, PatternTask


REFERENCE = load_file(Path(__file__).parents[1] / "reference" / "lpn_data" / "io.safetensors")


def check_pattern_structure(inputs, outputs, size, full=True):
    """What defines the task: `(pairs, rows, cols)` arrays; one blue cell marks where the same pattern is pasted."""
    patterns = []
    for input_grid, output_grid in zip(inputs, outputs, strict=True):
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
    for inputs, outputs in zip(batch["input_grids"], batch["output_grids"], strict=True):
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


def test_a_generator_registered_later_has_flags(monkeypatch):
    @dataclass(frozen=True)
    class Later:
        depth: int = 3

    monkeypatch.setitem(TASK_GENERATORS, "later", Later)
    (parsed,) = parse_recipe([task_arguments()], ["--task_depth", "5"])
    assert make_task("later", parsed) == Later(5)
