import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from modeling_lpn import runs
from modeling_lpn.arguments import arguments_from, given, parse_recipe
from modeling_lpn.tasks.arguments import LPNTrainingArguments


@dataclass
class Toy:
    rate: float = 0.1
    num_steps: int = 3
    name: str = "a"
    fast: bool = False
    budgets: list[int] = field(default_factory=lambda: [0])


@dataclass
class Settings:
    depth: int = 2
    width: float = 1.0
    limit: int | None = None
    fast: bool = False


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_yaml_values_get_their_types_and_the_command_line_wins(tmp_path):
    path = write(tmp_path, "rate: 1e-4\nnum_steps: 7\nname: -b\nfast: true\nbudgets: [0, 5]\n")
    (toy,) = parse_recipe([Toy], [path])
    assert toy == Toy(rate=1e-4, num_steps=7, name="-b", fast=True, budgets=[0, 5])
    (toy,) = parse_recipe([Toy], [path, "--num_steps", "9", "--budgets", "1", "2", "3", "--fast", "false"])
    assert (toy.num_steps, toy.budgets, toy.fast, toy.rate) == (9, [1, 2, 3], False, 1e-4)


def test_a_recipe_is_optional():
    assert parse_recipe([Toy], ["--num-steps", "4"])[0] == Toy(num_steps=4)
    assert parse_recipe([Toy], []) == (Toy(),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_step: 7", "`num_step` is no known argument; did you mean `num_steps`"),
        ("zzzzzz: 7", "`zzzzzz` is no known argument; see --help"),
        ("num_steps: 7\nnum_steps: 8", "`num_steps` is given twice"),
        ("num_steps: {a: 1}", "recipes are flat"),
        ("num_steps:", "leave the key out for its default"),
        ("name: null", "leave the key out for its default"),
        ("budgets: []", "give a value or a list"),
        ("- a", "holds a list; write `key: value` lines"),
        ("a: b: c", "cannot be read"),
        ("num_steps: 7.5", "num_steps.*invalid int value: '7.5'"),
        ("fast: maybe", "got maybe but expected one of"),
    ],
)
def test_wrong_recipes_are_refused_with_the_cure(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe([Toy], [write(tmp_path, text)])


def test_wrong_flags_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="command line: `num_setps` is no known argument; did you mean `num_steps`"):
        parse_recipe([Toy], ["--num_setps", "3"])
    with pytest.raises(ValueError, match="`num` is no known argument"):
        parse_recipe([Toy], ["--num=3"])  # no abbreviations
    with pytest.raises(ValueError, match="'extra.yaml' belongs to no flag"):
        parse_recipe([Toy], ["--num_steps", "3", "extra.yaml"])


def test_a_missing_recipe_names_what_is_there(tmp_path):
    there = write(tmp_path, "")
    with pytest.raises(FileNotFoundError, match=f"quick.yaml does not exist; .* holds: {there}"):
        parse_recipe([Toy], [str(tmp_path / "quick.yaml")])
    assert parse_recipe([Toy], [there]) == (Toy(),)


def test_arguments_follow_the_configuration_class():
    cls = arguments_from(Settings, "SearchArguments", prefix="search_", skip=("depth",))
    (parsed,) = parse_recipe([cls], ["--search_limit", "4", "--search_fast", "false"])
    assert given(parsed, "search_") == {"limit": 4, "fast": False}
    (nothing,) = parse_recipe([cls], [])
    assert Settings(**given(nothing, "search_")) == Settings()
    with pytest.raises(ValueError, match="search_depth"):
        parse_recipe([cls], ["--search_depth", "4"])


def test_training_defaults_are_those_of_the_published_code(tmp_path):
    (args,) = parse_recipe([LPNTrainingArguments], ["--output_dir", str(tmp_path), "--learning_rate", "3e-4"])
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (3e-4, 1e-4, 1.0)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (args.lr_scheduler_type, args.get_warmup_steps(1000)) == ("constant_with_warmup", 99)


def test_threads_of_recipes_sleep_while_they_wait():
    """The OpenMP runtime reads it once, when torch is imported: it has to stand before all other imports."""
    setting, found = 'os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")', 0
    for file in (Path(__file__).parents[1] / "recipes").glob("*.py"):
        text = file.read_text()
        if "use_cpu_cores(" in text or "cli import" in text:
            found += 1
            assert re.findall(r"^(?:import|from) .*", text.split(setting)[0], re.M) == ["import os"], file
            assert setting in text, file
    assert found >= 6


def test_cpu_threads_are_shared_by_the_processes_of_the_machine(monkeypatch, tmp_path):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(runs, "CPU_LIMIT", tmp_path / "cpu.max")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
        for limit, cores in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)):  # of a container
            (tmp_path / "cpu.max").write_text(limit + "\n")
            assert runs.cores_of_process() == cores
        (tmp_path / "cpu.max").unlink()
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert runs.use_cpu_cores() == torch.get_num_threads() == 4
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "99")
        assert runs.use_cpu_cores() == 1
        assert runs.use_cpu_cores(3) == 3
    finally:
        torch.set_num_threads(before)
