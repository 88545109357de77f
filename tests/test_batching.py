"""One engine for work on batches."""

import pytest
import torch

from modeling_lpn.batching import deal, evaluating, map_batches


def test_a_batch_that_does_not_fit_is_halved():
    seen = []

    def work(items):
        seen.append(list(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError
        return [item * 10 for item in items]

    assert map_batches(work, [1, 2, 3, 4, 5], lambda item: item, batch_size=4) == [10, 20, 30, 40, 50]
    assert seen == [[5, 4, 3, 2], [5, 4], [3, 2], [1]]
    with pytest.raises(torch.OutOfMemoryError):
        map_batches(lambda items: work(items * 3), [1], lambda item: item, batch_size=4)


def test_work_is_dealt_evenly_and_all_of_it():
    work = [37.0, 20, 14, 10, 7, 5, 4, 2, 1]
    for hands in (1, 2, 3, 20):
        dealt = deal(work, hands)
        assert sorted(sum(dealt, [])) == list(range(len(work))) and len(dealt) == hands
        loads = [sum(work[index] for index in own) for own in dealt]
        assert max(loads) <= max(37, 1.05 * sum(work) / hands)
    assert deal(work, 1) == [list(range(len(work)))] and deal([], 2) == [[], []]


def test_an_item_that_fails_spoils_no_other():
    def work(items):
        if 3 in items:
            raise ValueError("three")
        return [item * 10 for item in items]

    def failed(item, error):
        return f"{item}: {error}"

    results = map_batches(work, [1, 3, 2], lambda item: item, batch_size=3, failed=failed)
    assert results == [10, "3: three", 20]  # in the order of the items, whatever their sizes
    with pytest.raises(ValueError, match="three"):
        map_batches(work, [1, 3, 2], lambda item: item, batch_size=3)


def test_known_results_are_not_worked_out_again_and_leave_the_batches_as_they_are():
    seen = []

    def work(items):
        seen.append(list(items))
        return [item * 10 for item in items]

    known = {4: "five", 3: "four", 1: "two"}  # the whole batch of 5 and 4, half of another
    results = map_batches(work, [1, 2, 3, 4, 5], lambda item: item, batch_size=2, known=known)
    assert results == [10, "two", 30, "four", "five"]
    assert seen == [[3, 2], [1]]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_evaluated_and_left_as_it_was(training):
    model = torch.nn.Linear(2, 2).train(training)
    with pytest.raises(RuntimeError, match="half-way"), evaluating(model) as inner:
        assert inner is model and not model.training and not model(torch.ones(2)).requires_grad
        raise RuntimeError("half-way")
    assert model.training is training and torch.is_grad_enabled()
