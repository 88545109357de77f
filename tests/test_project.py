"""What the texts of the project name exists, and a fact stands in one place."""

import re
from pathlib import Path

import pytest
import yaml

import modeling_lpn


ROOT = Path(__file__).parent.parent
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.md")])
PATH = re.compile(r"`((?:modeling_lpn|recipes|datasets_scripts|tests|docs|results)/[\w./-]*\w)/?`")
MODULE = re.compile(r"(?:from|import) (modeling_lpn[\w.]*)")


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_paths_and_modules_exist(text):
    content = text.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", content) if "://" not in link]
    missing = [link for link in links if not (text.parent / link).exists()]
    missing += [path for path in PATH.findall(content) if not (ROOT / path).exists()]
    for module in MODULE.findall(content):
        place = ROOT / module.replace(".", "/")
        missing += [] if place.is_dir() or place.with_suffix(".py").is_file() else [module]
    assert not missing


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == modeling_lpn.__version__
    assert f"## {modeling_lpn.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_public_names_are_there():
    assert len(modeling_lpn.__all__) == len(set(modeling_lpn.__all__)) <= 35
    assert all(getattr(modeling_lpn, name) is not None for name in modeling_lpn.__all__)


def test_every_folder_is_in_the_wheel():
    from setuptools import find_packages

    folders = {path.parent.name for path in (ROOT / "modeling_lpn").glob("*/__init__.py")}
    assert {f"modeling_lpn.{name}" for name in folders} <= set(find_packages(ROOT, include=["modeling_lpn*"]))
