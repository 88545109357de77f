"""The console script: its commands on small models, and one line for every mistake."""

import configparser
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases_codegen2 import tiny_tokenizer, tokenizer_config, write_release
from safetensors.torch import load_file, save_file

from modeling_lpn import CodeGen2ForCausalLM, LPNConfig, LPNModel, LPNProcessor, StringProcessor
from modeling_lpn.cli import main
from modeling_lpn.pipelines import load_pipeline, model_task
from modeling_lpn.tasks.fill import Calibration


ROOT = Path(__file__).parent.parent
TASK = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
    "test": [{"input": [[3, 0]], "output": [[0, 3]]}, {"input": [[4, 0]]}],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of each family, and a task."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    LPNModel(LPNConfig(max_rows=4, max_cols=4, latent_dim=4, search={"num_steps": 3})).save_pretrained(folder / "lpn")
    LPNProcessor(max_rows=4, max_cols=4).save_pretrained(folder / "lpn")
    strings = LPNConfig(vocab_size=96, max_rows=1, max_cols=16, latent_dim=4, copy_inputs=True)
    LPNModel(strings).save_pretrained(folder / "strings")
    StringProcessor(16).save_pretrained(folder / "strings")
    (folder / "people.csv").write_text("name,short\nAda L,AL\nAlan T,AT\nGrace H,\n")
    tokenizer = tiny_tokenizer()
    CodeGen2ForCausalLM(tokenizer_config(tokenizer)).save_pretrained(folder / "code")
    tokenizer.save_pretrained(folder / "code")
    (folder / "task.json").write_text(json.dumps(TASK))
    return folder


