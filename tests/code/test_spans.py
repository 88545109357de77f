"""Spans by syntax: what is parsed, what is drawn, that it is undone, and that what cannot be parsed is random and counted."""

import pickle
import sysconfig
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases_codegen2 import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lpn import ObjectiveMixture, infill_layout
from modeling_lpn.code.objectives import Infill, SpanCorruption
from modeling_lpn.code.spans import (
    SyntaxSplitter,
    choose_node,
    choose_run,
    longest_within,
    parse_python,
    tree_sitter_parser,
)
from modeling_lpn.code.token_splitter import TokenSplitter
from modeling_lpn.codegen2.infilling_codegen2 import encode_source


TOKENIZER = tiny_tokenizer()
LAYOUT = infill_layout(TOKENIZER)
SPLITTER = SyntaxSplitter(TOKENIZER, syntax_rate=1.0)
SOURCE = '''import os

@decorated(1)
def add(a, b=2):
    """Sum."""
    if a:
        x = "日本 é"
        return f(a, [x, b])
    else:
        return b

class Kept:
    y = 1
'''


def texts(spans, text=SOURCE):
    return [text[start:end] for start, end in spans]


def test_nodes_and_runs_of_python():
    tree = parse_python(SOURCE)
    nodes = texts(tree.nodes)
    assert {"import os", "b", "2", "f(a, [x, b])", "[x, b]", '"日本 é"', "return b", "y = 1"} <= set(nodes)
    whole = next(text for text in nodes if text.startswith("@decorated"))
    assert whole.endswith("return b") and "def add" in whole
    groups = [texts(group) for group in tree.groups]
    assert ["return b"] in groups and ['x = "日本 é"', "return f(a, [x, b])"] in groups
    assert [text.split()[0] for text in groups[0]] == ["import", "@decorated(1)", "class"]


@pytest.mark.parametrize("cut", range(0, len(SOURCE), 7))
def test_pieces_of_a_file_give_their_whole_statements(cut):
    for text in (SOURCE[:cut], SOURCE[cut:]):
        tree = parse_python(text)
        for start, end in tree.nodes if tree else ():
            assert 0 <= start < end <= len(text) and text[start:end] in SOURCE
    if cut > 12:
        assert "import os" in texts(parse_python(SOURCE[:cut]).nodes, SOURCE[:cut])
    if cut < SOURCE.index("class"):
        assert "y = 1" in texts(parse_python(SOURCE[cut:]).nodes, SOURCE[cut:])


@pytest.mark.parametrize("text", ["", "???", "def f(:\n", "\0", "(" * 5000, "not code at all, but words\n" * 9])
def test_what_is_no_python(text):
    assert parse_python(text) is None


def test_files_of_the_standard_library_are_parsed_from_any_place():
    """Pieces as training takes them, of the size of a unit."""
    parsed = 0
    files = ("argparse.py", "ast.py", "heapq.py", "textwrap.py", "typing.py")
    rng = np.random.default_rng(0)
    sources = [(Path(sysconfig.get_path("stdlib")) / name).read_text() for name in files]
    pieces = []
    for text in sources:
        for start in [0, *rng.integers(0, len(text) - 3000, 5).tolist()]:
            pieces.append(text[start : start + 3000])
            tree = parse_python(pieces[-1])
            parsed += tree is not None and sum(end - start for start, end in tree.groups[0]) > 300
    assert parsed / len(pieces) > 0.65  # the others begin or end in a long string


@given(seed=st.integers(0, 2**32), cut=st.integers(0, len(SOURCE)), room=st.sampled_from([40, 90, 2000]))
@settings(max_examples=40, deadline=None)
def test_spans_are_undone_exactly(seed, cut, room):
    ids = np.array(encode_source(TOKENIZER, SOURCE[cut:] or "x"))
    unit = Infill(splitter=SPLITTER)(ids, np.random.default_rng(seed), LAYOUT, room=room)
    found, plan = unit["input_ids"].tolist(), unit["plan"]
    restored = LAYOUT.restore(found) if plan.starts else found[: len(found) - plan.ends]
    assert TOKENIZER.decode(restored) == TOKENIZER.decode(ids[: plan.taken])
    assert len(found) == plan.size <= room


