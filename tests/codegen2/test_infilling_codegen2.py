"""Infilling: the sentinel layout, source text as data, the stop rule, the pipelines, the tokenizers."""

import os

import pytest
from cases_codegen2 import Scripted, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, CodeLlamaTokenizer, GenerationConfig, PreTrainedTokenizerFast, pipeline

from modeling_lpn import infill, infill_layout, prepare_codegen2_tokenizer, train_codegen2_tokenizer
from modeling_lpn.code.tokenizer import codegen2_added_tokens
from modeling_lpn.codegen2.infilling_codegen2 import (
    InfillFormat,
    MaskLayout,
    MiddleLayout,
    cut_around_holes,
    encode_source,
)


# Layouts


LAYOUT = MaskLayout(masks=tuple(range(999, 900, -1)), separator=802, end_of_span=801, end_of_text=800)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(0, 700), max_size=5), min_size=2, max_size=6), st.data())
def test_a_sequence_is_undone_exactly(pieces, data):
    spans = [data.draw(st.lists(st.integers(0, 700), max_size=5)) for _ in pieces[1:]]
    source = pieces[0] + [token for span, piece in zip(spans, pieces[1:], strict=True) for token in span + piece]
    ids = LAYOUT.sequence(pieces, spans)
    assert LAYOUT.restore(ids) == source
    assert len(ids) == len(source) + LAYOUT.overhead(len(spans)) + 1
    for written in range(len(spans)):
        prompt = LAYOUT.prompt(pieces, spans[:written])
        assert ids[: len(prompt)] == prompt and prompt[-1] == LAYOUT.masks[written]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(), max_size=9), min_size=2, max_size=4), st.integers(0, 30))
def test_a_cut_keeps_what_is_near_the_holes(pieces, budget):
    middle = sum(map(len, pieces[1:-1]))
    if budget < middle:
        with pytest.raises(ValueError, match=f"leaves {budget} tokens"):
            cut_around_holes(pieces, budget)
        return
    cut = cut_around_holes(pieces, budget)
    assert sum(map(len, cut)) == min(budget, sum(map(len, pieces)))
    assert cut[1:-1] == pieces[1:-1]
    assert pieces[0][len(pieces[0]) - len(cut[0]) :] == cut[0] and pieces[-1][: len(cut[-1])] == cut[-1]


def test_the_prompt_of_the_model_card(tokenizer):
    layout = infill_layout(tokenizer)
    prefix, suffix = "def add(a, b):\n    ", "\n    return a"
    card = f"{prefix}<mask_1>{suffix}<|endoftext|><sep><mask_1>"
    assert layout.prompt([encode_source(tokenizer, text) for text in (prefix, suffix)]) == tokenizer.encode(card)


