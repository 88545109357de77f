"""The infilling formats of all families: the prompts of their documentation, undoing, recognition, new tokens."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    CodeLlamaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from modeling_lpn import infill, infill_layout
from modeling_lpn.code.benchmarks import CodeTask
from modeling_lpn.code.corpora import tokenize_corpus
from modeling_lpn.code.evaluation import InfillCase, evaluate_infilling
from modeling_lpn.code.infill_formats import InfillFormat, add_infill_tokens
from modeling_lpn.code.objectives import OBJECTIVES, PRESETS, Infill
from modeling_lpn.code.sampling import SamplingConfig, sample_completions
from modeling_lpn.codegen2.infilling_codegen2 import (
    INFILL_FORMATS,
    MaskLayout,
    MiddleLayout,
    encode_source,
    find_format,
    recognise_format,
)


FORMATS = {name: INFILL_FORMATS[name] for name in INFILL_FORMATS}
SECTION = "\n    print('Hello world!')"
QUICKSORT = (
    "def quicksort(arr):\n    if len(arr) <= 1:\n        return arr\n    pivot = arr[len(arr) // 2]\n    ",
    "\n    middle = [x for x in arr if x == pivot]\n    right = [x for x in arr if x > pivot]\n"
    "    return quicksort(left) + middle + quicksort(right)",
)
QUICK_SORT = (
    "def quick_sort(arr):\n    if len(arr) <= 1:\n        return arr\n    pivot = arr[0]\n    left = []\n    right = []\n",
    "\n        if arr[i] < pivot:\n            left.append(arr[i])\n        else:\n            right.append(arr[i])\n"
    "    return quick_sort(left) + [pivot] + quick_sort(right)",
)
SUM = ("def calculate_sum(a, b):\n", "\n\n# Test the function\nresult = calculate_sum(5, 10)\nprint(result)")
# By family: prefix, suffix, the prompt as the source prints it, and the source.
DOCUMENTED = {
    "codegen2": (
        "def hello_world():\n    ",
        "    return name",
        "def hello_world():\n    <mask_1>    return name<|endoftext|><sep><mask_1>",
        "https://huggingface.co/Salesforce/codegen2-1B_P, model card, infill sampling",
    ),
    "codegen2.5": (
        "def hello_world():\n    ",
        "    return name",
        "def hello_world():\n    <mask_1>    return name<|endoftext|><sep><mask_1>",
        "https://huggingface.co/Salesforce/codegen25-7b-multi_P, model card, infill sampling",
    ),
    "incoder": (
        "def f():\n    ",
        "\n    return 1",
        "<|endoftext|>def f():\n    <|mask:0|>\n    return 1<|mask:1|><|mask:0|>",
        "https://github.com/dpfried/incoder, infill() with extra_sentinel; arXiv 2204.05999, section 2.2",
    ),
    "santacoder": (
        "def print_hello_world():\n    ",
        SECTION,
        f"<fim-prefix>def print_hello_world():\n    <fim-suffix>{SECTION}<fim-middle>",
        "https://huggingface.co/bigcode/santacoder, model card, fill-in-the-middle",
    ),
    "starcoder": (
        "def print_hello_world():\n    ",
        SECTION,
        f"<fim_prefix>def print_hello_world():\n    <fim_suffix>{SECTION}<fim_middle>",
        "https://huggingface.co/bigcode/starcoder, model card, fill-in-the-middle",
    ),
    "starcoder-spm": ("P", "S", "<fim_prefix><fim_suffix>S<fim_middle>P", "arXiv 2207.14255, section 4.3, joint SPM"),
    "starcoder2": (
        "code1_pre",
        "code1_suf",
        "<fim_prefix>code1_pre<fim_suffix>code1_suf<fim_middle>",
        "arXiv 2402.19173, section 5.1",
    ),
    "granite-code": (
        "def fib(n):",
        "    else:\n        return fib(n - 2) + fib(n - 1)",
        "<fim_prefix>def fib(n):<fim_suffix>    else:\n        return fib(n - 2) + fib(n - 1)<fim_middle>",
        "arXiv 2405.04324, section 3: the tokens of StarCoder's tokenizer, PSM and SPM",
    ),
    "granite-3.3": (
        "def fib(n):",
        "    else:\n        return 1",
        "<fim_prefix>def fib(n):<fim_suffix>    else:\n        return 1<fim_middle>",
        "special tokens of the Granite 3.3 tokenizer, as listed in granite-io; model card, fill-in-the-middle",
    ),
    "granite-4": (
        "def fib(n):",
        "    else:\n        return 1",
        "<|fim_prefix|>def fib(n):<|fim_suffix|>    else:\n        return 1<|fim_middle|>",
        "special tokens of the Granite 4.0 tokenizer; model card, fill-in-the-middle",
    ),
    "qwen2.5-coder": (
        *QUICKSORT,
        f"<|fim_prefix|>{QUICKSORT[0]}<|fim_suffix|>{QUICKSORT[1]}<|fim_middle|>",
        "https://github.com/QwenLM/Qwen2.5-Coder, README, fill in the middle",
    ),
    "qwen3-coder": (
        *QUICKSORT,
        f"<|fim_prefix|>{QUICKSORT[0]}<|fim_suffix|>{QUICKSORT[1]}<|fim_middle|>",
        "https://github.com/QwenLM/Qwen3-Coder, README, fill in the middle",
    ),
    "deepseek-coder": (
        *QUICK_SORT,
        f"<｜begin▁of▁sentence｜><｜fim▁begin｜>{QUICK_SORT[0]}<｜fim▁hole｜>{QUICK_SORT[1]}<｜fim▁end｜>",
        "https://github.com/deepseek-ai/DeepSeek-Coder, README, code insertion; its tokenizer adds the first token",
    ),
    "deepseek-coder-v2": (
        *QUICK_SORT,
        f"<｜begin▁of▁sentence｜><｜fim▁begin｜>{QUICK_SORT[0]}<｜fim▁hole｜>{QUICK_SORT[1]}<｜fim▁end｜>",
        "https://github.com/deepseek-ai/DeepSeek-Coder-V2, README, code insertion; its tokenizer adds the first token",
    ),
    "codegemma": (
        "import ",
        "\nif __name__ == '__main__':\n    sys.exit(0)",
        "<bos><|fim_prefix|>import <|fim_suffix|>\nif __name__ == '__main__':\n    sys.exit(0)<|fim_middle|>",
        "https://ai.google.dev/gemma/docs/codegemma/prompt-structure; its tokenizer adds the first token",
    ),
    "seed-coder": (
        "PREFIX",
        "SUFFIX",
        "<[begin▁of▁sentence]><[fim-suffix]>SUFFIX<[fim-prefix]>PREFIX<[fim-middle]>",
        "arXiv 2506.03524, section on FIM training; its tokenizer adds the first token",
    ),
    "mellum": (
        *SUM,
        f"<fim_suffix>{SUM[1]}<fim_prefix>{SUM[0]}<fim_middle>",
        "https://huggingface.co/JetBrains/Mellum-4b-base, model card, fill in the middle",
    ),
}
# SentencePiece families, whose tokenizers put a space before a text: the tokens that their reference code gives.
DOCUMENTED_TOKENS = {
    "codellama": (
        ("a=", "+b"),
        ["<s>", "▁<PRE>", "▁a", "=", "▁<SUF>", "+", "b", "▁<MID>"],
        "https://github.com/meta-llama/codellama, infilling_prompt_tokens; arXiv 2308.12950, section 2.3",
    ),
    "codellama-spm": (
        ("a=", "+b"),
        ["<s>", "▁<PRE>", "▁<SUF>", "+", "b", "▁<MID>", "▁a", "="],
        "https://github.com/meta-llama/codellama, infilling_prompt_tokens with suffix_first",
    ),
    "codestral": (
        ("a=", "+b"),
        ["<s>", "[SUFFIX]", "+", "b", "[PREFIX]", "▁a", "="],
        "https://github.com/mistralai/mistral-common, tests of encode_fim: <s>[SUFFIX]return▁a▁+▁b[PREFIX]▁def▁f(",
    ),
}


def tokenizer_of(names, special=()):
    """A byte-level tokenizer of a family's tokens, with those in `special` flagged as such."""
    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(alphabet, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)
    masks = [] if names.mask is None else [names.mask.format(names.first_mask + number) for number in range(60)]
    repository = [names.repository.file, names.repository.name] if names.repository else []
    tokens = dict.fromkeys(filter(None, (*names.sentinels, *names.stops, *names.marks, *masks, *repository, *special)))
    tokenizer.add_tokens([AddedToken(token, special=token in special, normalized=False) for token in tokens])
    return tokenizer


