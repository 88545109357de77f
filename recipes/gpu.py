"""Uses an accelerator that is at hand for minutes: tests, benchmarks, then a queue of trainings.

    make gpu                                                    # or: python recipes/gpu.py --minutes 9
    python recipes/gpu.py --minutes 9 --parts pattern_2d pattern --home "$OUT"
    python recipes/gpu.py --tiny true --output_dir outputs/gpu_tiny    # the same on a CPU, in small

Parts run in their order, each within its budget of seconds over all calls. `--minutes` cuts the call anywhere; the next one
goes on, a training from its last checkpoint. `state.json` in the output folder says how far each part is: done, failed (not
tried again without `--again`), cut, or absent with the files that it needs. What is worth keeping lies in `--home` as
archives in pieces below 15 MB (`cat pattern_2d.tar.gz.* | tar xz -C outputs/gpu`); `--from_home` unpacks those of an earlier
call on a new machine. A training compiles in the way that the benchmark measured as the fastest, and falls back to none.
"""

import dataclasses
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_utils import get_last_checkpoint

from modeling_lpn.arguments import option, parse_recipe
from modeling_lpn.runs import run_recipe, write_results


ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
PIECE, MOST = 15 * 2**20, 30 * 2**20  # bytes of a file to bring home, and of all files of a part
RESERVE = 25.0  # seconds for what a training does before and after its steps, and to pack
STARTING = 20.0  # no part begins with less time left
# How a training compiles, by the modes of benchmarks/accelerator.py.
MODES = {
    "eager": {"compile_layers": "false"},
    "layers": {"compile_layers": "true"},
    "model": {"compile_layers": "false", "torch_compile": "true", "torch_compile_mode": "reduce-overhead"},
}
# The Trainer's filter looks at every step's loss, which waits for the device.
ON_GPU = {"optim": "adamw_torch_fused", "logging_nan_inf_filter": "false"}


@dataclasses.dataclass
class GPUArguments:
    minutes: float = option(9.0, "Ends the call after so many, wherever it is.")
    parts: list[str] | None = option(None, "Parts to run; all if not given.")
    again: list[str] = option([], "Parts to run once more that are done or failed.")
    output_dir: str = option("outputs/gpu", "Where everything goes.")
    home: str | None = option(None, "Folder of the files to bring home; home in output_dir if not given.")
    from_home: str | None = option(None, "Such files of an earlier call to go on from.")
    tiny: bool = option(False, "Small sizes and no compilation: a try on a CPU.")


@dataclasses.dataclass
class Training:
    """A recipe, its time, how its result is evaluated, what it needs, and its small form."""

    script: str
    recipe: str
    seconds: float
    evaluation: list[str] | None = None
    needs: tuple[str, ...] = ()
    bf16: bool = False
    tiny: dict = dataclasses.field(default_factory=dict)
    prepare_tiny: Callable[[Path], list[list[str]]] | None = None


