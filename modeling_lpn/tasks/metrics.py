"""Scores of ARC-style predictions, and the ARC Prize submission file.

Three scores of ARC tasks are in use and differ by up to 2.4 points on the ARC-AGI-1 evaluation set, so each has its own
name here and none is called just "accuracy":

- `per_output_accuracy`: right outputs / all outputs (Kaggle's ARC Prize);
- `fractional_task_accuracy`: mean over tasks of the share of right outputs (ARC Prize's own harness, the LPN paper);
- `strict_task_accuracy`: share of tasks with every output right (Chollet's definition).
"""

from ..lpn.processing_lpn import validate_grid
from ..optional import require


ATTEMPTS = ("attempt_1", "attempt_2")


def score_attempts(attempts, truth) -> dict[str, float]:
    """Scores the attempts at one output; each number is the best over the attempts.

    Strings are scored as grids of one column, a character a cell.

    Args:
        attempts (`list[list[list[int]]]`): predicted grids; an empty list counts as wrong.
        truth (`list[list[int]]`): the right grid.

    Returns:
        `dict`: `accuracy` (1.0 when an attempt equals `truth`), `shape_accuracy` (1.0 when one has its shape) and
        `pixel_accuracy` (share of right cells; 0 when the shape is wrong).
    """
    best = {"accuracy": 0.0, "shape_accuracy": 0.0, "pixel_accuracy": 0.0}
    for attempt in attempts:
        if [len(row) for row in attempt] != [len(row) for row in truth]:
            continue
        cells = [p == t for rows in zip(attempt, truth, strict=True) for p, t in zip(*rows, strict=True)]
        pixels = sum(cells) / len(cells) if cells else 1.0  # two empty strings
        best["shape_accuracy"] = 1.0
        best["pixel_accuracy"] = max(best["pixel_accuracy"], pixels)
        best["accuracy"] = max(best["accuracy"], float(pixels == 1.0))
    return best


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def compute_arc_scores(predictions: dict, solutions: dict, top_k=(1, 2)) -> dict[str, float]:
    """Scores predictions under the three ARC rules, with the first attempt and with the best of the first two.

    Every task of `solutions` counts, whether it was predicted or not. Shape and pixel accuracy are means over tasks of
    the mean over the task's outputs (`evaluate_generations` of the official LPN code).

    Args:
        predictions (`dict[str, list[list[grid]]]`):
            For each task id, for each test input, the predicted grids, best first. Missing tasks, outputs or attempts
            count as wrong. See [`attempts_of_submission`] for the submission format.
        solutions (`dict[str, list[grid]]`): For each task id the right output of every test input.
        top_k (`tuple[int]`): How many attempts may be used, one set of scores for each.

    Returns:
        `dict[str, float]`: `top_{k}_per_output_accuracy`, `top_{k}_fractional_task_accuracy`,
        `top_{k}_strict_task_accuracy`, `top_{k}_shape_accuracy`, `top_{k}_pixel_accuracy`, all in 0..1.

    Raises:
        ValueError: `solutions` is empty, or one of its tasks has no output.
    """
    if not solutions:
        raise ValueError("there are no solutions to score against; pass at least one task with its test outputs")
    for task_id, outputs in solutions.items():
        if not outputs:
            raise ValueError(f"task {task_id} has no test output to score against; leave the task out of `solutions`")
    scores = {}
    for k in top_k:
        per_task = []
        for task_id, truths in solutions.items():
            attempts = predictions.get(task_id) or []
            per_task.append(
                [score_attempts(attempts[i][:k] if i < len(attempts) else [], t) for i, t in enumerate(truths)]
            )
        exact = [[output["accuracy"] for output in task] for task in per_task]
        scores[f"top_{k}_per_output_accuracy"] = _mean(value for task in exact for value in task)
        scores[f"top_{k}_fractional_task_accuracy"] = _mean(_mean(task) for task in exact)
        scores[f"top_{k}_strict_task_accuracy"] = _mean(float(all(task)) for task in exact)
        for name in ("shape_accuracy", "pixel_accuracy"):
            scores[f"top_{k}_{name}"] = _mean(_mean(output[name] for output in task) for task in per_task)
    return scores


def attempts_of_submission(submission: dict) -> dict:
    """Turns an ARC Prize submission into the predictions that [`compute_arc_scores`] reads.

    Args:
        submission (`dict`): `{task_id: [{"attempt_1": grid, "attempt_2": grid}, ...]}`.

    Returns:
        `dict[str, list[list[grid]]]`: for each task, for each test input, its attempts in order.
    """
    return {
        task_id: [[output[name] for name in ATTEMPTS if name in output] for output in outputs]
        for task_id, outputs in submission.items()
    }


