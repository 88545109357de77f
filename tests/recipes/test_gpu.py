"""The command for an accelerator that is at hand for minutes."""

import json
import subprocess

import pytest
import torch
from cases_recipes import ROOT, call, command, load_recipe
from safetensors.torch import load_file, save_file


gpu = load_recipe("gpu")


@pytest.mark.slow  # a dozen processes, each of which imports torch
def test_the_whole_command_in_small(tmp_path):
    arguments = ["--tiny", "true", "--output_dir", str(tmp_path / "out"), "--home", str(tmp_path / "home")]
    blocked = tmp_path / "blocked" / "sitecustomize.py"  # as on a machine without them
    blocked.parent.mkdir()
    blocked.write_text("import sys\nsys.modules['datasets'] = sys.modules['evaluate'] = None\n")
    settings = command(recipe="gpu", arguments=arguments)
    settings["env"]["PYTHONPATH"] += f":{blocked.parent}"
    done = subprocess.run(**settings, capture_output=True, text=True)
    logs = "".join(path.read_text()[-2000:] for path in (tmp_path / "out" / "logs").iterdir())
    assert done.returncode == 0, done.stdout + done.stderr + logs
    parts = json.loads((tmp_path / "out" / "state.json").read_text())["parts"]
    assert {part: record["status"] for part, record in parts.items()} == dict.fromkeys(parts, "done")
    assert list(parts) == ["tests", "benchmarks", *gpu.TRAININGS]
    assert all(parts[name]["steps"] == 4 for name in gpu.TRAININGS)
    rows = json.loads((tmp_path / "out" / "benchmarks.json").read_text())["rows"]
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in rows) and len(rows) == 8
    packed = {path.name.removesuffix(path.suffix) for path in (tmp_path / "home").iterdir()}  # in one piece or more
    assert packed == {f"{name}.tar.gz" for name in parts}
    again = subprocess.run(**settings, capture_output=True, text=True)
    assert again.returncode == 0 and "begins" not in again.stdout


class Scripted(gpu.Queue):
    """A queue whose commands do nothing but end as the script says; each takes some seconds."""

    def __init__(self, folder, script, **settings):
        super().__init__(gpu.GPUArguments(output_dir=str(folder), parts=["pattern_2d"], **settings))
        self.script, self.commands = script, []

    def command(self, name, command, seconds, record):
        self.commands.append(command)
        status, took, steps, ended = self.script.pop(0)
        record["seconds"] += took
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if status == 0 and "train_lpn" in command[0]:
            (folder / "config.json").write_text("{}")
            (folder / "run.json").write_text(json.dumps({"steps": steps, "ended_by_time_budget": ended}))
        return status


def statuses(queue):
    return [record["status"] for record in json.loads(queue.state_file.read_text())["parts"].values()]


def test_a_training_goes_on_until_its_budget_is_used_and_is_then_evaluated(tmp_path):
    first = Scripted(tmp_path, [(0, 100, 10, True)])
    first.run()
    assert statuses(first) == ["cut"] and "--resume_from_checkpoint auto" in " ".join(first.commands[0])
    killed = Scripted(tmp_path, [(None, 100, 0, True)])
    killed.run()
    assert statuses(killed) == ["cut"]
    last = Scripted(tmp_path, [(0, 105, 30, True), (0, 5, 0, False)])
    last.run()
    assert statuses(last) == ["done"] and last.state["pattern_2d"]["steps"] == 30
    assert "evaluate_lpn" in last.commands[1][0]
    after = Scripted(tmp_path, [])
    after.run()
    assert not after.commands


def test_the_fastest_compilation_is_used_and_given_up_where_it_fails(tmp_path):
    row = {"work": "pattern_2d training", "dtype": "float32"}
    rows = [{**row, "mode": "eager", "seconds": 2.0}, {**row, "mode": "model", "seconds": 1.0}]
    rows += [{**row, "mode": "layers", "error": "x"}, {**row, "dtype": "bfloat16", "mode": "layers", "seconds": 0.1}]
    (tmp_path / "benchmarks.json").write_text(json.dumps({"rows": rows}))
    queue = Scripted(tmp_path, [(1, 5, 0, False), (0, 5, 9, False), (0, 5, 0, False)])
    queue.run()
    assert statuses(queue) == ["done"] and queue.state["pattern_2d"]["mode"] == "eager"
    assert ["--torch_compile" in command for command in queue.commands] == [True, False, False]


def test_a_failure_stays_and_is_tried_again_when_asked(tmp_path):
    Scripted(tmp_path, [(1, 5, 0, False)]).run()
    untouched = Scripted(tmp_path, [])
    untouched.run()
    assert statuses(untouched) == ["failed"]
    again = Scripted(tmp_path, [(0, 5, 9, False), (0, 5, 0, False)], again=["pattern_2d"])
    again.run()
    assert statuses(again) == ["done"]


def test_no_part_begins_without_time(tmp_path):
    queue = Scripted(tmp_path, [], minutes=0.1)
    queue.run()
    assert not queue.commands


def test_files_to_bring_home_fit_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PIECE", 20_000)
    monkeypatch.setattr(gpu, "MOST", 60_000)
    queue = Scripted(tmp_path / "out", [])
    queue.save()
    model = tmp_path / "out" / "pattern_2d"
    (model / "checkpoint-3").mkdir(parents=True)
    tensor = torch.randn(25_000)  # 100 kB, in bfloat16 50 kB
    save_file({"x": tensor}, model / "model.safetensors")
    save_file({"x": tensor}, model / "checkpoint-3" / "model.safetensors")
    queue.pack("pattern_2d")
    pieces = list((tmp_path / "out" / "home").iterdir())
    assert len(pieces) > 1 and all(piece.stat().st_size <= 20_000 for piece in pieces)
    gpu.unpack(tmp_path / "out" / "home", tmp_path / "back")
    assert torch.equal(load_file(tmp_path / "back" / "pattern_2d" / "model.safetensors")["x"], tensor.bfloat16())
    assert not (tmp_path / "back" / "pattern_2d" / "checkpoint-3").exists()
    assert json.loads((tmp_path / "back" / "state.json").read_text())["parts"] == {}
    with pytest.raises(FileNotFoundError, match=r"holds no \*.tar.gz.0"):
        gpu.unpack(tmp_path, tmp_path / "back")


def test_mistakes_are_named(tmp_path, monkeypatch):
    output = ["--output_dir", tmp_path]
    with pytest.raises(ValueError, match="no part 'pattern2d'; known: tests, benchmarks, pattern_2d"):
        call(gpu, monkeypatch, "--parts", "pattern2d", *output)
    with pytest.raises(ValueError, match="`minutes` is 0; give a positive number"):
        call(gpu, monkeypatch, "--minutes", "0", *output)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device; `--tiny true`"):
            call(gpu, monkeypatch, *output)


def test_the_parts_name_recipes_that_exist():
    for training in gpu.TRAININGS.values():
        scripts = [training.script, *(training.evaluation or [])[:1]]
        assert all((ROOT / "recipes" / f"{script}.py").is_file() for script in scripts)
        assert (ROOT / "recipes" / training.recipe).is_file()
