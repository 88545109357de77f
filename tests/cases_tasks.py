"""Tables of pairs and task generators for the tests."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_lpn.tasks.generators import TASK_GENERATORS


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


def make_generator(name, path):
    arguments = {"pairs": {"path": path}}.get(name, {})
    return TASK_GENERATORS[name](**arguments)


def make_grid(rng):
    return rng.integers(0, 10, rng.integers(1, 6, 2)).tolist()


def make_tasks(count=9, seed=0):
    """Tasks of different sizes, with one to four demonstrations and one or two test inputs."""
    rng = np.random.default_rng(seed)
    return [
        {
            "task_id": f"t{index}",
            "train": [{"input": make_grid(rng), "output": make_grid(rng)} for _ in range(rng.integers(1, 5))],
            "test": [{"input": make_grid(rng), "output": make_grid(rng)} for _ in range(rng.integers(1, 3))],
        }
        for index in range(count)
    ]
