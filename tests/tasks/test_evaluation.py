import copy
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cases_tasks import make_tasks

from modeling_lpn import LPNConfig, LPNModel, SearchConfig
from modeling_lpn.tasks.arc import load_tasks, save_tasks
from modeling_lpn.tasks.evaluation import (
    BudgetResult,
    choose_search,
    evaluate_tasks,
    find_leaks,
    first_steps,
    read_training_pairs,
    scores_without,
    search_grid,
    shares_trajectory,
)


BUDGETS = [5, 0, 1, 12]


def run(model, processor, tasks, search, budgets=None, **kwargs):
    return evaluate_tasks(model, processor, tasks, search, budgets, progress=False, **{"batch_size": 4, **kwargs})


@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(lr=0.3),
        SearchConfig(lr=0.5, optimizer="sgd", momentum=0.5, starts="mean+pairs"),
        SearchConfig(lr=0.3, num_samples=2, starts="pairs", clip="none"),
        SearchConfig(lr=0.3, lr_schedule="cosine"),
        SearchConfig(lr=0.3, rank_by="leave_one_out", prior_weight=0.1),
        SearchConfig(method="random"),
    ],
)
def test_a_list_of_budgets_equals_separate_searches(model, processor, search):
    tasks = make_tasks()
    together = run(model, processor, tasks, search, BUDGETS)
    assert [result.budget for result in together.results] == BUDGETS
    for result in together.results:
        alone = run(model, processor, tasks, search.at_budget(result.budget))
        assert vars(alone.results[0]) == vars(result)
        if result.budget == max(BUDGETS):
            assert alone.trajectories == together.trajectories


