"""Programs of the tasks on strings, lists and sequences: what they compute, and what the generators promise of them."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lpn.tasks import lists, strings
from modeling_lpn.tasks.generators import TASK_GENERATORS
from modeling_lpn.tasks.lists import ListTask
from modeling_lpn.tasks.sequences import SequenceTask, apply_rules, rule_table, spread_rules
from modeling_lpn.tasks.stream import TaskStream, tasks_from_stream
from modeling_lpn.tasks.strings import NoOutput, StringTask, program_size, run_program, split_of


SPLIT_TASKS = ("list", "sequence", "string")


@pytest.mark.parametrize(
    ("program", "text", "output"),
    [
        (((("token", "word", -1),), (("constant", ", "),), (("token", "capital", 0),)), "Ada Lovelace", "Lovelace, A"),
        (((("token", "number", 1), ("slice", -2, None)),), "(555) 123-4567", "23"),
        (((("field", "/", -2),),), "a/b/c", "b"),
        (((("before", "@"),),), "ada@mail@net", "ada"),
        (((("after", "@"), ("upper",)),), "ada@mail@net", "MAIL@NET"),
        (((("join", "capital", "."),),), "Ada Byron Lovelace", "A.B.L"),
        (((("reverse", ", ", " "),),), "Lovelace, Ada", "Ada Lovelace"),
        (((("replace", "-", ""), ("lower",)),), "AB-1-c", "ab1c"),
        (((("trim",), ("title",)),), "  ada lovelace ", "Ada Lovelace"),
        (((("token", "punctuation", 0),), (("token", "alphanumeric", 0),)), "x1:y2", ":x1"),
    ],
)
def test_string_programs(program, text, output):
    assert run_program(program, text) == output


@pytest.mark.parametrize(
    "step",
    [
        ("token", "number", 0),
        ("token", "word", 2),
        ("field", "/", 0),
        ("after", "@"),
        ("reverse", ",", ";"),
        ("join", "word", ""),
    ],
)
def test_a_step_without_output_says_so(step):
    with pytest.raises(NoOutput):
        run_program(((step,),), "word")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(16, 64), st.integers(2, 5), st.sampled_from(strings.SPLITS))
def test_string_tasks_are_what_their_programs_compute(seed, max_length, max_size, split):
    task, dice = StringTask(4, max_length, max_size, split=split), random.Random(seed)
    for _ in range(5):
        program, inputs, outputs = task.draw(dice)
        assert outputs == [run_program(program, text) for text in inputs]
        assert 1 <= program_size(program) <= max_size and split_of(program, program_size(program)) == split
        assert all(1 <= len(text) <= max_length for text in inputs + outputs)
        assert len(set(outputs)) > 1 and outputs != inputs


@pytest.mark.parametrize("name", ["string", "list"])
def test_grids_hold_the_strings_of_the_task(name):
    task = TASK_GENERATORS[name](num_pairs=3)
    batch = task.sample(20, np.random.default_rng(5))
    dice = random.Random(int(np.random.default_rng(5).integers(2**63)))
    for row in range(20):
        program, *texts = task.draw(dice)
        assert batch["program"][row] == program
        for side, expected in zip(("input", "output"), texts, strict=True):
            assert list(map(task.processor.decode, batch[f"{side}_grids"][row])) == expected


@pytest.mark.parametrize("kind", sorted(strings.TEMPLATES))
def test_every_kind_of_data_gives_tasks(kind):
    task = StringTask(3, kinds=[kind])
    drawn = [task.draw(random.Random(seed)) for seed in range(60)]
    assert len({program for program, _, _ in drawn}) > 30


@pytest.mark.parametrize(
    ("program", "inputs", "value"),
    [
        ((("take", 1, 0),), ([4, 5, 6], 2), [4, 5]),
        ((("drop", 1, 0), ("sum", 2)), ([4, 5, 6], 1), 11),
        ((("map", "/2", 0),), ([-3, 3],), [-2, 1]),
        ((("filter", "odd", 0), ("count", "<0", 1)), ([-3, 2, -1, 5],), 2),
        ((("scan", "+", 0),), ([1, 2, 3],), [1, 3, 6]),
        ((("zip", "*", 0, 1), ("sort", 2), ("last", 3)), ([1, 2, 3], [5, -1]), 5),
        ((("access", 1, 0),), ([7, 8], 1), 8),
        # Programs and results of ExeDec's DeepCoder test set (github.com/google-deepmind/exedec, Apache-2.0).
        ((("map", "/3", 1), ("map", "*4", 2)), ([3, 7, 1, 4], [-3, -1]), [-4, -4]),
        ((("map", "/4", 0), ("sum", 1), ("drop", 2, 1)), ([-9, -2, 9],), [-1, 2]),
        (
            (("map", "/3", 0), ("zip", "-", 0, 2), ("reverse", 2), ("zip", "-", 3, 4)),
            ([3, 7, 1, 4], [-3, -1]),
            [1, 5, -1, 2],
        ),
    ],
)
def test_list_programs(program, inputs, value):
    assert lists.run_program(program, inputs) == value


def test_list_programs_without_a_value_raise():
    for program, inputs in (((("head", 0),), ([],)), ((("access", 1, 0),), ([1, 2], 5)), ((("minimum", 0),), ([],))):
        with pytest.raises((IndexError, ValueError)):
            lists.run_program(program, inputs)


def read_value(text):
    return [int(item) for item in text.strip("[]").split()] if text.startswith("[") else int(text)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(strings.SPLITS))
def test_list_tasks_are_what_their_programs_compute(seed, name):
    program, inputs, outputs = ListTask(4, split=name).draw(random.Random(seed))
    num_inputs = len(lists.read_values(inputs[0]))
    split = ListTask().processor.split
    assert [len(split(text)) for text in outputs] == [
        lists.count_symbols(lists.read_values(text)[0]) for text in outputs
    ]
    assert split_of(lists.without_unread_inputs(program, num_inputs), len(program)) == name
    for text, output in zip(inputs, outputs, strict=True):
        first, closed, rest = text.partition("]")
        values = [read_value(first + closed)] + ([read_value(rest.strip())] if rest else [])
        assert lists.write_value(lists.run_program(program, values)) == output


def test_an_input_that_is_not_read_makes_no_other_program():
    alone = (("count", ">0", 0), ("drop", 1, 0))
    assert lists.without_unread_inputs(alone, 1) == alone
    assert lists.without_unread_inputs((("count", ">0", 0), ("drop", 2, 0)), 2) == alone
    assert lists.without_unread_inputs((("count", ">0", 1), ("drop", 2, 1)), 2) == alone
    both = (("zip", "+", 0, 1), ("take", 0, 2))
    assert lists.without_unread_inputs(both, 2) == both


def naive_rule(values, rule):
    kind, a, b, c = rule
    values, n = list(values), len(values)
    if kind == 0:
        return [b if value == a else value for value in values]
    if kind == 1:
        return [(value + a) % 5 for value in values]
    if kind == 2:
        return values[a:] + values[:a]
    if kind == 3:
        values[a], values[b] = values[b], values[a]
        return values
    return values[:1] + [c if values[i - 1] == a and values[i] == b else values[i] for i in range(1, n)]


def test_every_rule_on_sequences_against_loops():
    table, rng = rule_table(7), np.random.default_rng(0)
    assert len(np.unique(table, axis=0)) == len(table)
    inputs = rng.integers(0, 5, (len(table), 6, 7), dtype=np.uint8)
    outputs = apply_rules(inputs, table)
    for rule, before, after in zip(table.tolist(), inputs.tolist(), outputs.tolist(), strict=True):
        assert after == [naive_rule(values, rule) for values in before], rule
    changed = (outputs != inputs).any(axis=(1, 2))
    assert all(changed[table[:, 0] == kind].mean() > 0.8 for kind in range(5))


def test_sequence_tasks_are_what_their_programs_compute():
    task = SequenceTask(3, length=6, min_rules=1, max_rules=4)
    batch = task.sample(200, np.random.default_rng(1))
    assert set((batch["program"] >= 0).sum(axis=1)) == {1, 2, 3, 4}
    table = task.rules.tolist()
    for program, inputs, outputs in zip(
        batch["program"], batch["input_grids"].tolist(), batch["output_grids"].tolist(), strict=True
    ):
        for (values,), (expected,) in zip(inputs, outputs, strict=True):
            for rule in program[program >= 0]:
                values = naive_rule(values, table[rule])
            assert values == expected


def test_the_paper_s_number_of_sequence_programs():
    count = len(SequenceTask().rules)
    assert 1e8 < sum(count**size for size in (3, 4, 5)) < 1.1e8


@pytest.mark.parametrize("length", [2, 10])
def test_rules_are_spread_over_their_kinds(length):
    table = rule_table(length)
    for count in (1, 5, 7, 40, len(table)):
        rules = spread_rules(table, count)
        assert len(np.unique(rules, axis=0)) == len(rules) == count
        assert set(map(tuple, rules.tolist())) <= set(map(tuple, table.tolist()))
        taken, there = np.bincount(rules[:, 0], minlength=5), np.bincount(table[:, 0], minlength=5)
        assert (taken[taken < there] >= taken.max() - 1).all()
    assert (SequenceTask(length=length, num_distinct_rules=len(table)).rules == table).all()


@pytest.mark.parametrize("name", SPLIT_TASKS)
def test_programs_of_splits_are_disjoint(name):
    seen = {}
    for split in strings.SPLITS:
        batch = TASK_GENERATORS[name](2, split=split).sample(120, np.random.default_rng(3))
        seen[split] = {str(program) for program in batch["program"]}
    assert not (
        seen["train"] & seen["test"] or seen["train"] & seen["validation"] or seen["test"] & seen["validation"]
    )
    assert min(map(len, seen.values())) > 40


@pytest.mark.parametrize("name", SPLIT_TASKS)
def test_speed(name):
    task, rng = TASK_GENERATORS[name](num_pairs=5), np.random.default_rng(0)
    task.sample(256, rng)
    seconds = []
    for _ in range(4):  # the fastest: the processor is shared
        start = time.process_time()
        task.sample(512, rng)
        seconds.append(time.process_time() - start)
    assert 512 / min(seconds) > 2500  # 5,000 and more on a core that nobody else uses


def test_rows_of_string_tasks_hold_strings():
    stream = TaskStream(StringTask(4), 10, 2)
    row = tasks_from_stream(stream, 3)[1]
    assert len(row["train"]) == 3 and len(row["test"]) == 1
    inputs = [pair["input"] for pair in row["train"] + row["test"]]
    assert inputs == list(map(stream.task.processor.decode, stream[1]["input_grids"]))
    assert stream.task.processor(row)["pair_mask"].shape == (1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StringTask(num_pairs=1), "`num_pairs` is 1; give an integer of at least 2"),
        (lambda: StringTask(max_length=8), "`max_length` is 8; give an integer from 16"),
        (lambda: StringTask(kinds=["names"]), "`kinds` is .*give a list of some of name, email"),
        (lambda: StringTask(split="dev"), "`split` is 'dev'; give one of train, validation, test"),
        (lambda: StringTask(max_size=1, split="test"), "`split` is 'test' and `max_size` is 1, but programs of one"),
        (lambda: ListTask(max_value=1), "`max_value` is 1"),
        (lambda: ListTask(max_value=126), "`max_value` is 126"),
        (lambda: ListTask(split=None), "`split` is None"),
        (lambda: SequenceTask(length=1), "`length` is 1"),
        (lambda: SequenceTask(min_rules=4, max_rules=3), "`max_rules` is 3; give an integer of at least 4"),
        (lambda: SequenceTask(num_distinct_rules=179), "`num_distinct_rules` is 179; give an integer from 1 to 178"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