TINY = {"max_steps": 4, "save_steps": 2, "eval_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 2}
TINY |= {"per_device_eval_batch_size": 2, "num_threads": 1, "dataloader_num_workers": 0, "use_cpu": "true"}
TINY_LPN = {**TINY, "num_eval_tasks": 2, "eval_budgets": [0, 1], "compile_layers": "false"}
TINY_LPN |= {f"{side}_num_layers": 1 for side in ("encoder", "decoder")}
TINY_EVALUATION = ["--num_tasks", "2", "--budgets", "0", "1", "--num_threads", "1"]


def prepare_tiny_code(folder: Path) -> list[list[str]]:
    """A corpus of this project's own files, and the command that trains its tokenizer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [path.read_text() for path in sorted((ROOT / "modeling_lpn" / "lpn").glob("*.py"))]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), folder / "train.parquet")
    command = ["--files", str(folder / "train.parquet"), "--vocab_size", "320", "--num_masks", "9", "--overwrite"]
    return [[str(RECIPES / "train_tokenizer.py"), *command, "--output_dir", str(folder / "tokenizer")]]


GRIDS = ["evaluate_lpn", "--tasks", "pattern", "--num_tasks", "1000", "--num_pictures", "0", "--batch_size", "250"]
PATTERN_2D = [
    "--task_num_rows",
    "4",
    "--task_num_cols",
    "4",
    "--task_pattern_size",
    "2",
    "--budgets",
    *["0", "1", "5", "10", "20"],
]
TRAININGS = {
    "pattern_2d": Training("train_lpn", "lpn/pattern_2d.yaml", 300, evaluation=[*GRIDS, *PATTERN_2D], tiny=TINY_LPN),
    "pattern": Training(
        "train_lpn",
        "lpn/pattern.yaml",
        300,
        evaluation=[*GRIDS, "--task_pattern_size", "4", "--budgets", *["0", "1", "5", "20", "100"]],
        tiny=TINY_LPN,
    ),
    "codegen2_python_1m": Training(
        "train_codegen2",
        "codegen2/python_1m_gpu.yaml",
        300,
        needs=("outputs/code/train.parquet", "outputs/tokenizer_2k/tokenizer.json"),
        bf16=True,
        tiny={**TINY, "max_length": 64, "n_embd": 64, "n_layer": 1, "n_head": 2},
        prepare_tiny=prepare_tiny_code,
    ),
    "codegen2_small": Training(
        "train_codegen2",
        "codegen2/small_10m.yaml",
        480,
        needs=("outputs/code/train.parquet", "outputs/docs/train.parquet", "outputs/tokenizer_8k/tokenizer.json"),
        bf16=True,
        tiny={**TINY, "max_length": 64, "n_embd": 64, "n_layer": 1, "rotary_dim": 8, "num_infill_cases": 2},
        prepare_tiny=prepare_tiny_code,
    ),
    "strings_gpu": Training(
        "train_lpn",
        "lpn/strings_gpu.yaml",
        480,
        evaluation=["evaluate_strings", "--tasks", "string", "--num_tasks", "200", "--seconds", "0.1"],
        bf16=True,
        tiny={**TINY_LPN, "eval_strategy": "no"},
    ),
}
PLAIN = {"tests": 150.0, "benchmarks": 110.0}  # seconds


def flags(settings: dict) -> Iterator[str]:
    for name, value in settings.items():
        yield f"--{name}"
        yield from map(str, value if isinstance(value, list) else [value])


class Queue:
    """The parts of a call, and the file that remembers how far they are."""

    def __init__(self, args: GPUArguments):
        self.args, self.folder = args, Path(args.output_dir).resolve()
        self.home = Path(args.home).resolve() if args.home else self.folder / "home"
        self.end = time.monotonic() + 60 * args.minutes
        self.reserve, self.starting = (0.0, 0.0) if args.tiny else (RESERVE, STARTING)
        self.state_file = self.folder / "state.json"
        self.state: dict = json.loads(self.state_file.read_text())["parts"] if self.state_file.is_file() else {}
        for name in args.again:
            self.state.pop(name, None)

    def left(self) -> float:
        return self.end - time.monotonic()

    def save(self) -> None:
        write_results(self.state_file, 0, saved=time.time(), parts=self.state)

    def run(self) -> None:
        for name in self.args.parts or [*PLAIN, *TRAININGS]:
            record = self.state.setdefault(name, {"status": "waiting", "seconds": 0.0})
            if record["status"] in ("done", "failed"):
                continue
            if self.left() <= self.starting:
                print(f"{name}: no time left; call again to go on")
                continue
            print(f"{name}: begins, {self.left():.0f} s left", flush=True)
            try:
                record["status"] = self.train(name, record) if name in TRAININGS else self.run_plain(name, record)
            finally:
                self.save()
                self.pack(name)
            print(f"{name}: {record['status']} after {record['seconds']:.0f} s{self.describe(record)}", flush=True)

    @staticmethod
    def describe(record: dict) -> str:
        shown = {name: value for name, value in record.items() if name not in ("status", "seconds")}
        return "".join(f", {name} {value}" for name, value in shown.items())

    def command(self, name: str, command: list[str], seconds: float, record: dict) -> int | None:
        """Exit status of a Python command whose output goes to the part's log; `None` where time ended it."""
        log, start = self.folder / "logs" / f"{name}.log", time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        with open(log, "a") as output:
            print("$ python", *command, file=output, flush=True)
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
            try:
                return process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                record["seconds"] += time.monotonic() - start

    def run_plain(self, name: str, record: dict) -> str:
        """Tests and benchmarks: one command; what it had written when time ended it stays."""
        budget = PLAIN[name]
        seconds = min(budget + 40, self.left() - self.reserve / 5) if not self.args.tiny else self.left()
        if name == "tests":
            command = self.tests()
        else:
            output = ["--output", str(self.folder / "benchmarks.json"), "--seconds", str(min(budget, seconds - 10))]
            command = [
                str(RECIPES / "benchmarks" / "accelerator.py"),
                *output,
                *(["--tiny"] if self.args.tiny else []),
            ]
        status = self.command(name, command, seconds, record)
        if name == "tests":
            record["result"] = (self.folder / "logs" / "tests.log").read_text().strip().splitlines()[-1]
        if status is None:
            # A budget that is used up does not come back: a benchmark has written every case that it measured.
            return "failed" if record["seconds"] >= budget else "cut"
        return "done" if status == 0 else "failed"

    def tests(self) -> list[str]:
        files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
        # Deprecations are errors where versions are pinned; here they are whatever the machine has. Every test with its
        # name: what time cuts off prints no summary.
        command = ["-m", "pytest", "-m", "gpu", "-vv", "-W", "default", "-p", "no:cacheprovider", *files]
        parallel = importlib.util.find_spec("xdist") is not None and torch.cuda.is_available()
        return [*command, "-n", "4"] if parallel else command

    def train(self, name: str, record: dict) -> str:
        training, folder = TRAININGS[name], self.folder / name
        if self.args.tiny and training.prepare_tiny:
            for command in training.prepare_tiny(self.folder / f"{name}_data"):
                if self.command(name, command, self.left(), record) != 0:
                    return "failed"
        missing = [] if self.args.tiny else [path for path in training.needs if not (ROOT / path).exists()]
        if missing:
            record["needs"] = missing
            return "absent"
        record.pop("needs", None)
        while not record.get("trained"):
            if record["seconds"] >= training.seconds and not self.args.tiny:
                if not (folder / "config.json").is_file():
                    return "failed"
                break
            budget = min(training.seconds - record["seconds"], self.left() - self.reserve)
            budget = self.left() if self.args.tiny else budget
            if budget <= 0:
                return "cut"
            mode = record.setdefault("mode", self.fastest(name))
            status = self.command(name, self.training_command(name, budget, mode), budget + self.reserve, record)
            if status is None:
                return "cut"
            if status != 0 and mode == "eager":
                return "failed"
            if status != 0:
                record["mode"] = "eager"  # what the benchmark could do the training could not
                continue
            run = json.loads((folder / "run.json").read_text())
            record["steps"] = run["steps"]
            record["trained"] = not run["ended_by_time_budget"] or record["seconds"] >= training.seconds - 1
            if not record["trained"]:
                return "cut"
        return self.evaluate(name, record)

    def training_command(self, name: str, budget: float, mode: str) -> list[str]:
        training = TRAININGS[name]
        settings = {"output_dir": self.folder / name, "resume_from_checkpoint": "auto", "disable_tqdm": "true"}
        settings["max_minutes"] = budget / 60
        known = MODES[mode]
        if training.script != "train_lpn":
            known = {key: value for key, value in known.items() if key != "compile_layers"}
        settings |= known
        if self.args.tiny:
            settings |= training.tiny
            if training.prepare_tiny:
                data = self.folder / f"{name}_data"
                settings |= {"tokenizer_name_or_path": data / "tokenizer", "source_weights": [1]}
                settings |= {f"{kind}_files": data / "train.parquet" for kind in ("train", "validation")}
        else:
            settings |= ON_GPU
            if training.script == "train_lpn":
                settings["dataloader_num_workers"] = min(8, max(0, (os.cpu_count() or 1) - 2))
        return [str(RECIPES / f"{training.script}.py"), str(RECIPES / training.recipe), *flags(settings)]

    def fastest(self, name: str) -> str:
        """The mode in which the benchmark took the step of this training in the least time."""
        file, training = self.folder / "benchmarks.json", TRAININGS[name]
        if self.args.tiny or not file.is_file():
            return "eager"
        dtype = "bfloat16" if training.bf16 else "float32"
        rows = [row for row in json.loads(file.read_text())["rows"] if row["work"] == f"{name} training"]
        rows = [row for row in rows if row["dtype"] == dtype and "seconds" in row]
        return min(rows, key=lambda row: row["seconds"], default={"mode": "eager"})["mode"]

    def evaluate(self, name: str, record: dict) -> str:
        training = TRAININGS[name]
        if training.evaluation is None:
            return "done"
        if self.left() <= self.starting:
            return "cut"
        script, *settings = training.evaluation
        command = [str(RECIPES / f"{script}.py"), *settings, *(TINY_EVALUATION if self.args.tiny else [])]
        command += ["--model_name_or_path", str(self.folder / name), "--overwrite", "true"]
        command += ["--output_dir", str(self.folder / name / "evaluation")]
        status = self.command(name, command, self.left(), record)
        return "cut" if status is None else "done" if status == 0 else "failed"

    def pack(self, name: str) -> None:
        """The part's files in the order of their worth, as far as they fit: records, the model, its last checkpoint."""
        folder = self.folder / name
        records = [self.state_file, *self.folder.glob("benchmarks.json"), *self.folder.glob(f"logs/{name}.log")]
        groups = [(records, "records")]
        if folder.is_dir():
            small = [path for path in folder.iterdir() if path.is_file() and path.suffix in (".json", ".py", ".jinja")]
            groups.append(([*small, *folder.glob("evaluation/*.json")], "records"))
            groups.append((list(folder.glob("*.safetensors")), "model"))
            last = get_last_checkpoint(str(folder))
            groups.append(([path for path in Path(last).rglob("*") if path.is_file()] if last else [], "checkpoint"))
        content, left_out = io.BytesIO(), []
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for files, kind in groups:
                size = sum(path.stat().st_size for path in files)
                if kind == "model" and content.tell() + size > MOST:
                    files = [half_precision(path, self.folder) for path in files]
                    size = sum(path.stat().st_size for path in files)
                if content.tell() + size > MOST:
                    left_out.append(f"{kind} ({size / 2**20:.0f} MB)")
                    continue
                for path in files:
                    archive.add(path, str(path.relative_to(self.folder)).replace("half/", ""))
        self.write_pieces(name, content.getvalue())
        if left_out:
            print(f"{name}: not among the files to bring home: {', '.join(left_out)}")

    def write_pieces(self, name: str, content: bytes) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        for old in self.home.glob(f"{name}.tar.gz.*"):
            old.unlink()
        for number, start in enumerate(range(0, len(content), PIECE)):
            (self.home / f"{name}.tar.gz.{number}").write_bytes(content[start : start + PIECE])


def half_precision(path: Path, folder: Path) -> Path:
    """A copy of weights in bfloat16, under `half/` with the same place."""
    copy = folder / "half" / path.relative_to(folder)
    copy.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, copy, metadata={"format": "pt"})
    return copy


