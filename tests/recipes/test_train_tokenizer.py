"""The tokenizer recipe: a tokenizer in the release's layout from Parquet rows, and what it refuses."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from modeling_lpn.code.tokenizer import codegen2_added_tokens
from modeling_lpn.codegen2.infilling_codegen2 import encode_source
from modeling_lpn.runs import run_recipe


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "modeling_lpn"
SIZES = ["--vocab_size", "700", "--num_masks", "9"]


@pytest.fixture
def corpus(tmp_path):
    """Two Parquet files of the package's own code; the second has an empty row and one with control strings."""
    texts = [path.read_text() for path in sorted(PACKAGE.rglob("*_lpn.py"))]
    pq.write_table(pa.table({"text": texts, "code": texts}), tmp_path / "train.parquet", row_group_size=2)
    held_out = [*(path.read_text() for path in sorted(PACKAGE.rglob("t*.py"))), "", "a  \t\t b <mask_1>é\r\n<eom>x\n"]
    pq.write_table(pa.table({"text": held_out}), tmp_path / "validation.parquet")
    return tmp_path


@pytest.fixture
def recipe():
    return runpy.run_path(str(ROOT / "recipes" / "train_tokenizer.py"))


def train(recipe, corpus, *more):
    output = corpus / "tokenizer"
    arguments = ["--files", corpus / "train.parquet", *SIZES, "--output_dir", output, *more]
    recipe["main"]([str(argument) for argument in arguments])
    return AutoTokenizer.from_pretrained(output)


def test_the_command_trains_a_tokenizer_in_the_layout_of_the_release(corpus):
    command = [sys.executable, "recipes/train_tokenizer.py", "--files", str(corpus / "train.parquet"), *SIZES]
    command += ["--validation_files", str(corpus / "validation.parquet"), "--model_max_length", "128"]
    command += ["--output_dir", str(corpus / "tokenizer")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")

    # bytes and merges, the end of text, then what the release adds, in its order
    added = codegen2_added_tokens(9)
    assert len(tokenizer) == 700 and tokenizer.convert_ids_to_tokens(range(700 - len(added), 700)) == added
    assert tokenizer.convert_ids_to_tokens([699, 698, 690, 689]) == ["<mask_1>", "<mask_2>", "<eom>", "<sep>"]
    assert tokenizer.eos_token_id == 699 - len(added) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (128, "left")

    measured = json.loads(result.stdout.split("were; ")[1].splitlines()[0])
    texts = [text for text in pq.read_table(corpus / "validation.parquet")["text"].to_pylist() if text]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(encode_source(tokenizer, text)) == text
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False, verbose=False)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert measured == {
        **{"vocab_size": 700, "num_masks": 9, "measured_on": "validation"},
        **{"bytes": size, "tokens": tokens, "bytes_per_token": round(size / tokens, 3)},
    }
    assert f"{len(texts)} texts decoded as they were" in result.stdout and measured["bytes_per_token"] > 2


def test_no_merge_is_lost_to_runs_of_spaces(recipe, corpus):
    tokenizer = train(recipe, corpus, "--text_column", "code")
    learned = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    spaces = tokenizer.convert_ids_to_tokens(tokenizer.encode("\n        x", add_special_tokens=False))
    assert spaces == ["Ċ", " " * 8, "x"]  # an added token, so a learned one would never be used
    assert not [token for token in learned if "ĠĠ" in token]


def test_a_small_corpus_and_an_earlier_tokenizer(recipe, corpus, capsys):
    pq.write_table(pa.table({"text": ["x = 1\n"]}), corpus / "train.parquet")
    tokenizer = train(recipe, corpus)
    said = capsys.readouterr().out
    assert f"too small for 700 tokens: there are {len(tokenizer)}" in said and '"measured_on": "training"' in said
    before = (corpus / "tokenizer" / "tokenizer.json").read_bytes()
    with pytest.raises(SystemExit):
        train(recipe, corpus)
    assert "has tokenizer.json already; give another, or --overwrite" in capsys.readouterr().err
    pq.write_table(pa.table({"text": ["y = 2\n" * 9]}), corpus / "train.parquet")
    train(recipe, corpus, "--overwrite")
    assert (corpus / "tokenizer" / "tokenizer.json").read_bytes() != before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--files", "{tmp}/none.parquet"], "none.parquet does not exist; give a Parquet file"),
        (["--files", "{tmp}/bad.parquet"], "bad.parquet is not a Parquet file"),
        (["--validation_files", "{tmp}/bad.parquet"], "bad.parquet is not a Parquet file"),
        (["--text_column", "content"], "no column content; set --text_column to one of text, code"),
        (["--files", "{tmp}/empty.parquet"], "has no texts in column text; give files with rows"),
        (["--vocab_size", "300"], "`vocab_size` 300 leaves 247 tokens beside the 53 added ones"),
        (["--num_masks", "0"], "--num_masks is 0; give at least 1"),
    ],
)
def test_what_is_refused(recipe, corpus, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py"])
    (corpus / "bad.parquet").write_text("text")
    pq.write_table(pa.table({"text": ["", None]}), corpus / "empty.parquet")
    with pytest.raises(SystemExit) as error:
        run_recipe(lambda: train(recipe, corpus, *(argument.format(tmp=corpus) for argument in arguments)))
    assert error.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not (corpus / "tokenizer").exists()
