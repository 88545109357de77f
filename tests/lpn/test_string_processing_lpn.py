"""Strings to grids of one row and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from modeling_lpn import DataCollatorForGridTasks, LPNConfig, LPNModel, LPNProcessor, StringProcessor
from modeling_lpn.lpn.processing_lpn import ALPHABET


TASK = {
    "train": [{"input": "Ada Lovelace", "output": "A."}, {"input": "Alan", "output": ""}],
    "test": [{"input": "Grace Hopper", "output": "G."}, {"input": ""}],
}


@given(st.lists(st.text(alphabet=ALPHABET, max_size=20), max_size=5), st.booleans(), st.integers(1, 9))
def test_encode_and_decode_are_inverse(texts, is_output, step):
    processor = StringProcessor(20, output_step=step)
    grids, shapes = processor.encode(texts, is_output)
    assert [processor.decode(grid[:, :cols]) for grid, (_, cols) in zip(grids, shapes, strict=True)] == texts
    for text, (rows, cols) in zip(texts, shapes, strict=True):
        assert rows == 1 and max(len(text), 1) <= cols <= 20
        assert not is_output or cols % step == 0 or cols == 20
        assert is_output or cols == max(len(text), 1)


@given(st.text(min_size=1).map(lambda text: "".join(dict.fromkeys(text))), st.text())
def test_any_alphabet(alphabet, text):
    processor = StringProcessor(max(len(text), 1), alphabet)
    grid = processor.encode([text])[0][0, 0]
    expected = [alphabet.index(character) + 1 if character in alphabet else 0 for character in text]
    assert grid[: len(text)].tolist() == expected


SYMBOLS = ["[", "]", " ", "1", "-1", "10", "\n"]


@given(st.lists(st.lists(st.sampled_from(SYMBOLS), max_size=9), max_size=4), st.booleans())
def test_symbols_of_several_characters(rows, is_output):
    processor = StringProcessor(17, SYMBOLS, output_step=4)
    texts = ["]".join(row) for row in rows]
    grids, shapes = processor.encode(texts, is_output)
    assert [processor.decode(grid[:, :cols]) for grid, (_, cols) in zip(grids, shapes, strict=True)] == texts
    assert [int((grid > 0).sum()) for grid in grids] == [len(processor.split(text)) for text in texts]


def test_the_longest_symbol_is_read_and_what_is_none_is_named(tmp_path):
    processor = StringProcessor(6, SYMBOLS, output_step=1)
    assert processor.split("[10 -1!") == ["[", "10", " ", "-1", "!"]
    assert processor.split("101 -10 1-1") == ["101", " ", "-", "10", " ", "1", "-1"]  # a number is read whole
    assert processor.encode(["10 -1", "-x"])[0][:, 0].tolist() == [[6, 3, 5], [0, 0, 0]]
    task = {"train": [{"input": "[10]", "output": "[10 2]"}], "test": []}
    with pytest.raises(ValueError, match=r"train pair 0, `output`: character 3 is '2' \(U\+0032\)"):
        processor(task)
    with pytest.raises(ValueError, match="`output`: character 0 is '101', which is not in the alphabet"):
        processor({"train": [{"input": "[10]", "output": "101"}], "test": []})
    with pytest.raises(ValueError, match="has 7 characters, more than 6"):
        processor({"train": [{"input": "[10 10]1 ", "output": "1"}], "test": []})
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert (
        loaded.alphabet == SYMBOLS and loaded.encode(["10 -1"])[0].tolist() == processor.encode(["10 -1"])[0].tolist()
    )


def test_a_task_becomes_tensors():
    batch = StringProcessor(output_step=4)(TASK)
    assert batch["input_shapes"].tolist() == [[[1, 12], [1, 4]]]
    assert batch["output_shapes"].tolist() == [[[1, 4], [1, 4]]]
    assert batch["query_shapes"].tolist() == [[[1, 12], [1, 1]]]
    assert batch["output_grids"][0, 0, 0].tolist()[:4] == [ord("A") - 31, ord(".") - 31, 0, 0]
    collated = DataCollatorForGridTasks(StringProcessor(output_step=4))([TASK])
    assert torch.equal(collated["output_grids"], batch["output_grids"])


def test_outputs_of_a_model_are_strings():
    processor = StringProcessor(12)
    model = LPNModel(LPNConfig(vocab_size=96, max_rows=1, max_cols=12, copy_inputs=True)).eval()
    batch = processor(TASK)
    predicted = processor.post_process(model.generate(**batch, num_steps=1, num_candidates=2), batch["query_mask"])
    assert len(predicted) == 1 and [len(candidates) for candidates in predicted[0]] == [2, 2]
    assert all(isinstance(text, str) and len(text) <= 12 for candidates in predicted[0] for text in candidates)


def test_saved_and_loaded(tmp_path):
    StringProcessor(30, "abc", 5).save_pretrained(tmp_path)
    for loaded in (StringProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is StringProcessor
        assert (loaded.max_length, loaded.alphabet, loaded.output_step, loaded.vocab_size) == (30, "abc", 5, 4)
    LPNProcessor(5, 6, 7).save_pretrained(tmp_path / "grids")
    assert type(AutoProcessor.from_pretrained(tmp_path / "grids")) is LPNProcessor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": [{"input": "Zoë", "output": "Z"}]},
            r"Task 't', train pair 0, `input`: character 2 is 'ë' \(U\+00EB\), which is",
        ),
        (
            {"test": [{"input": "a"}, {"input": "x" * 65}]},
            "test pair 1, `input`: has 65 characters, more than 64; shorten",
        ),
        ({"train": [{"input": "a", "output": 5}]}, r"train pair 0, `output`: is a int \(5\), not a string"),
        ({"train": [{"input": "a"}]}, "train pair 0 has no key 'output'"),
        ({"train": ["a"]}, "train pair 0 is a str"),
        ({"train": "ab"}, "`train` is a str"),
        ({"train": []}, "no training pairs"),
        ({"test": []}, "no test inputs"),
        ({"train": [{"input": None, "output": "x"}]}, "train pair 0, `input`: is a NoneType"),
    ],
)
def test_wrong_tasks(change, message):
    with pytest.raises(ValueError, match=message):
        StringProcessor()({"task_id": "t", **TASK, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphabet": "abca"}, "`alphabet` is 'abca' .*'a'"),
        ({"alphabet": ["a", ""]}, r"no text: \[''\]"),
        ({"alphabet": ["a", 1]}, r"no text: \[1\]"),
        ({"alphabet": {"a", "b"}}, "give a string of different characters, or a list"),
        ({"alphabet": ""}, "give a string of different characters"),
        ({"max_length": 0}, "`max_cols` is 0|`max_length` is 0"),
        ({"output_step": 0}, "`output_step` is 0"),
        ({"max_rows": 3}, "`max_rows` is 3; a string processor has 1 there"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        StringProcessor(**arguments)


def test_no_character_is_colour_zero():
    assert np.count_nonzero(StringProcessor().encode([ALPHABET[:64]])[0]) == 64