def drawn(splitter, text, number=120):
    ids = np.array(encode_source(TOKENIZER, text))
    spans = []
    for seed in range(number):
        taken, source, (start, end) = splitter.cut(ids, len(ids), 10**4, np.random.default_rng(seed))
        assert taken == len(ids) and TOKENIZER.decode(source) == text
        spans.append(TOKENIZER.decode(source[start:end]))
        # What stands around a cut is encoded as it will be at inference.
        for part in (source[:start], source[start:end], source[end:]):
            assert encode_source(TOKENIZER, TOKENIZER.decode(part)) == part.tolist()
    return spans


def test_every_span_is_a_node_or_a_run_of_siblings():
    splitter = SyntaxSplitter(TOKENIZER, syntax_rate=1.0)
    tree = parse_python(SOURCE)
    runs = {
        SOURCE[group[first][0] : group[last][1]]
        for group in tree.groups
        for first in range(len(group))
        for last in range(first, len(group))
    }
    spans = drawn(splitter, SOURCE)
    assert set(spans) <= runs | set(texts(tree.nodes)) and len(set(spans)) > 15
    assert splitter.counts["node"] + splitter.counts["run"] == 120 and abs(splitter.counts["node"] - 60) < 25


def test_random_spans_are_mixed_in_and_what_cannot_be_parsed_is_counted():
    splitter = SyntaxSplitter(TOKENIZER, syntax_rate=0.9)
    spans, rate = drawn(splitter, SOURCE, 200), splitter.counts["random"] / 200
    assert 0.03 < rate < 0.18 and splitter.counts["unparsable"] == 0
    words = SyntaxSplitter(TOKENIZER, syntax_rate=1.0)
    uniform = drawn(words, "not code at all\n", 60)
    assert words.counts == {"unparsable": 60} and len(set(uniform)) > 15
    # Without syntax they are those of the splitter that cuts anywhere.
    none, plain = SyntaxSplitter(TOKENIZER, syntax_rate=0.0), TokenSplitter(TOKENIZER)
    ids = np.array(encode_source(TOKENIZER, SOURCE))
    for seed in range(20):
        one = none.cut(ids, len(ids), 10**4, np.random.default_rng(seed))
        other = plain.cut(ids, len(ids), 10**4, np.random.default_rng(seed))
        assert one[0] == other[0] and one[1].tolist() == other[1].tolist() and one[2] == other[2]
    assert len(set(spans)) > 15


LAWS = {
    "codegen2": SpanCorruption(),
    "few": SpanCorruption((0.1, 0.5), max_spans=2),
    "incoder": SpanCorruption(poisson_spans=2.0),
    "t5": SpanCorruption((0.15, 0.15), mean_span_length=3.0),
    "many": SpanCorruption((0.5, 0.5), mean_span_length=8.0),
}


def corrupted(law, text, seed, room=None, syntax_rate=1.0):
    """A unit by syntax, that of the same seed without it, the piece of the file, and the splitter."""
    ids = np.array(encode_source(TOKENIZER, text))
    splitter = SyntaxSplitter(TOKENIZER, syntax_rate)
    objectives = replace(LAWS[law], splitter=splitter), LAWS[law]
    units = [objective(ids, np.random.default_rng(seed), LAYOUT, room=room) for objective in objectives]
    return (*units, ids[: units[0]["plan"].taken], splitter)


@pytest.mark.parametrize("law", LAWS)
@given(
    seed=st.integers(0, 2**32),
    cut=st.integers(0, len(SOURCE)),
    room=st.sampled_from([20, 90, None]),
    rate=st.sampled_from([0.0, 0.6, 1.0]),
)
@settings(max_examples=30, deadline=None)
def test_file_level_corruption_by_syntax_is_undone_within_the_budget_of_its_law(law, seed, cut, room, rate):
    unit, plain, piece, splitter = corrupted(law, SOURCE[cut:] or "x", seed, room, rate)
    plan, drawn, found = unit["plan"], plain["plan"], unit["input_ids"].tolist()
    restored = LAYOUT.restore(found) if plan.starts else found[: len(found) - plan.ends]
    assert restored == piece.tolist() and len(found) == plan.size == drawn.size
    assert (plan.taken, len(plan.starts)) == (drawn.taken, len(drawn.starts))
    for start, length, first, most in zip(plan.starts, plan.lengths, drawn.starts, drawn.lengths, strict=True):
        assert first <= start and length >= 1 and start + length <= first + most
    assert sum(splitter.counts.values()) == len(plan.starts)
    if rate == 0.0:
        assert (list(plan.starts), list(plan.lengths)) == (list(drawn.starts), list(drawn.lengths))


