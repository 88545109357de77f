"""What the tests of the dataset scripts share."""

import importlib

import pytest
from cases_datasets import ROOT


@pytest.fixture
def script(monkeypatch):
    """Imports a script as Python would run it, with its folder first on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "datasets_scripts"))
    return importlib.import_module
