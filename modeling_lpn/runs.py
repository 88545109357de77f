"""Records of runs, the devices they use, and their resumption: what every recipe shares."""

import ctypes
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def cores_of_process() -> int:
    """The machine's cores that this process may use, divided by the processes of the launch on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def use_cpu_cores(num_threads: int | None = None) -> int:
    """Sets torch's CPU threads; `accelerate launch` and `torchrun` leave every process with one.

    Args:
        num_threads (`int`, *optional*): threads of this process. By default the machine's cores that this process may
            use, divided by the processes of the launch on this machine.

    Returns:
        `int`: the number that was set.
    """
    if num_threads is None:
        num_threads = cores_of_process()
    torch.set_num_threads(num_threads)
    _keep_freed_memory()
    return num_threads


def _keep_freed_memory() -> None:
    """
    Tells glibc to keep the memory of freed tensors. By default it returns large blocks to the kernel at once, which then
    zeroes new pages for the next step: up to a quarter of a training step of a small model.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names of mallopt(3)
    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, size in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            libc.mallopt(option, size)
    except (OSError, AttributeError):
        pass  # no glibc here: nothing to tell


def stay_on_cpu(use_cpu: bool = False) -> bool:
    """Whether a run stays on the CPU: asked for by flag or by `accelerate launch --cpu`, or there is nothing else.

    transformers and accelerate want to be told even then: else they refuse `bf16`, and two processes on a machine without
    an accelerator silently become two runs of one process each.
    """
    launched = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return use_cpu or launched or not torch.accelerator.is_available()


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint to continue from.

    Args:
        args (`TrainingArguments`): `resume_from_checkpoint` is a folder, `"auto"` for the last checkpoint in `output_dir`
            if there is one, or `None`.

    Returns:
        `str`, *optional*: its folder.

    Raises:
        ValueError: `output_dir` holds checkpoints of an earlier run, and nothing says to continue it.
    """
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if args.resume_from_checkpoint == "auto":
        return last
    if args.resume_from_checkpoint is None and last is not None:
        raise ValueError(
            f"{args.output_dir} holds checkpoints of an earlier run (the last: {Path(last).name}); continue it with "
            "--resume_from_checkpoint auto, or choose another --output_dir"
        )
    return args.resume_from_checkpoint


def end_together(accelerator) -> None:
    """Waits until all processes of a launch are done, then dissolves their group; the last act of a recipe.

    A process that ends while another still writes takes the whole launch down with it.

    Args:
        accelerator (`accelerate.Accelerator`): that of the run.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # gloo's thread frees what it keeps of the barrier a moment later, and needs the interpreter lock for that. torch
        # 2.13 waits for that thread while holding the lock when it tears down the group: without a pause it may hang.
        time.sleep(0.5)
    accelerator.end_training()


def describe_run(seed: int) -> dict:
    """How a result came about: command, date, commit, seed, hardware and versions, for a results file.

    Args:
        seed (`int`): the run's seed.

    Returns:
        `dict`: `command`, `date`, `git_commit` (`None` outside a checkout; ends in `-dirty` if files were changed),
        `seed`, `hardware` and `versions`.
    """
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version()}
    for package in ("modeling-lpn", "torch", "transformers", "accelerate", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "seed": seed,
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": PartialState().num_processes,
            "gpus": cuda,
        },
        "versions": versions,
    }


def _git_commit() -> str | None:
    def git(*command):
        command = ["git", "-C", str(Path(__file__).parent), *command]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout, whose commit says nothing about it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