@pytest.mark.parametrize("law", LAWS)
def test_the_spans_of_a_file_are_its_nodes_and_statements(law):
    tree, counts = parse_python(SOURCE), Counter()
    runs = {
        SOURCE[group[first][0] : group[last][1]]
        for group in tree.groups
        for first in range(len(group))
        for last in range(first, len(group))
    }
    for seed in range(60):
        unit, plain, piece, splitter = corrupted(law, SOURCE, seed)
        plan, drawn, same = unit["plan"], plain["plan"], 0
        for number, (start, length) in enumerate(zip(plan.starts, plan.lengths, strict=True)):
            span = TOKENIZER.decode(piece[start : start + length]).strip()
            if span not in runs | set(texts(tree.nodes)):
                assert (start, length) == (drawn.starts[number], drawn.lengths[number])
                same += 1
        assert same <= splitter.counts["short"] and not splitter.counts["unparsable"] + splitter.counts["random"]
        counts += splitter.counts
    assert counts["node"] > 15 and (law == "t5" or counts["run"] > 15)


def test_a_file_that_cannot_be_parsed_is_corrupted_at_random_and_counted():
    unit, plain, _, splitter = corrupted("many", "not code at all, but words\n" * 9, 0)
    assert unit["input_ids"].tolist() == plain["input_ids"].tolist()
    assert splitter.counts == {"unparsable": len(plain["plan"].starts)}


def test_the_longest_run_within_a_span():
    parts = np.array([[0, 4, 6, 9, 12], [3, 6, 9, 12, 20], [0, 0, 0, 1, 1]])  # first token, the one after, body
    assert longest_within(*parts, 0, 20) == (9, 20) and longest_within(*parts, 0, 13) == (0, 9)
    assert longest_within(*parts, 1, 12) == (4, 9) and longest_within(*parts, 1, 5) is None


def test_choices():
    tree = parse_python("aaaa = 1\nb = 2\nc = 3\n")
    assert choose_node(tree, 0.0) == (0, 8) and choose_node(tree, 0.999999)[1] == 20
    assert choose_run(tree, 0, 13) == (0, 14) and choose_run(tree, 10, 11) == (9, 14)


def test_a_splitter_goes_to_workers():
    again = pickle.loads(pickle.dumps(SPLITTER))
    ids = np.array(encode_source(TOKENIZER, SOURCE))
    one, other = (splitter.cut(ids, len(ids), 999, np.random.default_rng(3)) for splitter in (SPLITTER, again))
    assert one[1].tolist() == other[1].tolist() and one[2] == other[2]


def test_a_setting_of_the_preset():
    mixture = ObjectiveMixture.from_preset("fim", infill_splitter=SPLITTER)
    assert mixture.objectives[1].splitter is SPLITTER
    mixture = ObjectiveMixture.from_preset("ul2_r", span_corruption_splitter=SPLITTER)
    assert all(objective.splitter is SPLITTER for objective in mixture.objectives)
    with pytest.raises(ValueError, match="`splitter` is a TokenSplitter, but .*; give a SyntaxSplitter"):
        ObjectiveMixture.from_preset("t5", span_corruption_splitter=TokenSplitter(TOKENIZER))
    with pytest.raises(ValueError, match="`syntax_rate` is 1.5; give a share"):
        SyntaxSplitter(TOKENIZER, syntax_rate=1.5)
    with pytest.raises(ImportError, match="'cobol' needs its grammar: pip install tree-sitter-cobol"):
        SyntaxSplitter(TOKENIZER, language="cobol")


def test_other_languages_by_tree_sitter():
    pytest.importorskip("tree_sitter_javascript")
    text = "// é日\nfunction f(a) {\n  let x = [1, a];\n  return x;\n}\nlet y = f('é');\nif ("
    tree = tree_sitter_parser("javascript")(text)
    nodes = texts(tree.nodes, text)
    assert {"let x = [1, a];", "[1, a]", "f('é')", "let y = f('é');"} <= set(nodes)
    assert ["let x = [1, a];", "return x;"] in [texts(group, text) for group in tree.groups]
    splitter = pickle.loads(pickle.dumps(SyntaxSplitter(TOKENIZER, 1.0, "javascript")))
    spans = drawn(splitter, text, 60)
    assert set(spans) & {"return x;", "let x = [1, a];\n  return x;", "f('é')"} and splitter.counts["unparsable"] == 0
