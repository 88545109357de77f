"""The code model of `model_cards/`: it loads offline with and without the package, and fills in what belongs there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from modeling_lpn import CodeGen2ForCausalLM, infill, infill_layout


ROOT = Path(__file__).parent.parent
NAME = "codegen2-python-1m"
FOLDER = ROOT / "model_cards" / NAME
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="model_cards is in a checkout, not in the wheel")

# The five lines of the README, where the package is not installed and nothing can be downloaded.
FIVE_LINES = f"""
import sys
sys.modules["modeling_lpn"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(FOLDER)!r}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({str(FOLDER)!r}, trust_remote_code=True)
result = model.infill(tokenizer, sys.argv[1], sys.argv[2], max_new_tokens=16)
print(repr((result.text, result.finished)))
"""
# Everyday lines with one sensible word in the hole, with the space before it: the tokens of words begin with theirs.
HOLES = [
    ("for index in", " range", "(10):\n    print(index)\n"),
    ("import", " os", "\n\npath = os.path.join(folder, name)\n"),
    ("def check(value):\n    if value is", " None", ":\n        return False\n    return True\n"),
    ("class Point:\n    def move(", "self", ", x, y):\n        self.x += x\n"),
    ("    if", " not", " isinstance(value, int):\n        raise TypeError\n"),
    ("if x is", " not", " None:\n    return x\n"),
    ("from typing", " import", " Any, Optional\n\n\ndef f(x: Any):\n"),
    ("assert", " isinstance", "(value, str)\n"),
]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_it_is_the_class_of_the_package(model, tokenizer):
    assert type(model) is CodeGen2ForCausalLM and len(tokenizer) == model.config.vocab_size
    assert infill_layout(tokenizer).end_of_span == model.config.eom_token_id
    assert 1_000_000 <= model.num_parameters() <= 1_900_000


def test_it_fills_everyday_holes(model, tokenizer):
    prefixes, spans, suffixes = (list(column) for column in zip(*HOLES, strict=True))
    results = infill(model, tokenizer, prefixes, suffixes, max_new_tokens=16)
    assert all(result.finished == (True,) for result in results)
    right = [result.spans[0] == span for result, span in zip(results, spans, strict=True)]
    # `import path` and `if is isinstance` are among the others: it knows words better than what makes sense.
    assert sum(right) >= 5, [result.spans[0] for result in results]


def test_the_default_length_of_a_span_leaves_room_for_a_source(model, tokenizer):
    result = infill(model, tokenizer, *HOLES[0][::2])
    assert result.finished == (True,) and not result.truncated


def test_several_holes_and_a_long_file(model, tokenizer):
    pieces = ["for index in", "(10):\n    print(", ")\n"]
    result = infill(model, tokenizer, pieces=pieces, max_new_tokens=16)
    assert len(result.spans) == 2 and all(result.finished)
    long = infill(model, tokenizer, "x = 1\n" * 2000 + HOLES[0][0], HOLES[0][2] + "y = 2\n" * 2000, max_new_tokens=16)
    assert long.truncated and long.text.startswith("x = 1\n") and long.text.endswith("y = 2\n")


def test_five_lines_without_the_package_give_what_the_package_gives(model, tokenizer, tmp_path):
    prefix, _, suffix = HOLES[0]
    result = subprocess.run(
        [sys.executable, "-c", FIVE_LINES, prefix, suffix],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "home"),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert result.returncode == 0, result.stderr
    expected = infill(model, tokenizer, prefix, suffix, max_new_tokens=16)
    assert result.stdout.strip() == repr((expected.text, expected.finished))


def test_the_pipeline_fills_a_hole(model, tokenizer):
    fill = pipeline("code-infilling", model=str(FOLDER), device="cpu", trust_remote_code=True)
    prefix, _, suffix = HOLES[0]
    assert fill({"prefix": prefix, "suffix": suffix}, max_new_tokens=16) == {
        name: getattr(infill(model, tokenizer, prefix, suffix, max_new_tokens=16), name)
        for name in ("text", "spans", "finished", "truncated")
    }


def test_the_results_were_measured_on_this_model(model):
    """The numbers that the card and the documentation name come from this file."""
    record = json.loads((FOLDER / "results" / "all_that_fits.json").read_text())
    assert record["num_parameters"] == model.num_parameters()
    scores = {name: result["scores"] for name, result in record["results"].items()}
    assert scores["infill:tokens"]["eom_rate"] > 0.9
    assert 0 < scores["infill:tokens"]["exact_match"] < 1 and scores["loss"]["bits_per_byte"] < 3