def unpack(source: Path, folder: Path) -> None:
    """
    Puts the files of an earlier call back where they were.

    Raises:
        FileNotFoundError: there are none.
    """
    names = sorted({path.name.removesuffix(path.suffix) for path in source.glob("*.tar.gz.*")})
    if not names:
        raise FileNotFoundError(f"{source} holds no *.tar.gz.0; give the folder of files that were brought home")
    folder.mkdir(parents=True, exist_ok=True)
    states = []
    for name in names:
        pieces = sorted(source.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:]))
        with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as archive:
            archive.extractall(folder, filter="data")
        states.append((folder / "state.json").read_text())
    # Each has the state of its time.
    (folder / "state.json").write_text(max(states, key=lambda text: json.loads(text)["saved"]))


def main():
    (args,) = parse_recipe([GPUArguments])
    known = [*PLAIN, *TRAININGS]
    if unknown := [name for name in [*(args.parts or []), *args.again] if name not in known]:
        raise ValueError(f"there is no part {unknown[0]!r}; known: {', '.join(known)}")
    if not args.minutes > 0:
        raise ValueError(f"`minutes` is {args.minutes:g}; give a positive number of minutes")
    if not (args.tiny or torch.cuda.is_available()):
        raise ValueError("there is no CUDA device; `--tiny true` tries the command on a CPU")
    if args.from_home:
        unpack(Path(args.from_home), Path(args.output_dir))
    queue = Queue(args)
    # A terminated call ends its running part, saves how far it is and packs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    queue.run()
    shutil.rmtree(queue.folder / "half", ignore_errors=True)
    print(f"how far: {queue.state_file}; files to bring home: {queue.home}")
    if any(record["status"] == "failed" for record in queue.state.values()):
        sys.exit(1)


if __name__ == "__main__":
    run_recipe(main)