def test_one_search_serves_all_budgets_where_that_is_exact(model, processor, monkeypatch):
    calls = []
    original = model.search
    monkeypatch.setattr(model, "search", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    run(model, processor, make_tasks(4), SearchConfig(), BUDGETS)
    assert len(calls) == 1
    run(model, processor, make_tasks(4), SearchConfig(lr_schedule="cosine"), BUDGETS)
    assert len(calls) == 1 + len(BUDGETS)
    assert not shares_trajectory(SearchConfig(max_evaluations=3))
    assert not shares_trajectory(SearchConfig(method="random"))


def test_first_steps_ranks_as_the_search_does(model, processor):
    inputs = processor(make_tasks())
    inputs = {name: value for name, value in inputs.items() if not name.startswith("query")}
    search = SearchConfig(num_steps=9, starts="mean+pairs", lr=0.4)
    full, short = (
        model.search(**inputs, search_config=search),
        model.search(**inputs, search_config=replace(search, num_steps=4)),
    )
    cut = first_steps(full, 4)
    for name in ("latents", "log_probs", "trajectory_latents", "trajectory_log_probs", "num_evaluations"):
        assert torch.equal(torch.nan_to_num(cut[name]), torch.nan_to_num(short[name])), name


def test_results_do_not_depend_on_the_batches_and_keep_the_order(model, processor):
    tasks = make_tasks()
    search = SearchConfig(lr=0.3, num_samples=1)
    one = run(model, processor, tasks, search, BUDGETS)
    other = run(model, processor, tasks[::-1], search, BUDGETS, batch_size=1)
    for a, b in zip(one.results, other.results, strict=True):
        assert a.predictions == b.predictions
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
        assert list(a.predictions) == [task["task_id"] for task in tasks] == list(b.predictions)[::-1]
    assert run(model, processor, tasks, search, BUDGETS, seed=1).trajectories != one.trajectories


def test_accounting(model, processor):
    tasks = make_tasks()
    output = run(model, processor, tasks, SearchConfig(starts="pairs"), [0, 3])
    pairs = sum(len(task["train"]) for task in tasks) / len(tasks)
    assert [result.num_evaluations for result in output.results] == pytest.approx([pairs, 4 * pairs])
    assert output.results[1].log_prob >= output.results[0].log_prob
    assert all(len(values) == 4 for values in output.trajectories.values())
    assert output.num_nonfinite == 0 and output.errors == {}
    assert 0 < output.seconds["search"] + output.seconds["generate"] <= output.seconds["total"]
    for task in tasks:
        for attempts in output.results[1].predictions[task["task_id"]]:
            assert len(attempts) == 2
        assert len(output.results[1].predictions[task["task_id"]]) == len(task["test"])


def test_a_perfect_prediction_scores_one(model, processor):
    tasks = make_tasks(3)
    answers = run(model, processor, tasks, SearchConfig(method="mean"))
    solved = copy.deepcopy(tasks)
    for task in solved:
        for pair, attempts in zip(task["test"], answers.results[0].predictions[task["task_id"]], strict=True):
            pair["output"] = attempts[0]
    scores = run(model, processor, solved, SearchConfig(method="mean"), [0, 5]).results[0].scores
    assert len(scores) == 10 and set(scores.values()) == {1.0}


def test_a_bad_task_is_reported_and_the_others_are_solved(model, processor):
    tasks = make_tasks()
    good = run(model, processor, tasks, SearchConfig(), [3])
    bad = [
        {"task_id": "ragged", "train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [{"input": [[1]]}]},
        {"task_id": "empty", "train": [], "test": [{"input": [[1]], "output": [[1]]}]},
    ]
    output = run(model, processor, tasks[:5] + bad + tasks[5:], SearchConfig(), [3])
    assert sorted(output.errors) == ["empty", "ragged"]
    assert "rows of different lengths" in output.errors["ragged"]
    assert output.results[0].predictions == good.results[0].predictions
    # `empty` has a known answer and counts as wrong; `ragged` has none to score.
    ratio = len(tasks) / (len(tasks) + 1)
    name = "top_1_pixel_accuracy"
    assert output.results[0].scores[name] == pytest.approx(good.results[0].scores[name] * ratio)


def test_a_batch_that_does_not_fit_is_halved(model, processor, monkeypatch):
    original, sizes = model.search, []

    def small_memory(input_grids, **kwargs):
        sizes.append(len(input_grids))
        if len(input_grids) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return original(input_grids=input_grids, **kwargs)

    tasks = make_tasks(5)
    expected = run(model, processor, tasks, SearchConfig(), [2])
    monkeypatch.setattr(model, "search", small_memory)
    output = run(model, processor, tasks, SearchConfig(), [2], batch_size=5)
    assert output.results[0].predictions == expected.results[0].predictions
    assert sizes == [5, 2, 3, 1, 2]
    monkeypatch.setattr(model, "search", lambda **kwargs: 1 / 0)
    with pytest.raises(RuntimeError, match="all 5 tasks failed; the first, t0, with ZeroDivisionError"):
        run(model, processor, tasks, SearchConfig(), [2])


def test_unknown_answers_give_no_scores_and_wrong_ids_are_refused(model, processor):
    tasks = [{**task, "test": [{"input": pair["input"]} for pair in task["test"]]} for task in make_tasks(2)]
    assert run(model, processor, tasks, SearchConfig(), [1]).results[0].scores == {}
    with pytest.raises(ValueError, match="'t0' occurs twice"):
        run(model, processor, [tasks[0], tasks[0]], SearchConfig())
    with pytest.raises(ValueError, match="no tasks to evaluate"):
        run(model, processor, [], SearchConfig())
    with pytest.raises(ValueError, match="task 0 has no `task_id`"):
        run(model, processor, [{"train": []}], SearchConfig())


def test_evaluation_leaves_model_and_random_state_alone(model, processor):
    model.train()
    before = torch.get_rng_state()
    run(model, processor, make_tasks(2), SearchConfig(num_samples=3), [1])
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()


def test_search_settings_are_chosen_on_validation_tasks(model, processor):
    """One candidate solves a task by construction: its own answer is the truth."""
    tasks, search = make_tasks(4), SearchConfig(lr=0.5)
    candidates = search_grid(search, prior_weight=[0.0, 5.0], rank_by=["fit", "leave_one_out"])
    assert [c.to_dict() for c in candidates[1:3]] == [
        {"lr": 0.5, "prior_weight": 0.0, "rank_by": "leave_one_out"},
        {"lr": 0.5, "prior_weight": 5.0, "rank_by": "fit"},
    ]
    answers = run(model, processor, tasks, candidates[2], [6]).results[0].predictions
    solved = copy.deepcopy(tasks)
    for task in solved:
        for pair, attempts in zip(task["test"], answers[task["task_id"]], strict=True):
            pair["output"] = attempts[0]
    choice = choose_search(model, processor, solved, candidates, [0, 6], progress=False)
    assert len(choice.rows) == 8
    best = max(row["scores"]["top_1_strict_task_accuracy"] for row in choice.rows)
    equal = [row for row in choice.rows if row["scores"]["top_1_strict_task_accuracy"] == best]
    chosen = next(row for row in choice.rows if row["search"] == choice.search_config.to_dict())
    assert best == 1.0 and chosen in equal
    assert chosen["num_evaluations"] == min(row["num_evaluations"] for row in equal)
    with pytest.raises(ValueError, match="no `candidates` to choose from"):
        choose_search(model, processor, solved, [], progress=False)
    hidden = [{**task, "test": [{"input": pair["input"]} for pair in task["test"]]} for task in tasks]
    with pytest.raises(ValueError, match="no test output of the validation tasks is known"):
        choose_search(model, processor, hidden, candidates, progress=False)


def test_evaluation_searches_as_the_model_says(processor):
    model = LPNModel(LPNConfig(max_rows=8, max_cols=8, latent_dim=2, search={"num_steps": 3, "lr": 0.5})).eval()
    tasks = make_tasks(2)
    assert run(model, processor, tasks, None).results[0].num_evaluations == 4
    assert run(model, processor, tasks, {"method": "mean"}).results[0].num_evaluations == 1
    saved, given = run(model, processor, tasks, None, [2]), run(model, processor, tasks, SearchConfig(lr=0.5), [2])
    assert saved.trajectories == given.trajectories


@pytest.mark.slow
def test_known_leaks_between_arc_data_sets_are_found_by_content():
    evaluation = load_tasks("arcagi:evaluation")
    assert find_leaks(evaluation, read_training_pairs("arcagi:training")) == {
        "070dd51e": {"training_tasks": ["40853293"], "shared_pairs": 3, "num_pairs": 3}
    }
    assert len(find_leaks(evaluation, read_training_pairs("arcagi2:training"))) == 376


def test_leaks_of_a_table_of_pairs_and_of_the_arc_tasks_it_was_made_from(tmp_path):
    grid = pa.list_(pa.list_(pa.uint8()))
    schema = pa.schema([("task_id", pa.string()), ("input", grid), ("output", grid)])
    # A pair like those that Re-ARC makes of an ARC task; and one of no ARC task.
    rows = [("40853293", [[7]], [[7]]), ("mine", [[1, 2]], [[2, 1]])]
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=False)) for row in rows], schema)
    pq.write_table(table, tmp_path / "pairs.parquet")
    mine = {
        "task_id": "other-name",
        "train": [{"input": [[1, 2]], "output": [[2, 1]]}],
        "test": [{"input": [[1], [2]]}],
    }
    # The same cells in another shape are another grid.
    turned = {"task_id": "turned", "train": [{"input": [[1], [2]], "output": [[2], [1]]}], "test": [{"input": [[1]]}]}
    found = find_leaks(
        [mine, turned, *load_tasks("arcagi:evaluation")], read_training_pairs(tmp_path / "pairs.parquet")
    )
    assert set(found) == {"other-name", "070dd51e"}
    assert found["other-name"] == {"training_tasks": ["mine"], "shared_pairs": 1, "num_pairs": 1}
    save_tasks([mine], tmp_path / "tasks.parquet")
    assert set(find_leaks([mine, turned], read_training_pairs(tmp_path / "tasks.parquet"))) == {"other-name"}
    with pytest.raises(FileNotFoundError, match="neither a known source nor a file"):
        list(read_training_pairs(tmp_path / "missing.parquet"))