@pytest.mark.parametrize("name", ["codellama", "codellama-spm"])
def test_spaces_of_a_sentencepiece_tokenizer(name):
    """It puts a space before a text and takes one off a decoded one; the published code keeps the prefix's only."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab=+c", "▁a", "▁b"]
    tokens += ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    ids = {token: place for place, token in enumerate(tokens)}
    tokenizer = CodeLlamaTokenizer(vocab=ids, merges=[("▁", "a"), ("▁", "b")])
    model = Scripted([[ids["▁b"], ids["▁<EOT>"]]])
    result = infill(model, tokenizer, "a=", "+a <FILL_ME>", max_new_tokens=8, infill_format=name)
    assert result.text == "a= b+a <FILL_ME>" and result.spans == (" b",)
    prompt = [token for token in tokenizer.convert_ids_to_tokens(model.prompts[0]) if not token.startswith("<0x")]
    before, after = ["▁a", "="], ["+", "a", "▁"]
    psm, spm = ["▁<PRE>", *before, "▁<SUF>", *after, "▁<MID>"], ["▁<PRE>", "▁<SUF>", *after, "▁<MID>", *before]
    assert prompt == ["<s>", *(spm if name.endswith("spm") else psm)]


def test_what_layouts_refuse(tokenizer):
    with pytest.raises(
        ValueError, match="Unknown infill format 'starcodr'; known are codegen2, .*starcoder.*and 'auto'"
    ):
        infill_layout(tokenizer, "starcodr")
    with pytest.raises(ValueError, match="2 holes; fill-in-the-middle models know one"):
        MiddleLayout(1, 2, 3, (4,)).prompt([[0], [0], [0]])
    with pytest.raises(ValueError, match="`middle` is None in the order 'psm'"):
        MiddleLayout(1, 2, None, (4,))
    with pytest.raises(ValueError, match="has no sentinel '<fim_prefix>', which the format 'starcoder' needs"):
        infill_layout(tokenizer, "starcoder")
    with pytest.raises(ValueError, match="100 holes; this layout has mask tokens for 1 to 99"):
        LAYOUT.prompt([[1]] * 101)
    with pytest.raises(ValueError, match="3 pieces have 2 holes; 1 spans"):
        LAYOUT.sequence([[1], [2], [3]], [[4]])
    with pytest.raises(ValueError, match="No separator"):
        LAYOUT.restore([1, 2])
    with pytest.raises(ValueError, match=r"Mask 1 \(id 999\) has no span"):
        LAYOUT.restore([1, 999, 800, 802])
    with pytest.raises(ValueError, match="No end of text"):
        LAYOUT.restore([802, 999, 5, 801])
    with pytest.raises(ValueError, match="2 tokens follow the last span, from 998 on"):
        LAYOUT.restore([1, 999, 800, 802, 999, 5, 801, 998, 6])
    with pytest.raises(ValueError, match=r"has the control tokens \[998\], not the first masks"):
        LAYOUT.restore([1, 998, 800, 802, 998, 5, 801])


# Source text is data


HOSTILE = [
    "<mask_1>",
    "<<mask_1>",
    "<sep><eom>",
    "<|endoftext|>",
    "<mask_<mask_2>",
    "a <eom>\t\t  b",
    "<dummy_0>",
    "é<sep>",
]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=6)), max_size=6).map("".join))
def test_sentinels_written_in_the_source_are_text(text):
    tokenizer = _cached_tokenizer()
    ids = encode_source(tokenizer, text)
    assert not set(ids) & infill_layout(tokenizer).control_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def _cached_tokenizer(cache=[]):  # noqa: B006 hypothesis runs the test many times
    if not cache:
        cache.append(tiny_tokenizer())
    return cache[0]


# Infilling


def test_several_holes_in_batches_of_different_lengths(tokenizer):
    layout = infill_layout(tokenizer)

    def encode(text):
        return encode_source(tokenizer, text)

    eom, eot = layout.stops
    model = Scripted([encode("ONE") + [eom, 5, 5], encode("X") + [eot], encode("TWO") + [layout.masks[1], 7]])
    results = infill(model, tokenizer, pieces=[["a", "b", "c"], ["long text ", "."]], max_new_tokens=8)
    assert [result.text for result in results] == ["aONEbTWOc", "long text X."]
    assert results[0].spans == ("ONE", "TWO") and results[0].finished == (True, False)
    assert results[1].finished == (True,) and not results[1].truncated
    first, second, third = model.prompts
    assert first == layout.prompt([encode(text) for text in "abc"])
    assert third == layout.prompt([encode(text) for text in "abc"], [encode("ONE")])
    assert model.arguments["eos_token_id"][:2] == [eom, eot]
    assert set(model.arguments["eos_token_id"]) >= layout.control_ids


def test_a_long_context_is_cut_around_the_hole(tokenizer):
    layout = infill_layout(tokenizer)
    model = Scripted([[layout.end_of_span]], context=40)
    result = infill(model, tokenizer, "x" * 200 + "near", "close" + "y" * 200, max_new_tokens=10)
    assert result.truncated and result.text == "x" * 200 + "near" + "close" + "y" * 200
    assert len(model.prompts[0]) + 10 + 1 == 40  # the prompt, the span and its <eom> fill the context
    seen = tokenizer.decode([token for token in model.prompts[0] if token not in layout.control_ids])
    assert "nearclose" in seen


def test_a_reserved_token_ends_a_span_unfinished(tokenizer):
    text, dummy = encode_source(tokenizer, "b"), tokenizer.convert_tokens_to_ids("<dummy_0>")
    answer = [*text, dummy, *text]
    result = infill(Scripted([answer]), tokenizer, "a", "c", max_new_tokens=3, return_dict_in_generate=True)
    assert result.spans == ("b",) and result.finished == (False,)


def test_rows_of_a_batch_are_filled_as_alone(model, tokenizer):
    pairs = [("def add(a,", "return b"), ("a", "b + a + b + a"), ("    return", "")]
    batch = model.infill(tokenizer, *map(list, zip(*pairs, strict=True)), max_new_tokens=6)
    for pair, result in zip(pairs, batch, strict=True):
        assert model.infill(tokenizer, *pair, max_new_tokens=6) == result
        assert result.text == pair[0] + result.spans[0] + pair[1]
    assert model.infill(tokenizer, [], []) == model.infill(tokenizer, pieces=[]) == []


def test_what_infill_refuses(model, tokenizer):
    with pytest.raises(ValueError, match="not a part of both"):
        model.infill(tokenizer, "a")
    with pytest.raises(ValueError, match="two lists of equal lengths"):
        model.infill(tokenizer, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="a single text and so no hole"):
        model.infill(tokenizer, pieces=["a"])
    with pytest.raises(ValueError, match="leave no room for the source in a context of 64"):
        model.infill(tokenizer, "a", "b", max_new_tokens=60)
    with pytest.raises(ValueError, match="the text between the holes alone has 50"):
        model.infill(tokenizer, pieces=["a", "z" * 50, "b"], max_new_tokens=8)
    with pytest.raises(ValueError, match="`num_return_sequences` is 2"):
        model.infill(tokenizer, "a", "b", num_return_sequences=2)
    with pytest.raises(ValueError, match="tokenizer gives ids up to .* the model embeds 300 tokens"):
        infill(Scripted([], vocab_size=300), tokenizer, "a", "b", max_new_tokens=8)


# Pipelines


def test_pipelines(model, tokenizer):
    fill = pipeline("code-infilling", model=model, tokenizer=tokenizer)
    requests = [{"prefix": "def add(", "suffix": "b"}, {"pieces": ["a", "b", "c"]}, {"prefix": "a", "suffix": "b"}]
    results = fill(requests, batch_size=2, max_new_tokens=4)
    assert [len(result["spans"]) for result in results] == [1, 2, 1]
    assert results[0] == fill(requests[0], max_new_tokens=4)
    assert results[0]["text"] == model.infill(tokenizer, "def add(", "b", max_new_tokens=4).text
    with pytest.raises(ValueError, match=r"has the keys \['prompt'\]"):
        fill({"prompt": "a"})
    with pytest.raises(ValueError, match="A request is a str; give a dictionary"):
        fill("def add(")
    complete = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert complete("def add", max_new_tokens=4)[0]["generated_text"].startswith("def add")


# Tokenizers


def test_layout_of_a_trained_tokenizer(tmp_path, tokenizer):
    base = tokenizer.eos_token_id
    added = codegen2_added_tokens(num_masks=9)
    assert tokenizer.convert_tokens_to_ids(added) == list(range(base + 1, base + 1 + len(added)))
    assert len(tokenizer) == base + 1 + len(added) <= 320
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "\tdef add(a, b):\n            return a  +  b\n"
    assert again.decode(again.encode(text), clean_up_tokenization_spaces=False) == text
    assert again.encode(text) == tokenizer.encode(text) and again.padding_side == "left"
    ids = [*again.encode("a"), *again.convert_tokens_to_ids(["<mask_1>", "<sep>", "<eom>"]), again.eos_token_id]
    assert again.decode(ids, skip_special_tokens=True) == "a"
    assert set(again("a")) == {"input_ids", "attention_mask"}


def test_ids_of_the_released_layout():
    added = codegen2_added_tokens()
    ids = {token: 50257 + place for place, token in enumerate(added)}
    assert ids[" " * 31] == 50257 and ids["  "] == 50286 and ids["\t" * 9] == 50287 and ids["\t\t"] == 50294
    assert (ids["<sep>"], ids["<eom>"], ids["<mask_899>"], ids["<mask_1>"]) == (50299, 50300, 50301, 51199)


def test_a_released_tokenizer_is_repaired(tokenizer):
    released = train_codegen2_tokenizer(["def f():\n"], vocab_size=320, num_masks=9)
    released.pad_token, released.model_max_length = None, 1024
    prepared = prepare_codegen2_tokenizer(released)
    assert prepared.pad_token == "<|endoftext|>" and prepared.model_max_length == 2048
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="lacks `<mask_1>`"):
        prepare_codegen2_tokenizer(plain)
    with pytest.raises(ValueError, match="leaves 247 tokens beside the 53"):
        train_codegen2_tokenizer(["a"], vocab_size=300, num_masks=9)


@pytest.mark.skipif("CODEGEN2_REFERENCE" not in os.environ, reason="CODEGEN2_REFERENCE names no released tokenizer")
def test_the_released_tokenizer():
    tokenizer = prepare_codegen2_tokenizer(
        AutoTokenizer.from_pretrained(f"{os.environ['CODEGEN2_REFERENCE']}/tokenizer")
    )
    assert tokenizer.convert_tokens_to_ids(codegen2_added_tokens()) == list(range(50257, 51200))
    layout = infill_layout(tokenizer)
    pieces = [encode_source(tokenizer, text) for text in ("def hello_world():\n    ", "    return name")]
    card = [4299, 23748, 62, 6894, 33529, 198, 50284, 51199, 50284, 7783, 1438, 50256, 50299, 51199]
    assert layout.prompt(pieces) == card and layout.stops == (50300, 50256)
    assert tokenizer.decode(card, skip_special_tokens=True) == "def hello_world():\n        return name"
    for text in HOSTILE:
        ids = encode_source(tokenizer, text)
        assert not set(ids) & layout.control_ids and tokenizer.decode(ids) == text


def test_several_samples_are_refused_wherever_they_are_asked_for(model, tokenizer):
    rows = {"prefix": ["a = ", "b = "], "suffix": ["\n", "\n"], "max_new_tokens": 3}
    several = GenerationConfig(num_return_sequences=2, do_sample=True)
    for asked in ({"num_return_sequences": 2}, {"generation_config": several}):
        with pytest.raises(ValueError, match="`num_return_sequences` is 2; `infill` writes one span per hole"):
            infill(model, tokenizer, **rows, **asked)
    model.generation_config.update(num_return_sequences=2, do_sample=True)
    try:
        with pytest.raises(ValueError, match="`num_return_sequences` is 2"):
            infill(model, tokenizer, **rows)
        assert len(infill(model, tokenizer, **rows, num_return_sequences=1)) == 2
    finally:
        model.generation_config.update(num_return_sequences=1, do_sample=False)


def test_a_generation_config_and_stop_strings_are_used(model, tokenizer):
    hole = {"prefix": "def add(a, b):", "suffix": "\n"}
    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=[3])
    given = infill(model, tokenizer, **hole, generation_config=config)
    assert given == infill(model, tokenizer, **hole, max_new_tokens=5, do_sample=False)
    if written := given.spans[0]:
        stopped = infill(model, tokenizer, **hole, max_new_tokens=5, stop_strings=[written[0]])
        assert (
            stopped.spans[0].startswith(written[0]) and len(stopped.spans[0]) <= len(written) and stopped.finished[0]
        )


def test_a_format_object_goes_where_a_name_goes(model, tokenizer):
    hole = {"prefix": "a = ", "suffix": "\n", "max_new_tokens": 3}
    own = InfillFormat(stops=("<eom>", "<|endoftext|>"), mask="<mask_{}>", separator="<sep>")
    assert infill_layout(tokenizer, own) == infill_layout(tokenizer)
    assert infill(model, tokenizer, **hole, infill_format=own) == infill(model, tokenizer, **hole)
