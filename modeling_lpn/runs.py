"""Records of runs, the devices they use, and their resumption: what every recipe shares."""

import ctypes
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging


logger = logging.get_logger(__name__)


CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores together, and of how many


def cores_of_process() -> int:
    """
    The machine's cores that this process may use (in a container those it has the time of), divided by the processes of the
    launch on this machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = CPU_LIMIT.read_text().split() if CPU_LIMIT.is_file() else ("max", "")
    if quota != "max":
        cores = min(cores, int(quota) // int(period))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def use_cpu_cores(num_threads: int | None = None) -> int:
    """
    Sets torch's CPU threads; `accelerate launch` and `torchrun` leave every process with one.

    The recipes set `OMP_WAIT_POLICY=PASSIVE` before they import torch, unless it is set: threads then sleep while they wait
    for each other. Where another process wants the cores, a step of the quickstart with two threads took 0.2 s so in a trial, and 6.5 s
    with the default, where every wait keeps a core busy that the other thread needs; on quiet cores it costs 10 to 15 %.

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


def find_checkpoint(args: TrainingArguments, overwrite: bool = False) -> str | None:
    """The checkpoint to continue from.

    Args:
        args (`TrainingArguments`): `resume_from_checkpoint` is a folder, `"auto"` for the last checkpoint in `output_dir`
            that was written to its end, if there is one, or `None`.
        overwrite (`bool`, defaults to `False`): begins anew; see [`remove_checkpoints`].

    Returns:
        `str`, *optional*: its folder.

    Raises:
        ValueError: `output_dir` holds an earlier run, and nothing says to continue or to replace it, or both.
    """
    folder = Path(args.output_dir)
    last = get_last_checkpoint(args.output_dir) if folder.is_dir() else None
    if overwrite:
        if args.resume_from_checkpoint is not None:
            raise ValueError("--overwrite begins anew and --resume_from_checkpoint goes on; give one of the two")
        return None
    record = folder / "run.json"
    if args.resume_from_checkpoint == "auto":
        if last is None and record.is_file():
            raise ValueError(
                f"{args.output_dir} holds a finished run (run.json) and no checkpoint to go on from; replace it with "
                "--overwrite, or choose another --output_dir and start from it with --model_name_or_path"
            )
        return _last_whole_checkpoint(folder)
    if args.resume_from_checkpoint is None and (last is not None or record.is_file()):
        what = f"checkpoints of an earlier run (the last: {Path(last).name})" if last else "an earlier run (run.json)"
        raise ValueError(
            f"{args.output_dir} holds {what}; continue it with --resume_from_checkpoint auto, replace it with "
            "--overwrite, or choose another --output_dir"
        )
    return args.resume_from_checkpoint


def _last_whole_checkpoint(folder: Path) -> str | None:
    """What a kill left while it was written is passed over: the Trainer writes `trainer_state.json` last."""
    numbers = (path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*"))
    for number in sorted(map(int, filter(str.isdecimal, numbers)), reverse=True):
        checkpoint = folder / f"checkpoint-{number}"
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            logger.warning(f"{checkpoint} was not written to its end; passed over")
        else:
            return str(checkpoint)
    return None


def remove_checkpoints(args: TrainingArguments) -> None:
    """Removes the checkpoints of an earlier run that is replaced; right before training, when all else has gone well."""
    if args.should_save:
        for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


def is_finished(checkpoint: str | None, args: TrainingArguments) -> bool:
    """Whether a run to be continued has taken all its steps; says so, and what to do to go on."""
    if checkpoint is None or not (state := Path(checkpoint, "trainer_state.json")).is_file():
        return False
    step = json.loads(state.read_text())["global_step"]
    if step < args.max_steps:
        return False
    if args.should_save:
        print(
            f"{args.output_dir} is finished: {step} of {args.max_steps} steps are done, and nothing was changed. Raise "
            "--max_steps to train on, or choose another --output_dir"
        )
    return True


def refuse_existing(path: str | os.PathLike, overwrite: bool) -> None:
    """
    The rule of all recipes about results that are there already.

    Raises:
        ValueError: the file exists and may not be replaced.
    """
    if Path(path).exists() and not overwrite:
        raise ValueError(
            f"{path} is there already, from an earlier run; choose another --output_dir, or replace it with --overwrite"
        )


def report_leaks(found: Mapping[str, str], total: int, kind: str, policy: str, policies=("flag", "refuse")) -> None:
    """
    Says what of an evaluation occurs in the training data.

    Args:
        found (`dict[str, str]`): names of the evaluation, and what they are called in the training data.
        total (`int`): how many were compared.
        kind (`str`): what they are: tasks, files.
        policy (`str`): the flag `leaks` of a recipe, one of `policies`.

    Raises:
        ValueError: the policy is unknown, or it is refuse and something was found.
    """
    if policy not in policies:
        raise ValueError(f"`leaks` is {policy!r}; give {' or '.join(policies)}")
    if not found:
        return
    name, trained = next(iter(found.items()))
    text = f"{len(found)} of {total} {kind} occur in the training data: {name} as {trained}"
    if policy == "refuse":
        raise ValueError(f"{text} ...; evaluate on others, or give --leaks flag")
    if os.environ.get("RANK", "0") == "0":
        print(f"{text} ...; all are named under `leaks` in what is written")


def load_pretrained(load: Callable, name: str, **settings):
    """
    `load(name, **settings)` of `from_pretrained` methods, with a message about the folder where there is none.

    Raises:
        FileNotFoundError: neither a folder, nor to be had from the Hub.
        ConnectionError: the download broke off.
    """
    try:
        return load(name, **settings)
    except OSError as error:
        if Path(name).is_dir():
            raise
        check_download(name, error)
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"there is no folder {str(name)!r}, and the Hub gives no model of that name ({reason}); a private "
            "one needs `hf auth login` or HF_TOKEN"
        ) from error


