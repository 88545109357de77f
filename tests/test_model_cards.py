"""The checkpoints in model_cards/: each is its repository on the Hub, whole, up to date and below 8 MB."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor

import modeling_lpn
from modeling_lpn import PatternTask, TaskStream, evaluate_tasks
from modeling_lpn.cards import render_card
from modeling_lpn.hub import PUBLISHED, check_files
from modeling_lpn.tasks.fill import Calibration, answer_task
from modeling_lpn.tasks.stream import tasks_from_stream
from modeling_lpn.tasks.string_sources import make_row


ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))
CODE = {path.name: path for path in Path(modeling_lpn.__file__).parent.glob("*/*_*.py")}
LARGEST = {"lpn-strings": 16}  # MB; 8 for the others


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


def test_a_folder_is_whole_and_small(folder):
    sizes = check_files(folder, PUBLISHED)
    assert {"README.md", "model.safetensors", "run.json"} <= set(sizes)
    assert sum(sizes.values()) < LARGEST.get(folder.name, 8) * 10**6
    assert any(name.startswith("results/") for name in sizes)
    assert f"{folder.name}" in (folder / "README.md").read_text().split("---")[2]


def test_its_code_is_that_of_the_package(folder):
    """After a change: `python recipes/publish.py model_cards/<name> <user>/<name> --output_dir model_cards/<name>`."""
    copies = list(folder.glob("*.py"))
    assert copies
    for copy in copies:
        assert copy.read_text() == CODE[copy.name].read_text(), copy.name


def test_its_card_is_what_its_files_say(folder):
    """After a change: the command above."""
    assert (folder / "README.md").read_text() == render_card(folder, f"modeling-lpn/{folder.name}")


def test_the_snippets_of_its_card_run_from_the_folder(folder, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    script, names = re.subn('^name = "modeling-lpn/.*$', f"name = {str(folder)!r}", "\n".join(snippets), flags=re.M)
    assert names == 1 and "modeling-lpn" not in script
    exec(compile(script, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= len(snippets)


def test_the_card_tells_what_the_results_say(folder):
    card = (folder / "README.md").read_text()
    for path in (folder / "results").glob("*.json"):
        assert f"results/{path.name}" in card
        assert json.loads(path.read_text())["git_commit"] in card


def test_patterns_are_solved_by_the_saved_search():
    folder = ROOT / "model_cards" / "lpn-pattern-4x4"
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    tasks = tasks_from_stream(TaskStream(PatternTask(3, 4, 4, 3), 40, seed=77), 40)
    with torch.no_grad():
        (result,) = evaluate_tasks(model, processor, tasks, batch_size=40).results
    assert result.budget == model.config.search["num_steps"]
    assert result.scores["top_1_strict_task_accuracy"] == 1.0


def test_strings_are_filled_in_and_doubted():
    """A model of little training: these cells it gets, and an answer that it cannot know is never sure."""
    folder = ROOT / "model_cards" / "lpn-strings"
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    calibration = Calibration.load(str(folder))
    dates = {"2024-03-17": "2024", "1999-12-01": "1999", "2011-07-30": "2011"}
    names = {"Ada Lovelace": "Lovelace", "Alan Turing": "Turing", "Grace Hopper": "Hopper"}
    asked = [(dates, {"2020-02-29": "2020", "1987-10-05": "1987", "2003-01-11": "2003"})]
    asked += [(names, {"Katherine Johnson": "Johnson", "Edsger Dijkstra": "Dijkstra", "Barbara Liskov": "Liskov"})]
    right = []
    for known, wanted in asked:
        task = make_row("t", [*known.items(), *wanted.items()], num_examples=3)
        answers, _ = answer_task(model, processor, task, calibration=calibration)
        right += [row[0].text == text for row, text in zip(answers, wanted.values(), strict=True)]
    assert sum(right) >= 5
    senseless = make_row("t", [("ab", "x7"), ("cd", "&q"), ("ef", "?")])
    ((answer, *_),), _ = answer_task(model, processor, senseless, calibration=calibration)
    assert answer.probability < 0.5
