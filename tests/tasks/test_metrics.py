import json
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_lpn.tasks import metrics


TASKS = [
    {"task_id": "a", "train": [], "test": [{"input": [[1]]}]},
    {"task_id": "b", "train": [], "test": [{"input": [[1]]}, {"input": [[2]]}]},
    {"task_id": "c", "train": [], "test": [{"input": [[3]]}]},
]


@pytest.fixture
def official():
    """Submission, solutions and scores recorded from `evaluate_generations` of the official LPN code."""
    return json.loads((Path(__file__).parents[1] / "reference" / "arc_scores.json").read_text())


def test_scores_equal_the_official_code(official):
    scores = metrics.compute_arc_scores(metrics.attempts_of_submission(official["generations"]), official["solutions"])
    expected = official["metrics"]
    for k in (1, 2):
        assert scores[f"top_{k}_fractional_task_accuracy"] == pytest.approx(expected[f"top_{k}_accuracy"])
        assert scores[f"top_{k}_shape_accuracy"] == pytest.approx(expected[f"top_{k}_shape_accuracy"])
        assert scores[f"top_{k}_pixel_accuracy"] == pytest.approx(expected[f"top_{k}_pixel_correctness"])


def test_the_three_scores_differ_where_a_task_is_half_right():
    solutions = {"one": [[[1]]], "two": [[[1]], [[2]]]}
    scores = metrics.compute_arc_scores({"one": [[[[1]]]], "two": [[[[1]]], [[[3]]]]}, solutions)
    assert scores["top_1_per_output_accuracy"] == pytest.approx(2 / 3)
    assert scores["top_1_fractional_task_accuracy"] == pytest.approx(0.75)
    assert scores["top_1_strict_task_accuracy"] == pytest.approx(0.5)


def test_missing_tasks_outputs_and_attempts_count_as_wrong():
    solutions = {"a": [[[1]]], "b": [[[1]], [[2]]], "c": [[[1]]]}
    scores = metrics.compute_arc_scores({"b": [[[[1]]]], "c": [[]]}, solutions)
    assert scores["top_2_per_output_accuracy"] == pytest.approx(1 / 4)
    assert scores["top_2_fractional_task_accuracy"] == pytest.approx(0.5 / 3)
    assert scores["top_2_strict_task_accuracy"] == 0.0


def test_the_second_attempt_counts_in_top_2_only():
    scores = metrics.compute_arc_scores({"a": [[[[0, 1]], [[1, 1]]]]}, {"a": [[[1, 1]]]})
    assert (scores["top_1_strict_task_accuracy"], scores["top_2_strict_task_accuracy"]) == (0.0, 1.0)
    assert (scores["top_1_pixel_accuracy"], scores["top_2_pixel_accuracy"]) == (0.5, 1.0)


def test_pixels_count_nothing_when_the_shape_is_wrong():
    assert metrics.score_attempts([[[1, 1, 0]]], [[1, 1]])["pixel_accuracy"] == 0.0
    assert metrics.score_attempts([[[1], [1]]], [[1, 1]])["shape_accuracy"] == 0.0


def test_scoring_nothing_is_an_error():
    with pytest.raises(ValueError, match="no solutions"):
        metrics.compute_arc_scores({}, {})
    with pytest.raises(ValueError, match="task x has no test output"):
        metrics.compute_arc_scores({}, {"x": []})


def test_submission_holds_every_task_and_is_valid_json():
    predictions = {"a": [[[[1]], [[2]]]], "b": [[[[3, 4]]], [[[5]], [[6]]]]}
    submission = metrics.make_submission(predictions, TASKS, fill=[[0]])
    assert submission["a"] == [{"attempt_1": [[1]], "attempt_2": [[2]]}]
    assert submission["b"][0] == {"attempt_1": [[3, 4]], "attempt_2": [[3, 4]]}
    assert submission["c"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]
    metrics.validate_submission(json.loads(json.dumps(submission)), TASKS)
    with pytest.raises(ValueError, match="task c has no prediction for test input 0.*fill"):
        metrics.make_submission(predictions, TASKS)


def good_submission():
    return metrics.make_submission({}, TASKS, fill=[[0, 1]])


def spoil(**changes):
    submission = good_submission()
    submission["b"][1].update(changes)
    return submission


@pytest.mark.parametrize(
    ("submission", "message"),
    [
        ([], "dict from task id to outputs, not list"),
        ({"a": good_submission()["a"]}, r"2 of 3 tasks are not in the submission \(first: b\)"),
        ({**good_submission(), "z": []}, "task z is not in the task set; remove it"),
        ({**good_submission(), "b": good_submission()["a"]}, "task b has 2 test inputs, the submission holds 1"),
        ({**good_submission(), "b": "x"}, "task b has 2 test inputs, the submission holds a str"),
        ({**good_submission(), "a": [{"attempt_1": [[0]]}]}, "task a, test input 0: found .*give exactly the keys"),
        (spoil(attempt_3=[[0]]), "task b, test input 1: found .*attempt_3"),
        (spoil(attempt_2=[]), "test input 1, attempt_2: is empty"),
        (spoil(attempt_2=[[]]), "attempt_2: is empty"),
        (spoil(attempt_1=[[1, 2], [1]]), r"attempt_1: has rows of different lengths \(1 and 2\)"),
        (spoil(attempt_1=[[0] * 31]), "has 1 rows and 31 columns, more than 30 x 30"),
        (spoil(attempt_1=[[10]]), "holds 10, outside 0..9"),
        (spoil(attempt_1=[[1.0]]), r"holds 1.0 \(float\), which is not an integer"),
        (spoil(attempt_1=[[True]]), "holds True"),
    ],
)
def test_invalid_submissions_are_refused_with_the_reason(submission, message):
    with pytest.raises(ValueError, match=message):
        metrics.validate_submission(submission, TASKS)


def test_arc_accuracy_works_offline_and_equals_the_function(official, tmp_path, monkeypatch):
    pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    attempts = metrics.attempts_of_submission(official["generations"])
    ids = list(official["solutions"])
    metric = metrics.ArcAccuracy(cache_dir=str(tmp_path))
    assert metrics.ArcAccuracy is type(metric)
    scores = metric.compute(predictions=[attempts[i] for i in ids], references=[official["solutions"][i] for i in ids])
    assert scores == pytest.approx(metrics.compute_arc_scores(attempts, official["solutions"]))


def test_importing_metrics_does_not_import_evaluate_and_says_what_is_missing():
    code = (
        "import sys\n"
        "sys.modules['evaluate'] = None\n"
        "from modeling_lpn.tasks import metrics\n"
        "assert 'datasets' not in sys.modules, 'datasets was imported'\n"
        "try:\n    metrics.ArcAccuracy\n"
        "except ImportError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'modeling-lpn[eval]'" in result.stdout
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        metrics.Nothing  # noqa: B018
