"""Scores of written code: pass@k against its definition, edit distance against the table, spans, the lazy metrics."""

import itertools
import math
import random
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lpn.code import metrics
from modeling_lpn.code.metrics import compute_pass_at_k, edit_distance, infill_scores, pass_at_k, wilson_interval


@pytest.mark.parametrize("successes, number", [(0, 20), (1, 20), (7, 100), (500, 500), (1, 1), (3, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_that_of_wilson(successes, number, level):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(successes, number).proportion_ci(level, method="wilson")
    assert wilson_interval(successes / number, number, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_interval_needs_a_share_of_something():
    for mean, number, level in [(1.2, 5, 0.95), (0.5, 0, 0.95), (0.5, 5, 1.0)]:
        with pytest.raises(ValueError, match=f"a mean of {mean} over {number} at the level {level}"):
            wilson_interval(mean, number, level)


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample():
    for num_samples, k in itertools.product(range(1, 8), range(1, 8)):
        for num_correct in range(num_samples + 1):
            if k > num_samples:
                with pytest.raises(ValueError, match=f"pass@{k} needs at least {k} samples of every task, one has"):
                    pass_at_k(num_correct, num_samples, k)
                continue
            draws = list(itertools.combinations([True] * num_correct + [False] * (num_samples - num_correct), k))
            assert pass_at_k(num_correct, num_samples, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_is_exact():
    for num_correct, k in itertools.product((0, 1, 7, 150, 200), (1, 10, 100)):
        exact = 1 - math.comb(200 - num_correct, k) / math.comb(200, k)
        assert pass_at_k(num_correct, 200, k) == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_of_a_benchmark():
    assert compute_pass_at_k([[True, False], [False, False]], k=[1, 2]) == {"pass@1": 0.25, "pass@2": 0.5}
    with pytest.raises(ValueError, match="one has 1; draw more samples"):
        compute_pass_at_k([[True, False], [True]], k=[2])
    with pytest.raises(ValueError, match="no tasks"):
        compute_pass_at_k([])
    with pytest.raises(ValueError, match="3 of 2 samples"):
        pass_at_k(3, 2, 1)


def table_distance(first, second):
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


@settings(deadline=None, max_examples=300)
@given(st.text("abü\n", max_size=80), st.text("abü\n", max_size=80))
def test_edit_distance_is_that_of_the_table(first, second):
    assert edit_distance(first, second) == table_distance(first, second) == edit_distance(second, first)


def test_edit_distance_is_fast():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdef ()", k=200)) for _ in range(300)]
    start = time.process_time()
    for first, second in itertools.pairwise(texts):
        edit_distance(first, second)
    assert time.process_time() - start < 1.5  # the table takes ten times as long


def test_scores_of_spans():
    scores = infill_scores(["a + b", " a\n", "", "xy"], ["a + b", "a", "ab", "xz"], [True, True, False, False])
    assert scores == {
        "exact_match": 0.5,
        "strict_exact_match": 0.25,
        "edit_similarity": pytest.approx((1 + 1 / 3 + 0 + 0.5) / 4),
        "eom_rate": 0.5,
    }
    assert infill_scores([""], [""]) == {"exact_match": 1.0, "strict_exact_match": 1.0, "edit_similarity": 1.0}
    with pytest.raises(ValueError, match="2 predictions, 1 references; give the same number"):
        infill_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 predictions, 1 references and 0 entries of `ended`"):
        infill_scores(["a"], ["a"], [])
    with pytest.raises(ValueError, match="0 predictions.*at least one"):
        infill_scores([], [])


def test_the_metrics_work_offline_and_equal_the_functions(tmp_path, monkeypatch):
    pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcomes = [[True, False, False], [False, False, True]]
    metric = metrics.PassAtK(cache_dir=str(tmp_path))
    assert metrics.PassAtK is type(metric)
    assert metric.compute(predictions=outcomes, k=[1, 2]) == compute_pass_at_k(outcomes, [1, 2])
    metric = metrics.InfillExactMatch(cache_dir=str(tmp_path))
    spans = {"predictions": ["a ", "b"], "references": ["a", "c"]}
    assert metric.compute(**spans, ended=[True, False]) == infill_scores(**spans, ended=[True, False])
    assert metric.compute(**spans) == infill_scores(**spans)


def test_without_evaluate_the_functions_remain(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    for name in ("PassAtK", "InfillExactMatch"):
        with pytest.raises(ImportError, match=f"{name} needs the package evaluate: pip install 'modeling-lpn.eval.'"):
            metrics._LAZY_CLASSES[name]()
    assert compute_pass_at_k([[True]]) == {"pass@1": 1.0}
