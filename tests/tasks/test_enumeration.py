"""The symbolic baseline of tasks on strings."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_lpn.tasks.enumeration import (
    answer_by_enumeration,
    edit_distance,
    enumerate_programs,
    is_ambiguous,
    nearest_pair,
)
from modeling_lpn.tasks.string_sources import make_row
from modeling_lpn.tasks.strings import StringTask, program_size, run_program


NAMES = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Kurt Gödel")


def test_programs_explain_the_pairs_and_come_smallest_first():
    outputs = ["Lovelace, A", "Turing, A", "Hopper, G"]
    programs = list(enumerate_programs(NAMES[:3], outputs, 3, seconds=5))
    assert all([run_program(program, name) for name in NAMES[:3]] == outputs for program in programs)
    sizes = list(map(program_size, programs))
    assert sizes and sizes == sorted(sizes) == [3] * len(sizes)
    assert len(set(programs)) == len(programs)


@pytest.mark.parametrize("seed", range(6))
def test_generated_programs_of_two_operations_are_found(seed):
    program, inputs, outputs = StringTask(4, 32, max_size=2).draw(random.Random(seed))
    found = next(enumerate_programs(inputs, outputs[:3], 2, seconds=20))
    assert program_size(found) <= program_size(program)
    assert [run_program(found, text) for text in inputs[:3]] == outputs[:3]


def test_answers_are_different_and_keep_to_the_time():
    task = make_row("t", [("ab cd", "ab"), ("ef gh", "ef"), ("ij-kl mn", "?")])
    assert answer_by_enumeration(task, 2, 5) == [["ij", "ij-kl"]] or set(answer_by_enumeration(task, 2, 5)[0]) >= {
        "ij"
    }
    assert answer_by_enumeration(make_row("t", [("ab", "xyz"), ("cd", "?")]), 4, 0.05) == [[]]
    with pytest.raises(ValueError, match="0 inputs and 0 outputs"):
        next(enumerate_programs([], []))


def test_ambiguity():
    first_word = ((("token", "word", 0),),)
    assert is_ambiguous(first_word, ["ab cd", "ef gh", "ij-kl mn"], ["ab", "ef", "ij"], seconds=20)
    assert not is_ambiguous(first_word, ["ab cd", "ef-gh", "ijkl,mn", "op rs"], ["ab", "ef", "ijkl", "op"], seconds=20)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_a_distance(left, right):
    distance = edit_distance(left, right)
    assert distance == edit_distance(right, left) and (distance == 0) == (left == right)
    assert abs(len(left) - len(right)) <= distance <= max(len(left), len(right))
    assert edit_distance(left + "x", left) == 1 and edit_distance("kitten", "sitting") == 3


def test_nearest_pair():
    assert nearest_pair(make_row("t", [("abc", "1"), ("xyz", "2"), ("xyw", "?")])) == [["2"]]
