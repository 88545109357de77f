"""Recipes run as a user would, in this process or in two."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


ROOT = Path(__file__).parents[1]
TWO_PROCESSES = ROOT / "recipes" / "accelerate_configs" / "cpu_2proc.yaml"


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def flags(settings, **more):
    texts = []
    for name, value in {**settings, **more}.items():
        texts += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return texts


def call(module, monkeypatch, *arguments):
    """Runs a recipe in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def command(*launcher, recipe, arguments):
    script = str(ROOT / "recipes" / f"{recipe}.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {"args": [sys.executable, *launcher, script, *arguments], "env": environment, "cwd": ROOT}


def launch(recipe, *arguments):
    """Runs a recipe in two processes on the CPU."""
    port = 20000 + os.getpid() % 20000  # test runs side by side must not meet
    launcher = (
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(TWO_PROCESSES),
        "--main_process_port",
        str(port),
    )
    process = subprocess.Popen(
        **command(*launcher, recipe=recipe, arguments=arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher alone would leave its processes behind
        raise
    assert process.returncode == 0, errors[-3000:]
    return output


def weights(folder):
    return {name: tensor.clone() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
