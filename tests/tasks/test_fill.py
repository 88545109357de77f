"""Filling a column of a table, and how sure an answer is."""

import csv
import io

import numpy as np
import pytest
import torch

from modeling_lpn import LPNConfig, LPNModel, StringProcessor
from modeling_lpn.tasks import fill
from modeling_lpn.tasks.fill import Calibration, answer_task, fill_table
from modeling_lpn.tasks.string_sources import Table


@pytest.fixture(scope="module")
def model_and_processor():
    torch.manual_seed(0)
    config = LPNConfig(vocab_size=96, max_rows=1, max_cols=16, copy_inputs=True, search={"num_steps": 2})
    return LPNModel(config).eval(), StringProcessor(16)


def make_table(num_empty=3):
    rows = [["Ada L", "x", "AL"], ["Alan T", "y", "AT"], *([f"G {n}", "z", ""] for n in range(num_empty))]
    return Table(["name", "other", "short"], rows, "short", ["name"])


def test_only_empty_cells_are_filled(model_and_processor):
    table = make_table()
    filled = fill_table(*model_and_processor, table, calibration=Calibration([1.0, 1.0], 50.0), threshold=0.5)
    assert [row[2] for row in table.rows] == ["AL", "AT", "", "", ""]  # not changed
    assert [row[:2] for row in filled.table.rows] == [row[:2] for row in table.rows]
    assert [row[2] for row in filled.table.rows] == ["AL", "AT", *(cell.text for cell in filled.cells)]
    assert [cell.row for cell in filled.cells] == [2, 3, 4]
    lines = list(csv.reader(io.StringIO(filled.to_text())))
    assert lines[0] == ["name", "other", "short", "short (filled)"] and [line[3] for line in lines[1:3]] == ["", ""]
    assert all(line[3].startswith("sure 0.") or line[3].startswith("sure 1.") for line in lines[3:])
    assert "3 programs tried" in filled.explain() and filled.explain().count("row ") == 3


def test_without_calibration_nothing_is_sure(model_and_processor):
    filled = fill_table(*model_and_processor, make_table())
    assert all(cell.probability is None and not cell.is_sure for cell in filled.cells)
    assert filled.to_text().count("not sure") == 3


def test_many_rows_give_what_one_row_gives(model_and_processor, monkeypatch):
    task = make_table(5).task()
    together, _ = answer_task(*model_and_processor, task)
    monkeypatch.setattr(fill, "QUERIES_AT_ONCE", 2)
    for answers, apart in zip(together, answer_task(*model_and_processor, task)[0], strict=True):
        assert [answer.text for answer in answers] == [answer.text for answer in apart]
        np.testing.assert_allclose([a.scores for a in answers], [a.scores for a in apart], atol=1e-4)


def test_scores_are_log_likelihoods_of_the_model(model_and_processor):
    model, processor = model_and_processor
    task = make_table(1).task()
    ((best, *_),), found = answer_task(model, processor, task)
    batch = processor({"train": [{**task["test"][0], "output": best.text}], "test": task["test"]})
    for name in ("query_grids", "query_shapes", "query_mask"):
        batch.pop(name)
    # The width that the model chose counts too: only where it is the one the processor gives are the two comparable.
    own = model.log_prob(found.latents[:, :1], **batch)
    assert best.scores[0] == pytest.approx(float(found.log_probs[0, 0]) / 2)
    assert best.scores[1] == pytest.approx(float(own), abs=1e-4) or best.scores[1] >= float(own)


def test_calibration_finds_known_probabilities(tmp_path):
    rng = np.random.default_rng(0)
    scores = -rng.exponential(2.0, (40_000, 2))
    probability = 1 / (1 + np.exp(-(1.5 * scores[:, 0] + 0.5 * scores[:, 1] + 2.0)))
    right = rng.random(40_000) < probability
    fitted = Calibration.fit(scores[:20_000], right[:20_000])
    np.testing.assert_allclose([*fitted.weights, fitted.bias], [1.5, 0.5, 2.0], atol=0.25)
    checked = fitted.check(scores[20_000:], right[20_000:])
    assert sum(row["answers"] for row in checked["bins"]) == 20_000
    assert all(abs(row["said"] - row["found"]) < 0.12 for row in checked["bins"] if row["answers"] > 100)
    fitted.measured = checked
    fitted.save(tmp_path)
    assert Calibration.load(str(tmp_path)) == fitted
    (tmp_path / "other").mkdir()
    assert Calibration.load(str(tmp_path / "other")) is None


def test_calibration_stays_finite():
    scores = np.array([[-np.inf, -1.0]] * 5 + [[0.0, 0.0]] * 5)
    fitted = Calibration.fit(scores, [False] * 5 + [True] * 5)
    assert np.isfinite(fitted.weights).all() and fitted.probability([0.0, 0.0]) > 0.9 > fitted.probability([-50, -1])
    assert 0.5 < Calibration.fit([[0.0, 0.0]] * 3, [True] * 3).probability([0.0, 0.0]) <= 1
    with pytest.raises(ValueError, match="no answers to calibrate on"):
        Calibration.fit([], [])


def test_wrong_input(model_and_processor):
    with pytest.raises(ValueError, match="`threshold` is 2"):
        fill_table(*model_and_processor, make_table(), threshold=2)
    table = make_table(1)
    table.rows[2][0] = "Zoë"
    with pytest.raises(ValueError, match="Task 'short', test pair 0, `input`: character 2 is 'ë'"):
        fill_table(*model_and_processor, table)
    table.rows[0][0] = table.rows[1][0] = "x" * 17
    with pytest.raises(ValueError, match="Task 'short', train pair 0, `input`: has 17 characters, more than 16"):
        fill_table(*model_and_processor, table)


def test_rows_that_cannot_be_read_stay_empty_and_cost_nothing(model_and_processor):
    table = make_table()
    table.rows[3][0], table.rows[0][2] = "Zoë", "é"
    filled = fill_table(*model_and_processor, table)
    assert list(filled.unread) == [3] and filled.unread[3].startswith("`input`: character 2 is 'ë'")
    assert [cell.row for cell in filled.cells] == [2, 4] and filled.table.rows[3][2] == ""
    assert "Zoë,z,,not read\n" in filled.to_text()
