"""Tasks on strings from files."""

import json

import pytest

from modeling_lpn.tasks.string_sources import load_string_tasks, make_row, plain_lists, read_table


SYGUS = '''
; a comment (with brackets
(set-logic SLIA)
(synth-fun f ((first String) (last String)) String ((Start String (ntString)) (ntString String (first last " " ";"))))
(declare-var first String)
(constraint (= (f "Ada" "Love;lace") "A. ""L"""))
(constraint (= "A. T" (f "Alan" "Turing")))
(constraint (= (f "Ada" "Love;lace") "A. ""L"""))
(constraint (= (f "Kurt" "(x)") "K. ("))
(check-synth)
'''


def pairs_of(row):
    return [(pair["input"], pair["output"]) for pair in row["train"] + row["test"]]


def test_sygus(tmp_path):
    (tmp_path / "initials.sl").write_text(SYGUS)
    (row,) = load_string_tasks(tmp_path / "initials.sl")
    assert row["task_id"] == "initials" and len(row["train"]) == 2
    assert pairs_of(row) == [("Ada Love;lace", 'A. "L"'), ("Alan Turing", "A. T"), ("Kurt (x)", "K. (")]
    (row,) = load_string_tasks(tmp_path, num_examples=1)
    assert len(row["train"]) == 1 and len(row["test"]) == 2


def test_prose(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        examples = [{"Input": [name, "x"], "Output": "1"}, {"Input": ["y", ""], "Output": ""}]
        (tmp_path / name / "spec.json").write_text(json.dumps({"Examples": examples + examples}))
    rows = load_string_tasks(tmp_path)
    assert [row["task_id"] for row in rows] == ["a", "b"]
    assert pairs_of(rows[0]) == [("a x", "1"), ("y ", "")]


def test_exedec(tmp_path):
    lines = [
        {"index": 7, "inputs": ["a", "b", "c"], "outputs": ["A", "B", "C"], "program": "4 29"},
        {"inputs": ["x0 = [ ] | x1 = [ 0 ]", "x0 = [ 1 -2 ] | x1 = 3"], "outputs": ["[ ]", "[ 5 14 ]"]},
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = load_string_tasks(path)
    assert [row["task_id"] for row in rows] == ["set_7", "set_1"]
    assert pairs_of(rows[1]) == [("[] [0]", "[]"), ("[1 -2] 3", "[5 14]")]
    assert plain_lists("[ x ]") == "[ x ]" and plain_lists("-7") == "-7"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.sl", "(constraint (= (f 1) 2)", "not a SyGuS file: a closing bracket is missing"),
        ("a.sl", "(check-synth))", "a closing bracket too many"),
        ("a.sl", "(check-synth)", "no constraints that are examples"),
        ("a.sl", "(synth-fun f () Int)(constraint (= (f x) (+ x 1)))", "constraint 0 is not an example"),
        ("a.jsonl", '{"inputs": ["a"], "outputs": []}', "a.jsonl, line 1: ValueError"),
        ("a.jsonl", '{"inputs": ["a"]}', "line 1: KeyError: 'outputs'"),
        ("a.jsonl", '\n{"inputs": ["a"], "outputs": ["b"]}', "'a_0'|Task 'a_1' has 1 different pairs, too few for 1"),
        ("spec.json", '{"Examples": [{"Input": ["a"], "Output": 3}]}', "an `Output` is not a string"),
        ("spec.json", "[]", r'a specification is \{"Examples"'),
        ("a.txt", "x", "none of .jsonl, .sl, .json; read a table with `read_table`"),
    ],
)
def test_wrong_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_string_tasks(tmp_path / name)


def test_missing_files_and_pairs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder with .sl or spec.json files"):
        load_string_tasks(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        load_string_tasks(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="Task 't' has 1 different pairs, too few for 1 demonstrations and a test"):
        make_row("t", [("a", "b"), ("a", "b")])
    with pytest.raises(ValueError, match="`num_examples` is 0"):
        load_string_tasks(tmp_path, 0)


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_tables(tmp_path, suffix, mark):
    path = tmp_path / f"people{suffix}"
    lines = [
        ["name", "city", "short"],
        ["Ada L", "London", "AL"],
        ['"Alan ""x"" T"', "Wilmslow", ""],
        ["G H", "", "GH"],
    ]
    path.write_text("\ufeff" + "".join(mark.join(line) + "\n" for line in lines))
    table = read_table(path, "short", ["name"])
    assert table.columns == ["name", "city", "short"] and table.rows[1] == ['Alan "x" T', "Wilmslow", ""]
    task = table.task()
    assert pairs_of({**task, "test": []}) == [("Ada L", "AL"), ("G H", "GH")]
    assert task["test"] == [{"input": 'Alan "x" T'}]
    assert read_table(path, "short").task()["train"][0]["input"] == "Ada L London"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("a,b\n1,2\n", {"output_column": "c"}, "no column 'c'; its columns: a, b"),
        ("a,b\n1,2\n", {"output_column": "b", "input_columns": ["x"]}, "no column 'x'"),
        ("a,b\n1,2\n", {"output_column": "b", "input_columns": ["b"]}, "The inputs of column 'b' are"),
        ("a,a\n1,2\n", {"output_column": "a"}, "names 'a' twice"),
        ("a,b\n1\n", {"output_column": "b"}, "row 2 has 1 cells, the header 2"),
        ("a,b\n", {"output_column": "b"}, "has 1 lines"),
        ('a,b\n"x,2\n', {"output_column": "b"}, "is not a table"),
    ],
)
def test_wrong_tables(tmp_path, text, arguments, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.csv", **arguments)


@pytest.mark.parametrize("text", ["a,b\n1,\n2,\n", "a,b\n1,2\n"])
def test_tables_without_examples_or_gaps(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match="as examples, and leave the others empty"):
        read_table(tmp_path / "a.csv", "b").task()


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes("a,b\nZoë,\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_table(tmp_path / "a.csv", "b")
