"""The symbolic baseline of tasks on lists."""

import random
import time

import pytest

from modeling_lpn.tasks.list_enumeration import (
    answer_lists_by_enumeration,
    enumerate_expressions,
    is_list_task,
    run_expression,
)
from modeling_lpn.tasks.lists import ListTask, read_values, write_value
from modeling_lpn.tasks.string_sources import make_row


def size_of(expression):
    return 0 if isinstance(expression, (int, str)) else 1 + sum(map(size_of, expression[1:]))


def test_expressions_explain_the_pairs_and_come_smallest_first():
    inputs, outputs = [[[3, -1, 2]], [[5, 4]], [[-2, -7, 9]]], [[6, 4], [10, 8], [18]]
    found = list(enumerate_expressions(inputs, outputs, 2, seconds=60))
    assert found and {tuple(map(size_of, found))} == {(2,) * len(found)}
    assert all([run_expression(expression, given) for given in inputs] == outputs for expression in found)


@pytest.mark.parametrize("seed", range(6))
def test_generated_programs_are_found(seed):
    program, inputs, outputs = ListTask(5, max_size=2, max_value=20).draw(random.Random(seed))
    given, wanted = list(map(read_values, inputs)), [read_values(text)[0] for text in outputs]
    expression = next(enumerate_expressions(given, wanted, 2, seconds=60))
    assert 1 <= size_of(expression) <= 2
    assert [run_expression(expression, values) for values in given] == wanted


def test_answers_are_different_and_keep_to_the_time():
    task = make_row("t", [("[1 2 3]", "3"), ("[4 5 6]", "6"), ("[9 2]", "?")])
    assert answer_lists_by_enumeration(task, 2, 20) == [["2", "9"]]  # the last item, or the largest
    start = time.perf_counter()
    assert answer_lists_by_enumeration(make_row("t", [("[1]", "[77 5]"), ("[2]", "?")]), 9, 0.2) == [[]]
    assert time.perf_counter() - start < 10
    task["test"][0]["input"] = "[9 2] 3"
    with pytest.raises(ValueError, match="inputs of task 't' differ"):
        answer_lists_by_enumeration(task)


def test_which_tasks_are_on_lists():
    assert is_list_task(make_row("t", [("[1 -2] 3", "[1]"), ("[] 3", "0")]))
    assert not is_list_task(make_row("t", [("12", "1"), ("34", "3")]))
    assert not is_list_task(make_row("t", [("[a]", "1"), ("[b]", "3")]))


def test_reading_undoes_writing():
    for value in ([1, -3, 20], [], 7, -1):
        assert read_values(write_value(value)) == [value]
    assert read_values("[1 -3 2] 2 []") == [[1, -3, 2], 2, []]
    for wrong in ("[1", "1]", "[1 x]", "a"):
        with pytest.raises(ValueError):
            read_values(wrong)