def make_submission(predictions: dict, tasks: list[dict], fill=None) -> dict:
    """Builds the ARC Prize submission of `tasks` and validates it.

    Args:
        predictions (`dict[str, list[list[grid]]]`): for each task id, for each test input, grids, best first. Where
            there is only one grid it becomes both attempts.
        tasks (`list[dict]`): rows with `task_id` and `test`; all of them end up in the submission.
        fill (grid, *optional*): the attempt for test inputs without a prediction. Without it they are an error.

    Returns:
        `dict`: `{task_id: [{"attempt_1": grid, "attempt_2": grid}, one per test input, in order]}`.

    Raises:
        ValueError: A test input has no prediction and `fill` is not given, or a grid is not legal.
    """
    submission = {}
    for task in tasks:
        attempts = predictions.get(task["task_id"]) or []
        outputs = []
        for index in range(len(task["test"])):
            grids = attempts[index] if index < len(attempts) else []
            if not grids and fill is None:
                raise ValueError(
                    f"task {task['task_id']} has no prediction for test input {index}; the submission needs one for "
                    "each (pass `fill=[[0]]` to hand in a blank, which counts as wrong)"
                )
            grids = [[[int(cell) for cell in row] for row in grid] for grid in list(grids)[:2] or [fill]]
            outputs.append({ATTEMPTS[0]: grids[0], ATTEMPTS[1]: grids[1] if len(grids) > 1 else grids[0]})
        submission[task["task_id"]] = outputs
    validate_submission(submission, tasks)
    return submission


def validate_submission(submission: dict, tasks: list[dict]) -> None:
    """Checks a submission against the rules of ARC Prize 2024 and 2025.

    Every task is there and no other, with one entry per test input, and each entry has exactly `attempt_1` and
    `attempt_2`, both legal grids.

    Args:
        submission (`dict`): what `submission.json` holds.
        tasks (`list[dict]`): rows with `task_id` and `test`.

    Raises:
        ValueError: The first rule that is broken, with task id, test input and cure.
    """
    if not isinstance(submission, dict):
        raise ValueError(f"a submission is a dict from task id to outputs, not {type(submission).__name__}")
    expected = {task["task_id"]: len(task["test"]) for task in tasks}
    missing = [task_id for task_id in expected if task_id not in submission]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(expected)} tasks are not in the submission (first: {missing[0]}); hand in every "
            "task, with blank grids where there is no prediction"
        )
    extra = [task_id for task_id in submission if task_id not in expected]
    if extra:
        raise ValueError(f"task {extra[0]} is not in the task set; remove it ({len(extra)} such tasks)")
    for task_id, num_outputs in expected.items():
        _validate_outputs(task_id, submission[task_id], num_outputs)


def _validate_outputs(task_id, outputs, num_outputs) -> None:
    if not isinstance(outputs, list) or len(outputs) != num_outputs:
        given = len(outputs) if isinstance(outputs, list) else f"a {type(outputs).__name__}"
        raise ValueError(
            f"task {task_id} has {num_outputs} test inputs, the submission holds {given}; one entry for each"
        )
    for index, output in enumerate(outputs):
        where = f"task {task_id}, test input {index}"
        keys = sorted(output) if isinstance(output, dict) else output
        if keys != list(ATTEMPTS):
            raise ValueError(f"{where}: found {keys}; give exactly the keys {' and '.join(ATTEMPTS)}")
        for name in ATTEMPTS:
            validate_grid(output[name], f"{where}, {name}")


def _arc_accuracy_class():
    datasets, evaluate = require("datasets", "data", "ArcAccuracy"), require("evaluate", "eval", "ArcAccuracy")

    class ArcAccuracy(evaluate.Metric):
        """The scores of [`compute_arc_scores`] as an `evaluate.Metric`; works offline: `ArcAccuracy().compute(...)`.

        One item is one task. `predictions`: for each test input its grids, best first; `references`: for each test
        input the right grid.
        """

        def _info(self):
            grid = datasets.List(datasets.List(datasets.Value("int64")))
            features = {"predictions": datasets.List(datasets.List(grid)), "references": datasets.List(grid)}
            return evaluate.MetricInfo(
                description="Exact-match accuracy of ARC tasks: per output, fractional per task, strict per task.",
                citation="Chollet, On the Measure of Intelligence, arXiv:1911.01547",
                inputs_description="predictions: (tasks, outputs, attempts) grids; references: (tasks, outputs) grids",
                features=datasets.Features(features),
            )

        def _compute(self, predictions, references):
            predictions = {str(i): task for i, task in enumerate(predictions)}
            return compute_arc_scores(predictions, {str(i): task for i, task in enumerate(references)})

    ArcAccuracy.__module__, ArcAccuracy.__qualname__ = __name__, "ArcAccuracy"
    return ArcAccuracy


# Classes that derive from those of `evaluate` are built on demand: it and `datasets` are optional and slow to import.
_LAZY_CLASSES = {
    "ArcAccuracy": _arc_accuracy_class,
}


def __getattr__(name):
    if name not in _LAZY_CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _LAZY_CLASSES[name]()
    return globals()[name]