def sentencepiece_tokenizer(names):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab=+", "▁a", "▁b"]
    tokens += [
        token for token in (names.prefix, names.suffix, names.middle, *names.stops) if token not in (None, "</s>")
    ]
    vocab = {token: place for place, token in enumerate(tokens)}
    tokenizer = CodeLlamaTokenizer(vocab=vocab, merges=[("▁", "a"), ("▁", "b")])
    tokenizer.add_tokens([names.prefix, names.suffix], special_tokens=True)
    return tokenizer


def test_every_family_has_its_documented_prompt():
    assert set(DOCUMENTED) | set(DOCUMENTED_TOKENS) == set(FORMATS)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_prompt_of_the_documentation(name):
    prefix, suffix, prompt, source = DOCUMENTED[name]
    assert source
    tokenizer = tokenizer_of(FORMATS[name])
    layout = infill_layout(tokenizer, name)
    ids = layout.prompt([encode_source(tokenizer, prefix), encode_source(tokenizer, suffix)])
    assert tokenizer.decode(ids) == prompt
    assert ids == tokenizer.encode(prompt, add_special_tokens=False)


@pytest.mark.parametrize("name", DOCUMENTED_TOKENS)
def test_the_prompt_of_sentencepiece_families(name):
    texts, tokens, source = DOCUMENTED_TOKENS[name]
    assert source
    tokenizer = sentencepiece_tokenizer(FORMATS[name])
    layout = infill_layout(tokenizer, name)
    pieces = [encode_source(tokenizer, text, True, first=place == 0) for place, text in enumerate(texts)]
    assert tokenizer.convert_ids_to_tokens(layout.prompt(pieces)) == tokens