@pytest.fixture
def command(monkeypatch, folders, capfd):
    """Runs the console script in the folder of the models; returns status, output and errors."""
    monkeypatch.chdir(folders)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["modeling-lpn", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        return status, *capfd.readouterr()

    return run


def test_solve(command, folders):
    status, text, errors = command("solve", "task.json", "--model", "lpn", "--budget", 2)
    assert status == 0 and errors == ""
    assert text.startswith("task task: 3 decoder evaluations\ntest input 0, attempt 1 (score -")
    assert text.count("attempt") == 4 and (", right)" in text or ", wrong)" in text)
    _, text, _ = command("solve", "task.json", "--model", "lpn", "--json")
    grids = load_pipeline(folders / "lpn")(folders / "task.json")["grids"]
    wanted = [{"attempt_1": first, "attempt_2": second} for first, second in grids]
    assert json.loads(text) == {"task": wanted}


def test_fill(command, folders):
    before = (folders / "people.csv").read_text()
    arguments = ("fill", "people.csv", "--output-column", "short", "--model", "strings", "--budget", 2)
    status, text, errors = command(*arguments, "--explain")
    assert status == 0, errors
    assert (
        "1 cells filled, not sure of 1\nthe model has no calibration.json" in errors and "3 programs tried" in errors
    )
    lines = text.splitlines()
    assert lines[:3] == ["name,short,short (filled)", "Ada L,AL,", "Alan T,AT,"] and lines[3].startswith("Grace H,")
    Calibration([0.0, 0.0], 5.0).save(folders / "strings")
    status, _, errors = command(*arguments, "--output", "filled.csv")
    assert status == 0 and "not sure of 0" in errors
    assert (folders / "filled.csv").read_text().endswith(",sure 0.99\n") and (
        folders / "people.csv"
    ).read_text() == before
    for more, message in (
        (["--output", "people.csv"], "people.csv is there already; give another --output, or --overwrite"),
        (["--input-columns", "nam"], "people.csv has no column 'nam'"),
        (["--model", "lpn"], "'lpn' is a model of grids; give one of strings"),
        (["--threshold", "90"], "`threshold` is 90.0"),
    ):
        status, _, errors = command(*arguments, *more)
        assert status == 2 and message in errors and errors.count("\n") == 1
    assert load_pipeline("strings")({"train": [{"input": "a", "output": "b"}], "test": [{"input": "c"}]})["grids"]


def test_infill(command, folders, monkeypatch):
    (folders / "holes.py").write_bytes(b"def add(a, <FILL_ME>):\r\n    return <FILL_ME>\r\n")
    status, text, errors = command("infill", "holes.py", "--model", "code", "--max_new_tokens", 4)
    pieces = ["def add(a, ", "):\r\n    return ", "\r\n"]
    result = load_pipeline(folders / "code")({"pieces": pieces}, max_new_tokens=4)
    assert status == 0 and text.replace("\r", "") == result["text"].replace("\r", "")
    assert errors.count("was cut off after 4 tokens") == result["finished"].count(False)
    monkeypatch.setattr("sys.stdin", open(folders / "holes.py"))  # noqa: SIM115
    assert command("infill", "-", "--model", "code", "--hole", "a, <FILL_ME>", "--max_new_tokens", 1)[0] == 0


def test_publish_shows_what_it_would_do(command, monkeypatch):
    monkeypatch.setattr("modeling_lpn.hub.verify", lambda folder: None)  # two processes, tested with the recipe
    status, text, _ = command("publish", "lpn", "me/small", "--dry_run", "--license", "mit")
    assert status == 0 and "  model.safetensors\n" in text and "license: mit" in text
    assert text.endswith("nothing was uploaded\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("publish lpn me/small --public", "a public model says what others may do with it; give --license"),
        ("publish lpn not//valid --dry_run", "not//valid"),
        ("publish missing me/small --dry_run", "missing"),
        ("demo", "the demo has no model"),
        ("demo task.json", "'task.json' has no config.json with a `model_type`"),
        ("", "the following arguments are required: command"),
        ("solv", "invalid choice: 'solv'"),
        ("solve task.json", "the following arguments are required: --model"),
        ("solve task.json --model lpn --budge 3", "unrecognized arguments: --budge 3"),
        ("solve missing.json --model lpn", "'missing.json' is neither a known source nor a file"),
        ("solve task.json --model lpn --budget -1", "`num_steps` is -1; use 0 or more"),
        ("solve task.json --model no/such/folder", "there is no folder 'no/such/folder'"),
        ("solve task.json --model code", "'code' holds a codegen2 model, which is for code-infilling; give"),
        ("infill task.json --model code", "has no hole; write <FILL_ME>"),
        ("infill missing.py --model code", "No such file or directory: 'missing.py'"),
        ("infill code/model.safetensors --model code", "is no UTF-8 text"),
        ("infill task.json --hole train --model lpn", "'lpn' holds a lpn model"),
        ("infill task.json --hole train --model code --max_new_tokens 0", "--max_new_tokens is 0"),
        ("infill task.json --hole= --model code", "has no hole"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(command, arguments, message):
    status, text, errors = command(*arguments.split())
    assert status == 2 and text == "" and errors.count("\n") == 1 and message in errors


def test_help_shows_an_example(command):
    for name in ("solve", "infill", "publish", "demo"):
        status, text, _ = command(name, "--help")
        assert status == 0 and f"example:\n  modeling-lpn {name} " in text


def test_the_entry_point_is_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, place = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    module, function = place.split(":")
    assert name == "modeling-lpn" and getattr(importlib.import_module(module), function) is main


@pytest.mark.slow
def test_the_command_of_the_wheel_runs_without_the_clone(folders, tmp_path):
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "tests", "results", "outputs")
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheel", source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    shutil.rmtree(source)
    (folders / "hole.py").write_text("def add(a, b):\n    return <FILL_ME>\n")

    def installed(*arguments):
        """Of the wheel alone: status is 0, and this is printed."""
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
        command = [tmp_path / "site/bin/modeling-lpn", *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    solve = ("solve", folders / "task.json", "--model", folders / "lpn", "--budget", "1")
    assert installed(*solve).startswith("task task: 2 decoder evaluations")
    assert installed("infill", folders / "hole.py", "--model", folders / "code", "--max_new_tokens", "4").startswith(
        "def add(a, b):\n"
    )
    fill = (
        "fill",
        folders / "people.csv",
        "--output-column",
        "short",
        "--model",
        folders / "strings",
        "--budget",
        "1",
    )
    assert installed(*fill).startswith("name,short,short (filled)\n")
    publish = installed("publish", folders / "lpn", "me/small", "--dry_run")  # templates of cards, reload.py
    assert "  model.safetensors\n" in publish and publish.endswith("nothing was uploaded\n")
    for file in ("editor.js", "map.js", "style.css"):
        assert (tmp_path / "site" / "modeling_lpn" / "demo" / file).is_file()


def test_models_that_cannot_be_used(folders, tmp_path):
    tokenizer = tiny_tokenizer()
    write_release(CodeGen2ForCausalLM(tokenizer_config(tokenizer)), tmp_path / "released")
    tokenizer.save_pretrained(tmp_path / "released")
    assert model_task(tmp_path / "released") == "code-infilling"
    assert load_pipeline(tmp_path / "released")({"prefix": "a", "suffix": "b"}, max_new_tokens=1)["text"]
    broken = shutil.copytree(folders / "lpn", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="'.*broken' cannot be loaded: 1 weights are missing"):
        load_pipeline(broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="'.*broken' cannot be loaded"):
        load_pipeline(broken)
    for config, message in (
        ("{", "holds no model that can be read"),
        ("{}", "has no config.json with a `model_type`"),
        ('{"model_type": "bert"}', "holds a model of type 'bert'; known: lpn, codegen2, codegen"),
    ):
        (broken / "config.json").write_text(config)
        with pytest.raises(ValueError, match=message):
            load_pipeline(broken)


def test_code_of_a_repository_is_not_run(folders, tmp_path):
    evil = shutil.copytree(folders / "lpn", tmp_path / "evil")
    assert '"auto_map"' in (evil / "config.json").read_text()
    for file in evil.glob("*.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert load_pipeline(evil)(TASK, budget=0)["num_evaluations"] == 1
    assert not (tmp_path / "ran").exists()