def check_download(name: str, error: BaseException) -> None:
    """
    Says that a download broke off where that is behind an `error`: transformers then says that a file is not there.

    Raises:
        ConnectionError: a file of the Hub began to arrive and did not arrive whole.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (HTTPError, LocalEntryNotFoundError)):
        cause = cause.__cause__ or cause.__context__
    response = getattr(cause, "response", None)
    if cause is None or isinstance(cause, LocalEntryNotFoundError):  # the latter: not even its size was to be had
        return
    if response is None:
        limit = f"no byte in {constants.HF_HUB_DOWNLOAD_TIMEOUT} s, the limit HF_HUB_DOWNLOAD_TIMEOUT"
        what = limit if "timed out" in str(cause) else f"the connection broke off: {cause}"
    elif response.status_code >= 500 or response.status_code == 429:
        what = f"the Hub answers {response.status_code}"
    else:
        return
    raise ConnectionError(
        f"{str(name)!r} was not loaded, its download failed ({what}); run it again, the files that arrived whole are kept"
    ) from error


def write_results(path: str | os.PathLike, seed: int, **content) -> None:
    """
    Writes a results file: how it came about ([`describe_run`]), then `content`. A file that is there is replaced at once
    or not at all.

    Args:
        path (`str` or path): the JSON file; its folder is made.
        seed (`int`): the run's seed.
        content: what was measured; a number that is not finite, which JSON has no word for, is written as `null`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite({**describe_run(seed), **content}), indent=1, allow_nan=False, default=str)
    new = path.with_name(path.name + ".tmp")
    new.write_text(text + "\n")
    os.replace(new, path)


def _finite(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


_TRACEBACK = "--traceback"


def run_recipe(main: Callable[[], None]) -> None:
    """
    Runs the `main` of a recipe: a user's mistake ends in its one line and exit status 2, with the traceback where
    `--traceback` is on the command line.

    Args:
        main (`Callable`): reads `sys.argv`.
    """
    show = _TRACEBACK in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != _TRACEBACK]
    try:
        main()
    except (ValueError, TypeError, ImportError, OSError) as error:
        if show or not _is_mistake(error):
            raise
        if os.environ.get("RANK", "0") == "0":  # one line, not one of each process
            print(f"{Path(sys.argv[0]).name}: {error} ({_TRACEBACK} shows where)", file=sys.stderr)
        sys.exit(2)


# Where transformers and huggingface_hub check the settings that a recipe hands them.
_CHECKS_OF_SETTINGS = {"dataclasses.py", "training_args.py", "configuration_utils.py", "hf_argparser.py"}


