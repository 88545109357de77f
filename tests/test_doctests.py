"""The examples in the docstrings and in the README run."""

import doctest
import importlib
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PATHS = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / "modeling_lpn").rglob("*.py"))
MODULES = [".".join(path.parts) for path in PATHS if path.name not in ("__init__", "child")]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_module(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=FLAGS)
    assert results.failed == 0


def test_examples_of_the_readme(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text()
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(tmp_path)
    assert ">>>" in text
    parser = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, "README.md", "README.md", 0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(parser)
    assert runner.failures == 0