REPOSITORY = {
    "qwen2.5-coder": "<|repo_name|>me/repo\n<|file_sep|>utils.py\nX = 1\n<|file_sep|>main.py\n"
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",  # README, repository level; arXiv 2409.12186, figure 4
    "starcoder2": "<repo_name>me/repo<file_sep>utils.py\nX = 1<file_sep><fim_prefix>main.py\na<fim_suffix>b<fim_middle>",
    "mellum": "<filename>utils.py\nX = 1<filename>main.py\n<fim_suffix>b<fim_prefix>a<fim_middle>",  # model card
}


class Answering(torch.nn.Module):
    """A model that answers with given ids and remembers its prompts."""

    def __init__(self, answer, context=4096):
        super().__init__()
        self.embedding, self.answer, self.prompts = torch.nn.Embedding(1000, 1), answer, []
        self.config = LlamaConfig(max_position_embeddings=context)
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.embedding

    def generate(self, input_ids, attention_mask, **kwargs):
        self.prompts += [row[mask == 1].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        self.arguments = kwargs
        return torch.cat([input_ids, torch.tensor([self.answer] * len(input_ids))], 1)


@pytest.mark.parametrize("name", REPOSITORY)
def test_other_files_of_the_repository(name):
    tokenizer = tokenizer_of(FORMATS[name])
    model = Answering(tokenizer.encode(FORMATS[name].stops[0]))
    repo_name = None if name == "mellum" else "me/repo"
    settings = {"max_new_tokens": 4, "infill_format": name, "path": "main.py", "repo_name": repo_name}
    result = infill(model, tokenizer, "a", "b", files={"utils.py": "X = 1"}, **settings)
    assert tokenizer.decode(model.prompts[0]) == REPOSITORY[name] and not result.truncated
    # A file that names a control token is data, and too many files are left out from the front.
    many = {f"f{number}.py": f"<|file_sep|><filename>{number}" for number in range(40)}
    small = Answering(model.answer, context=300)
    result = infill(small, tokenizer, "a", "b", files=many, **settings)
    text = tokenizer.decode(small.prompts[0])
    assert result.truncated and "f39.py" in text and "f0.py" not in text and len(small.prompts[0]) <= 152
    file = tokenizer.get_vocab()[FORMATS[name].repository.file]
    assert small.prompts[0].count(file) == text.count(".py\n")


def test_what_other_files_are_refused_for():
    tokenizer = tokenizer_of(FORMATS["starcoder"])
    model = Answering(tokenizer.encode("<|endoftext|>"))
    with pytest.raises(ValueError, match="the format has no tokens for files of a repository; leave `files`"):
        infill(model, tokenizer, "a", "b", infill_format="starcoder", path="a.py")
    tokenizer = tokenizer_of(FORMATS["mellum"])
    with pytest.raises(ValueError, match="`path` is not given; say what the file with the hole is called"):
        infill(model, tokenizer, "a", "b", infill_format="mellum", files={"b.py": "1"})
    with pytest.raises(ValueError, match="no token for a repository's name"):
        infill(model, tokenizer, "a", "b", infill_format="mellum", path="a.py", repo_name="me/x")


@pytest.mark.parametrize("name", FORMATS)
def test_a_span_ends_at_every_stop_and_nothing_vanishes(name):
    names = FORMATS[name]
    tokenizer = tokenizer_of(names, special=("<|tool|>",))
    layout, vocab = infill_layout(tokenizer, name), tokenizer.get_vocab()
    for token in {*names.stops, *names.sentinels, "<|tool|>"}:
        model = Answering([*tokenizer.encode("mid"), vocab[token], *tokenizer.encode("chatter")])
        result = infill(model, tokenizer, "a", "b", max_new_tokens=32, infill_format=name)
        assert result.spans == ("mid",) and result.text == "amidb"
        assert result.finished == (token in names.stops,)
        assert vocab[token] in model.arguments["eos_token_id"]  # generation does not run to the limit
    assert layout.stops == tuple(vocab[token] for token in names.stops)


# Undoing

ids = st.lists(st.integers(0, 90), max_size=6)
DIFFERENT = {names: name for name, names in reversed(FORMATS.items())}  # some families share one format
LAYOUTS = {name: infill_layout(tokenizer_of(names), name) for names, name in DIFFERENT.items()}
# One family for each structure.
STRUCTURES = {(names.mask, names.order, names.start is None): name for names, name in DIFFERENT.items()}.values()


@pytest.mark.parametrize("name", LAYOUTS)
@given(before=ids, span=ids, after=ids)
@settings(max_examples=20, deadline=None)
def test_every_layout_is_undone_and_its_prompt_begins_it(name, before, span, after):
    layout = LAYOUTS[name]
    sequence = layout.sequence([before, after], [span])
    assert layout.restore(sequence) == before + span + after
    prompt = layout.prompt([before, after])
    assert sequence[: len(prompt)] == prompt and sequence[len(prompt) :][: len(span)] == span
    assert len(sequence) == len(before + span + after) + layout.overhead(1) + isinstance(layout, MaskLayout)
    assert layout.restore([*prompt, *span]) == before + span + after  # what a model wrote up to its limit
    for suffix_first in getattr(layout, "orders", ()):
        assert layout.restore(layout.sequence([before, after], [span], suffix_first)) == before + span + after


@given(pieces=st.lists(ids, min_size=2, max_size=5), data=st.data())
@settings(max_examples=30, deadline=None)
def test_several_holes_of_incoder(pieces, data):
    layout = LAYOUTS["incoder"]
    spans = [data.draw(ids) for _ in pieces[1:]]
    source = pieces[0] + [token for span, piece in zip(spans, pieces[1:], strict=True) for token in span + piece]
    sequence = layout.sequence(pieces, spans)
    assert layout.restore(sequence) == source and len(sequence) == len(source) + layout.overhead(len(spans)) + 1


@pytest.mark.parametrize("name", STRUCTURES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_is_no_sequence_is_refused_or_gives_all_its_text_in_order(name, data):
    """A sentinel moved, doubled or left out, or another family's order, never gives scrambled source."""
    layout = LAYOUTS[name]
    pieces, span = [[1, 2, 3], [6, 7]], [4, 5]
    sequence = layout.sequence(pieces, [span])
    control = [place for place, token in enumerate(sequence) if token in layout.control_ids]
    place = data.draw(st.sampled_from(control[: layout.overhead(1)]))
    token = sequence.pop(place)
    if data.draw(st.booleans()):
        sequence.insert(data.draw(st.integers(0, len(sequence))), token)
    try:
        restored = layout.restore(sequence)
    except ValueError as error:
        assert "no infilling sequence" in str(error)
        return
    assert sorted(restored) == [1, 2, 3, 4, 5, 6, 7]  # the sentinel stands elsewhere: another hole of a true sequence


def test_another_familys_order_is_refused():
    pieces, spans = [[1, 2], [5]], [[3, 4]]
    orders = {
        order: MiddleLayout(90, 91, None if order == "suffix_prefix" else 92, (99,), order)
        for order in ("psm", "spm", "spm_separate", "suffix_prefix")
    }
    for written, writer in orders.items():
        for read, reader in orders.items():
            sequence = writer.sequence(pieces, spans)
            if {written, read} <= {"psm", "spm"} or written == read:
                assert reader.restore(sequence) == [1, 2, 3, 4, 5]
            elif (written, read) != ("spm_separate", "suffix_prefix"):  # which does not know the middle token
                with pytest.raises(ValueError, match="no infilling sequence"):
                    reader.restore(sequence)


# Objectives over formats


@pytest.mark.parametrize("name", LAYOUTS)
@given(length=st.integers(1, 300), room=st.integers(16, 400), seed=st.integers(0, 2**32))
@settings(max_examples=3, deadline=None)
def test_every_objective_in_every_format_is_undone(name, length, room, seed):
    layout, source = LAYOUTS[name], np.arange(length) % 90
    objectives = [kind() for kind in OBJECTIVES.values()] + [o for preset in PRESETS.values() for _, o in preset]
    for objective in objectives:
        try:
            unit = objective(source, np.random.default_rng(seed), layout, room=room)
        except ValueError as error:
            assert isinstance(layout, MiddleLayout) and "mask tokens" in str(error)
            continue
        plan, found = unit["plan"], unit["input_ids"].tolist()
        restored = layout.restore(found) if plan.starts else found[: len(found) - plan.ends]
        assert restored == source[: plan.taken].tolist() and len(found) == plan.size <= room


def test_shares_of_suffix_first_units_follow_the_format():
    rng, source = np.random.default_rng(0), np.arange(60)
    for name, share in (("starcoder", 0.5), ("seed-coder", 1.0), ("codestral", 1.0)):
        plans = [Infill().plan(source, 100, rng, LAYOUTS[name]) for _ in range(300)]
        assert abs(np.mean([plan.suffix_first for plan in plans]) - share) < 0.1
    with pytest.raises(
        ValueError, match="`suffix_first_rate` is 0.5, but the family knows the order 'spm_separate' only"
    ):
        Infill(suffix_first_rate=0.5).plan(source, 100, rng, LAYOUTS["seed-coder"])


# Recognition


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].by_vocabulary])
def test_a_family_is_recognised_or_refused_with_the_candidates(name):
    tokenizer = tokenizer_of(FORMATS[name])
    if name in ("starcoder", "granite-code"):
        tokenizer.add_tokens(["<filename>"])  # as their vocabulary has, so that it could be Mellum's too
        with pytest.raises(ValueError, match="several families, starcoder, granite-code, mellum, whose"):
            recognise_format(tokenizer)
        return
    assert find_format("auto", tokenizer) == FORMATS[name]
    model = Answering(tokenizer.encode(FORMATS[name].stops[0]))
    assert infill(model, tokenizer, "a", "b", max_new_tokens=4, infill_format="auto").finished == (True,)
    assert infill_layout(tokenizer, "auto") == infill_layout(tokenizer, name)