def test_scores_without_leaks():
    tasks = [{"task_id": name, "train": [], "test": [{"input": [[1]], "output": [[1]]}]} for name in ("a", "b")]
    result = BudgetResult(1, {"a": [[[[1]]]], "b": [[[[2]]]]}, {}, 1.0, 0.0)
    (scores,) = scores_without(tasks, [result], ["a"])
    assert scores["top_1_strict_task_accuracy"] == 0 and scores_without(tasks, [result], ["a", "b"]) == [{}]
    assert scores_without(tasks, [result], [])[0]["top_1_strict_task_accuracy"] == 0.5


class Killed(BaseException):
    """Ends an evaluation as Ctrl-C does."""


def same(one, other):
    assert [vars(a) for a in one.results] == [vars(b) for b in other.results]
    assert one.trajectories == other.trajectories and one.num_nonfinite == other.num_nonfinite


def test_a_killed_evaluation_goes_on_from_what_is_on_disk(model, processor, tmp_path, monkeypatch):
    tasks, search = make_tasks(), SearchConfig(lr=0.3, num_samples=1)
    whole = run(model, processor, tasks, search, BUDGETS)
    original, searched = model.search, []

    def killed_in_the_third_batch(**kwargs):
        searched.append(len(kwargs["input_grids"]))
        if len(searched) == 3:
            raise Killed
        return original(**kwargs)

    monkeypatch.setattr(model, "search", killed_in_the_third_batch)
    with pytest.raises(Killed):
        run(model, processor, tasks, search, BUDGETS, keep_in=tmp_path)
    file = tmp_path / "tasks.jsonl"
    assert len(file.read_text().split()) and searched == [4, 4, 1]
    same(run(model, processor, tasks, search, BUDGETS, keep_in=tmp_path), whole)
    assert searched == [4, 4, 1, 1]  # only the batch that was lost
    # What another process wrote counts, and a line that was cut off does not.
    lines = file.read_text().split("\n")
    file.write_text("\n".join(lines[: len(lines) // 2])[:-40])
    (tmp_path / "tasks.rank3.jsonl").write_text("\n".join(lines[len(lines) // 2 :]))
    same(run(model, processor, tasks, search, BUDGETS, keep_in=tmp_path), whole)
    assert searched[4:] == [4]
    same(run(model, processor, tasks, search, BUDGETS, keep_in=tmp_path), whole)
    assert searched[5:] == []
    other = make_tasks(seed=1)[:2]  # the ids are the same, the tasks are not
    assert set(run(model, processor, other, search, BUDGETS, keep_in=tmp_path).trajectories) == {"t0", "t1"}
    assert searched[5:] == [2]
    with pytest.raises(
        ValueError, match="tasks.jsonl holds records made with seed 0, now it is 5; give another output folder"
    ):
        run(model, processor, tasks, search, BUDGETS, keep_in=tmp_path, seed=5)
    changed = copy.deepcopy(model)
    next(changed.parameters()).data += 1
    with pytest.raises(ValueError, match="holds records made with model "):
        run(changed, processor, tasks, search, BUDGETS, keep_in=tmp_path)


def test_a_failed_task_is_tried_again(model, processor, tmp_path, monkeypatch):
    tasks, search = make_tasks(3), SearchConfig(num_steps=1)
    original = model.search

    def failing(**kwargs):
        if len(kwargs["input_grids"]) > 1 or failing.calls == 0:
            failing.calls += len(kwargs["input_grids"]) == 1
            raise torch.OutOfMemoryError
        return original(**kwargs)

    failing.calls = 0
    monkeypatch.setattr(model, "search", failing)
    assert len(run(model, processor, tasks, search, keep_in=tmp_path).errors) == 1
    monkeypatch.setattr(model, "search", original)
    assert run(model, processor, tasks, search, keep_in=tmp_path).errors == {}
