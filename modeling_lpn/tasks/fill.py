"""Fills the column of a table from the rows that are filled already, and says how sure it is of each cell."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import cached_file

from ..batching import evaluating
from ..files import read_file
from ..lpn.search_lpn import SearchConfig, SearchOutput
from .string_sources import Table


CALIBRATION_FILE = "calibration.json"
QUERIES_AT_ONCE = 64


@dataclasses.dataclass
class Calibration:
    """
    Probability that an answer is right, from its scores: a logistic regression on tasks that were held out of training.

    Args:
        weights (`list[float]`): One for each score of [`answer_task`], in nats.
        bias (`float`): The constant.
        measured (`dict`): On which tasks it was fitted and how well it holds on others.
    """

    weights: list[float]
    bias: float
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)

    def probability(self, scores: Any) -> np.ndarray:
        """Scores `(..., 2)` -> probabilities `(...)`."""
        return 1 / (
            1 + np.exp(-(np.clip(np.asarray(scores, dtype=float), -50, 0) @ np.array(self.weights) + self.bias))
        )

    @classmethod
    def fit(cls, scores: Any, right: Sequence[bool], ridge: float = 0.1) -> "Calibration":
        """
        Fits the regression by Newton's method.

        Args:
            scores: `(answers, 2)`, see [`answer_task`].
            right (`Sequence[bool]`): Which answers were right.
            ridge (`float`, defaults to 0.1): Penalty on the squared weights, so that they stay finite where scores tell all.

        Raises:
            `ValueError`: there are no answers.
        """
        if not len(right):
            raise ValueError("there are no answers to calibrate on; give at least one task with a known output")
        inputs = np.column_stack([np.clip(np.asarray(scores, dtype=float), -50, 0), np.ones(len(right))])
        target, weights = np.asarray(right, dtype=float), np.zeros(inputs.shape[1])
        penalty = ridge * np.diag([1.0] * (inputs.shape[1] - 1) + [1e-3])
        for _ in range(50):
            p = 1 / (1 + np.exp(-(inputs @ weights)))
            gradient = inputs.T @ (target - p) - penalty @ weights
            weights = weights + np.linalg.solve((inputs * (p * (1 - p))[:, None]).T @ inputs + penalty, gradient)
        return cls(weights[:-1].tolist(), float(weights[-1]))

    def check(self, scores: Any, right: Sequence[bool], num_bins: int = 5) -> dict[str, Any]:
        """How well the probabilities hold on answers that were not fitted: Brier score, and said against found by bin."""
        said, target = self.probability(scores), np.asarray(right, dtype=float)
        bins = np.minimum((said * num_bins).astype(int), num_bins - 1)
        rows = [
            {"answers": int(len(at)), "said": float(said[at].mean()), "found": float(target[at].mean())}
            for at in (np.flatnonzero(bins == index) for index in range(num_bins))
            if len(at)
        ]
        return {"answers": len(right), "brier_score": float(((said - target) ** 2).mean()), "bins": rows}

    def save(self, folder: str | Path) -> None:
        """Writes `calibration.json` into the folder of the model."""
        Path(folder, CALIBRATION_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, model_name_or_path: str) -> "Calibration | None":
        """
        That of a model, a folder or a name on the Hub; `None` if it has none.

        Raises:
            ValueError: its file holds something else.
        """
        file = cached_file(model_name_or_path, CALIBRATION_FILE, _raise_exceptions_for_missing_entries=False)
        if file is None:
            return None
        content = read_file(Path(file))
        try:
            numbers = [*content["weights"], content["bias"]]
            if isinstance(content["weights"], list) and np.isfinite(np.array(numbers, dtype=float)).all():
                return cls(**content)
        except (KeyError, TypeError, ValueError):
            pass
        raise ValueError(f"{file} is no calibration of a model; remove it, or calibrate the model again")


@dataclasses.dataclass
class Answer:
    """
    One answer to one input.

    Args:
        text (`str`): The output.
        scores (`tuple[float, float]`): Log-likelihood in nats of a demonstration under the latent program (mean over them),
            and of this output under it.
        probability (`float`, *optional*): That it is right; `None` without a [`Calibration`].
    """

    text: str
    scores: tuple[float, float]
    probability: float | None = None


@torch.no_grad()
def answer_task(
    model,
    processor,
    task: dict,
    search_config: SearchConfig | Mapping[str, Any] | None = None,
    num_candidates: int = 2,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> tuple[list[list[Answer]], SearchOutput]:
    """
    Infers the program of the demonstrations of one task and runs it on all test inputs.

    Args:
        model ([`LPNModel`]), processor ([`StringProcessor`]): The model and its processor.
        task (`dict`): A row with `train` and `test`.
        search_config ([`SearchConfig`] or `dict`, *optional*): That saved with the model by default.
        num_candidates (`int`, defaults to 2): Different answers to look for; equal ones are given once.
        calibration ([`Calibration`], *optional*): Turns scores into probabilities.
        seed (`int`, defaults to 0): Of the noise of the search.

    Returns:
        `tuple`: for every test input its answers, best first, and the search behind them.

    Raises:
        `ValueError`: the task is malformed, or has a string that the model cannot read.
    """
    inputs = processor(task, return_tensors="pt").to(model.device)
    queries = {name: inputs.pop(name) for name in ("query_grids", "query_shapes", "query_mask")}
    with evaluating(model) as model:
        generator = torch.Generator(model.device).manual_seed(seed)
        found = model.search(**inputs, search_config=search_config, generator=generator)
        fit = float(found.log_probs[0, 0]) / inputs["pair_mask"].shape[1]
        answers: list[list[Answer]] = []
        for start in range(0, queries["query_grids"].shape[1], QUERIES_AT_ONCE):
            part = {name: tensor[:, start : start + QUERIES_AT_ONCE] for name, tensor in queries.items()}
            output = model.execute(found.latents, **part, num_candidates=num_candidates, log_probs=found.log_probs)
            texts, own = processor.post_process(output)[0], _own_log_probs(model, part, output)
            for candidates, values in zip(texts, own.tolist(), strict=True):
                best = {text: (fit, value) for text, value in reversed([*zip(candidates, values, strict=True)])}
                answers.append([Answer(text, best[text]) for text in dict.fromkeys(candidates)])
    if calibration is not None:
        for answer in (answer for row in answers for answer in row):
            answer.probability = float(calibration.probability(answer.scores))
    return answers, found


def _own_log_probs(model, queries: dict, output) -> torch.Tensor:
    """Log-likelihood `(queries, candidates)` of the outputs of one task, each under the latent that wrote it."""
    candidates, size = output.output_grids.shape[2], output.output_grids.shape[3:]
    grids = queries["query_grids"][0].repeat_interleave(candidates, 0)
    padded = grids.new_zeros(len(grids), *size)
    padded[:, : grids.shape[1], : grids.shape[2]] = grids
    values = model.log_prob(
        output.latents[0].flatten(0, 1).unsqueeze(1),
        padded.unsqueeze(1),
        output.output_grids[0].flatten(0, 1).unsqueeze(1),
        queries["query_shapes"][0].repeat_interleave(candidates, 0).unsqueeze(1),
        output.output_shapes[0].flatten(0, 1).unsqueeze(1),
    )
    return values.view(-1, candidates)


@dataclasses.dataclass
class FilledCell:
    """
    A cell that was empty.

    Args:
        row (`int`): Its row in [`Table`], from 0.
        text (`str`): What was filled in.
        probability (`float`, *optional*): That it is right, `None` for a model without calibration.
        is_sure (`bool`): Whether the probability is at least the threshold; never without calibration.
        others (`list[str]`): The next best answers.
    """

    row: int
    text: str
    probability: float | None
    is_sure: bool
    others: list[str]


@dataclasses.dataclass
class FilledTable:
    """
    Result of [`fill_table`].

    Args:
        table ([`Table`]): With the empty cells filled.
        cells (`list[FilledCell]`): What was filled in.
        unread (`dict[int, str]`): For rows that the model cannot read, and that stay empty, why.
        search_output ([`SearchOutput`]): The search for the program.
    """

    table: Table
    cells: list[FilledCell]
    unread: dict[int, str]
    search_output: SearchOutput

    def to_text(self) -> str:
        """The table with one more column, `<output column> (filled)`: `sure` or `not sure` and the probability, or `not read`."""
        notes = {cell.row: _note(cell) for cell in self.cells} | dict.fromkeys(self.unread, "not read")
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self.table.delimiter, lineterminator="\n")
        writer.writerow([*self.table.columns, f"{self.table.output_column} (filled)"])
        writer.writerows([*row, notes.get(index, "")] for index, row in enumerate(self.table.rows))
        return text.getvalue()

    def explain(self) -> str:
        """What the search did and what it found, for people."""
        path = self.search_output.trajectory_log_probs[0].max(0).values.tolist()
        lines = [
            f"{int(self.search_output.num_evaluations[0])} programs tried; log-likelihood of the examples"
            f" {path[0]:.2f} nats at the start, {float(self.search_output.log_probs[0, 0]):.2f} for the best"
        ]
        for cell in self.cells:
            other = f"; otherwise {', '.join(map(repr, cell.others))}" if cell.others else ""
            lines.append(f"row {cell.row + 2}: {cell.text!r} ({_note(cell)}){other}")
        return "\n".join(lines)


def _note(cell: FilledCell) -> str:
    known = "" if cell.probability is None else f" {cell.probability:.2f}"
    return ("sure" if cell.is_sure else "not sure") + known


def fill_table(
    model,
    processor,
    table: Table,
    search_config: SearchConfig | Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    threshold: float = 0.75,
    max_examples: int = 8,
) -> FilledTable:
    """
    Fills the empty cells of the output column of a table. A row that the model cannot read (a character it does not know, too
    many of them) stays empty and does not serve as an example; `unread` says why.

    Args:
        model ([`LPNModel`]), processor ([`StringProcessor`]): The model and its processor.
        table ([`Table`]): What [`read_table`] reads; it is not changed.
        search_config, calibration: As in [`answer_task`].
        threshold (`float`, defaults to 0.75): Probability from which an answer counts as sure.
        max_examples (`int`, defaults to 8): Filled rows to learn from at most, the first ones.

    Returns:
        [`FilledTable`]

    Raises:
        `ValueError`: no row of the column is filled or all are, or the model can read none of those.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is {threshold!r}; it is a probability, give a number from 0 to 1")
    task, place = table.task(), table.columns.index(table.output_column)
    empty = [index for index, row in enumerate(table.rows) if not row[place]]
    unread = {
        index: why for index, pair in zip(empty, task["test"], strict=True) if (why := _why_not(processor, pair))
    }
    readable = [pair for pair in task["train"] if not _why_not(processor, pair)]
    if not readable or len(unread) == len(empty):
        processor(task)  # says what is wrong with the first row
    task["train"] = readable[:max_examples]
    task["test"] = [pair for index, pair in zip(empty, task["test"], strict=True) if index not in unread]
    answers, found = answer_task(model, processor, task, search_config, calibration=calibration)
    rows = [list(row) for row in table.rows]
    cells = []
    for index, (best, *others) in zip([i for i in empty if i not in unread], answers, strict=True):
        rows[index][place] = best.text
        is_sure = best.probability is not None and best.probability >= threshold
        cells.append(FilledCell(index, best.text, best.probability, is_sure, [other.text for other in others]))
    return FilledTable(dataclasses.replace(table, rows=rows), cells, unread, found)


def _why_not(processor, pair: dict) -> str:
    """Why a model cannot read a pair; empty if it can."""
    try:
        processor.validate_task({"train": [{"output": "", **pair}], "test": []}, "row", require_test=False)
    except ValueError as error:
        return str(error).removeprefix("Task 'row', train pair 0, ")
    return ""


__all__ = ["Answer", "Calibration", "FilledCell", "FilledTable", "answer_task", "fill_table"]