def test_a_vocabulary_without_infilling_tokens():
    tokenizer = tokenizer_of(InfillFormat(("x",), "x", prefix="y", suffix="z", middle="w"))
    with pytest.raises(
        ValueError, match="has the infilling tokens of no known family .*add some with `add_infill_tokens`"
    ):
        infill_layout(tokenizer, "auto")


def test_codegen25_is_not_taken_for_starcoder():
    tokenizer = tokenizer_of(FORMATS["codegen2.5"], special=("<gh_stars>", "<reponame>", "<filename>"))
    tokenizer.add_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    assert recognise_format(tokenizer) is FORMATS["codegen2"]


# Formats of one's own


def test_a_format_of_ones_own(monkeypatch):
    own = InfillFormat(("<end>",), "<end>", prefix="<p>", suffix="<s>", middle="<m>", order="spm_separate")
    tokenizer = tokenizer_of(own)
    model = Answering(tokenizer.encode("mid<end>"))
    result = infill(model, tokenizer, "a", "b", max_new_tokens=8, infill_format=own)
    assert result.text == "amidb" and tokenizer.decode(model.prompts[0]) == "<s>b<p>a<m>"
    monkeypatch.setitem(INFILL_FORMATS, "own", own)
    assert infill(model, tokenizer, "a", "b", max_new_tokens=8, infill_format="auto") == result