def _is_mistake(error: Exception) -> bool:
    """Whether an error is the user's: a file, or refused by a check of this project or of its settings, not deep in a library."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    place = Path(frame.f_code.co_filename)
    ours = place.is_relative_to(Path(__file__).parent) or place.name == Path(sys.argv[0]).name
    return isinstance(error, OSError) or ours or place.name in _CHECKS_OF_SETTINGS


def prepare_compilation() -> None:
    """
    Switches off an analysis of torch.compile's Inductor that fails with a bare `AssertionError` (`get_pw_red_splits`) on the
    steps of LPN, seen with torch 2.11 on a GPU; without it they compile.
    """
    import torch._inductor.config as inductor  # imported where it is needed: it takes a second

    if hasattr(inductor.triton, "coalesce_tiling_analysis"):
        inductor.triton.coalesce_tiling_analysis = False


class ThreadChoice(TrainerCallback):
    """
    Trains on as many CPU threads as are fastest here: tries one, half and all of them in the first steps, says what a step
    took, and goes on with the best. Operators of a small model are too short for a barrier each, and in a container with
    less CPU than it has cores, or beside another process, every barrier waits.

    Args:
        most (`int`): all threads that this process may use.
    """

    STEPS = 5  # with each number; the first of them is not counted

    def __init__(self, most: int):
        self.seconds: dict[int, list[float]] = {number: [] for number in sorted({1, max(1, most // 2), most})}
        self.chosen: int | None = most if len(self.seconds) == 1 else None
        self.start = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if self.chosen is None:
            torch.set_num_threads(self._tried())
            self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if self.chosen is not None:
            return
        self.seconds[self._tried()].append(time.perf_counter() - self.start)
        if self._tried() is None:
            medians = {number: statistics.median(times[1:]) for number, times in self.seconds.items()}
            self.chosen = min(medians, key=medians.__getitem__)
            torch.set_num_threads(self.chosen)
            if state.is_world_process_zero:
                figures = ", ".join(f"{1000 * seconds:.0f} ms with {number}" for number, seconds in medians.items())
                print(f"CPU threads: a step takes {figures}; going on with {self.chosen} (--num_threads fixes them)")

    def _tried(self) -> int | None:
        return next((number for number, times in self.seconds.items() if len(times) < self.STEPS), None)


class TimeBudget(TrainerCallback, ExportableState):
    """
    Says after the first steps what a training will take, and ends it at a time budget, with a checkpoint where the run
    saves any. Checkpoints keep the time that led to them: the record of a resumed run tells that of all its steps.

    Args:
        max_minutes (`float`, *optional*):
            minutes of training from now on, evaluations included; no limit if not given.
    """

    FIRST_STEPS = 20

    def __init__(self, max_minutes: float | None = None):
        self.max_minutes, self.ended, self.start, self.first = max_minutes, False, None, 0
        self.earlier: float | None = 0.0  # seconds until the checkpoint that training goes on from

    @property
    def seconds(self) -> float | None:
        """Of training, that before the checkpoint included; `None` where an old checkpoint does not tell."""
        if self.earlier is None or self.start is None:
            return self.earlier
        return self.earlier + time.perf_counter() - self.start

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"args": {"max_minutes": self.max_minutes}, "attributes": {"earlier": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        # Trainer expects the entry to be there when it saves, also in the state of a checkpoint that had none.
        unknown = {"attributes": {"earlier": None if state.global_step else 0.0}}
        kept = state.stateful_callbacks.setdefault(type(self).__name__, unknown)
        self.earlier, self.start, self.first = kept["attributes"]["earlier"], time.perf_counter(), state.global_step

    def on_train_end(self, args, state, control, **kwargs):
        self.earlier, self.start = self.seconds, None

    def on_step_end(self, args, state, control, **kwargs):
        elapsed, done = time.perf_counter() - self.start, state.global_step - self.first
        if done == self.FIRST_STEPS and state.is_world_process_zero:
            left = elapsed / done * (state.max_steps - state.global_step) / 60
            limit = f", the budget is {self.max_minutes:g}" if self.max_minutes else ""
            print(
                f"{done} steps took {elapsed:.1f} s: {left:.1f} minutes for the other steps, without evaluations{limit}"
            )
        if self.max_minutes is not None and elapsed >= 60 * self.max_minutes and not self.ended:
            self.ended = control.should_training_stop = True
            control.should_save = args.save_strategy != "no"


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


def peak_memory() -> float | None:
    """Gigabytes that this process held at most; `None` where the kernel does not say (other than Linux)."""
    status = Path("/proc/self/status")  # `ru_maxrss` is that of the process that started this one, if it was larger
    lines = status.read_text().splitlines() if status.exists() else []
    held = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return held[0] / 2**20 if held else None


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