def test_evaluation_sampling_and_corpora_take_formats_too(tmp_path):
    own = InfillFormat(("<end>",), "<end>", prefix="<p>", suffix="<s>", middle="<m>", order="spm")
    tokenizer = tokenizer_of(own)
    tokenizer.eos_token = "<end>"
    model = tiny(LlamaForCausalLM, LlamaConfig, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = None
    cases = [InfillCase("a", "def f(", "x", "):", "line")]
    assert evaluate_infilling(model, tokenizer, cases, own, max_new_tokens=4)[0]["num_cases"] == 1
    tasks, path = [CodeTask("a", "def f(", "", "x", suffix="):")], tmp_path / "samples.jsonl"
    sampling = SamplingConfig(max_new_tokens=4, infill_format=own)
    first = sample_completions(model, tokenizer, tasks, sampling, path)
    assert sample_completions(model, tokenizer, tasks, sampling, path) == first  # the stored settings are the same
    with pytest.raises(ValueError, match="made with infill_format"):
        sample_completions(model, tokenizer, tasks, SamplingConfig(max_new_tokens=4, infill_format="auto"), path)
    pq.write_table(pa.table({"text": ["x = 1\n"]}), tmp_path / "train.parquet")
    assert tokenize_corpus(str(tmp_path / "train.parquet"), tokenizer, infill_format=own)[0].tolist() == (
        tokenizer.encode("x = 1\n")
    )


def test_formats_that_are_none():
    tokens = {"prefix": "<p>", "suffix": "<s>", "middle": "<m>"}
    with pytest.raises(ValueError, match="`stops` is 'abc'; give a tuple"):
        InfillFormat("abc", **tokens)
    with pytest.raises(ValueError, match="`order` is 'pms'; give one of psm"):
        InfillFormat(("e",), **tokens, order="pms")
    with pytest.raises(ValueError, match="the order 'suffix_prefix' has the tokens .*'middle'"):
        InfillFormat(("e",), **tokens, order="suffix_prefix")
    with pytest.raises(ValueError, match="the masks '<m{}>' has the tokens"):
        InfillFormat(("e",), mask="<m{}>", **tokens)
    with pytest.raises(ValueError, match="`mask` is '<mask>'; give a template"):
        InfillFormat(("e",), mask="<mask>")
    with pytest.raises(ValueError, match="no field 'stop'"):
        InfillFormat.from_dict({"stop": ["e"]})


# Tokens for models that have none


def plain_tokenizer():
    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(alphabet, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", clean_up_tokenization_spaces=False)


def tiny(kind, config, **kwargs):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(config(**sizes, num_key_value_heads=2, max_position_embeddings=64, **kwargs)).eval()


@pytest.mark.parametrize("infill_format", ["starcoder", "codegen2", "seed-coder", "codestral", "qwen2.5-coder"])
@pytest.mark.parametrize(
    "kind, config, tied", [(LlamaForCausalLM, LlamaConfig, False), (Qwen2ForCausalLM, Qwen2Config, True)]
)
def test_a_plain_model_is_given_infilling_tokens(tmp_path, infill_format, kind, config, tied):
    tokenizer = plain_tokenizer()
    rows = 264 if tied else len(tokenizer)  # some checkpoints have more rows than tokens
    model = tiny(kind, config, vocab_size=rows, tie_word_embeddings=tied)
    text = torch.tensor([tokenizer.encode("def f(x): return x")])
    before = model(text).logits[..., : len(tokenizer)].detach()
    old = len(tokenizer)
    own = add_infill_tokens(tokenizer, model, infill_format, num_masks=9)
    assert torch.equal(model(text).logits[..., :old], before)  # what it knew is as it was
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        known, new = layer.weight[:old].float(), layer.weight[old : len(tokenizer)].float()
        assert layer.weight.shape[0] >= len(tokenizer) and len(new) >= 2
        assert (new - known.mean(0)).norm(dim=1).max() < known.norm(dim=1).mean()
        assert torch.cdist(new, new).fill_diagonal_(1).min() > 0  # not all the same
    assert own.end_of_text == "</s>"
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert find_format("auto", again) == own
    result = infill(model, again, "def f(", "):", max_new_tokens=4, infill_format="auto")
    assert result.text == "def f(" + result.spans[0] + "):"
    layout = infill_layout(again, "auto")
    assert layout == infill_layout(tokenizer, own) and again.eos_token_id in layout.stops


def test_new_tokens_need_an_end_of_text():
    tokenizer = plain_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no `eos_token`, by which a file would end"):
        add_infill_tokens(tokenizer)
