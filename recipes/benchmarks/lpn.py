"""
Times LPN in one run: against a plain implementation of the same model (naive_lpn.py: padded, uncached) and against earlier
commits of this repository, with the same weights and tasks.

    python recipes/benchmarks/lpn.py --output results/benchmark_lpn.json
    python recipes/benchmarks/lpn.py --against af82e78 --shapes quickstart pattern --output outputs/against.json
    python recipes/benchmarks/lpn.py --no-plain --blind-input --shapes quickstart --output outputs/blind_input.json

Shapes: `quickstart` (5x5 grids); `pattern`, Table 13 on 10x10 grids; `re_arc_16` and `re_arc_30`, the model of re_arc_small.yaml
on grids of that side, `re_arc_mixed` on sides from 3 to 16; `arc`, the 44.6M-parameter model of Table 16 on sides from 5 to 20,
`arc_30` on full grids.

Every figure is the median of alternating runs, in seconds of CPU time (of wall time on a GPU), so that other processes disturb it
less; `spread` is the distance of the quartiles over the median. An earlier commit runs from a temporary worktree in a process of
its own, a run at a time. `operators` counts what PyTorch dispatches, `flop/s` the matrix products, attention included, of the
plain implementation's formulas over our time; `of ceiling` compares with a product of 1024 x 1024 matrices; `parts` are shares of the
operators' own time in a profile (CPU only): attention's kernel, matrix products, the rest. `blind input` is the same
model with `latent_visible_to_input: false`, another architecture, and its time over that of the published one; `compiled`, of searches, that
of `LPNModel.compile_search`, compilation left out. The plain generation
at larger shapes would take minutes: a few of its identical forwards are timed and scaled up, which the table marks with a star.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from modeling_lpn import LPNConfig, LPNModel
from modeling_lpn.runs import use_cpu_cores, write_results


ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    # recipe, sides of the grids, pairs of a task, tasks in a training step, in a search step and a generation
    "quickstart": ("quickstart.yaml", (5, 5), 3, 32, 32),
    "pattern": ("pattern.yaml", (10, 10), 4, 32, 16),
    "re_arc_16": ("re_arc_small.yaml", (16, 16), 3, 2, 2),
    "re_arc_mixed": ("re_arc_small.yaml", (3, 16), 3, 4, 4),
    "re_arc_30": ("re_arc_small.yaml", (30, 30), 3, 1, 1),
    "arc": ("arc.yaml", (5, 20), 3, 1, 1),
    "arc_30": ("arc.yaml", (30, 30), 2, 1, 1),
}
TINY = {"tiny": ("quickstart.yaml", (2, 3), 2, 2, 2)}  # for the test of this command
WORKS = ("training step", "Grad 1 training step", "search, 4 steps", "search, 16 candidates", "generation")
COMPILED_WORK = "search, 20 steps"
PLAIN_WORKS = ("training step", "search, 4 steps", "generation")


def load_config(recipe: str) -> LPNConfig:
    """The model of a recipe: those of its keys that are fields of the configuration."""
    settings = yaml.safe_load((ROOT / "recipes" / "lpn" / recipe).read_text())
    settings.pop("copy_inputs", None)  # which earlier commits do not know
    known = {name: value for name, value in settings.items() if name in LPNConfig.__annotations__}
    # YAML alone reads `1e-4` as text; the default of a field has its type.
    return LPNConfig(**{name: type(getattr(LPNConfig, name))(value) for name, value in known.items()})


def draw_tasks(batch: int, num_pairs: int, sides: tuple[int, int], device: str) -> list[torch.Tensor]:
    """Random grids with random sides: demonstrations with a task axis."""
    shapes = torch.randint(sides[0], sides[1] + 1, (2, batch, num_pairs, 2))
    grids = torch.randint(0, 10, (2, batch, num_pairs, sides[1], sides[1]))
    return [tensor.to(device) for tensor in (grids[0], grids[1], shapes[0], shapes[1])]


class Workload:
    """The model and the tasks of a shape, the same for one seed in every process and at every commit."""

    def __init__(self, name: str, device: str, dtype: torch.dtype, seed: int, **settings: bool) -> None:
        recipe, sides, self.pairs, train_batch, self.batch = {**SHAPES, **TINY}[name]
        torch.manual_seed(seed)
        config = load_config(recipe)
        config.update(settings)
        self.model = LPNModel(config).to(device, dtype)
        self.train_tasks = draw_tasks(train_batch, self.pairs, sides, device)
        self.tasks = draw_tasks(self.batch, self.pairs, sides, device)
        self.latents = torch.randn(self.batch, 1, self.model.config.latent_dim, device=device, dtype=dtype)
        self.query, self.shapes = self.tasks[0][:, :1], self.tasks[2][:, :1]

    def run(self, work: str) -> None:
        model = self.model
        if "training" in work:
            search = {"num_steps": 1} if "Grad 1" in work else None
            model.train().zero_grad()
            model(*self.train_tasks, search_config=search).loss.backward()
        elif "search" in work:
            num_steps = 20 if work == COMPILED_WORK else 4
            settings = {"num_steps": 2, "num_samples": 15} if "candidates" in work else {"num_steps": num_steps}
            model.eval().search(*self.tasks, **settings)
        else:
            model.eval().execute(self.latents, self.query, self.shapes)

    def plain(self) -> tuple[Callable[[str], None], float]:
        """The same work by the plain implementation, and what its generation is to be scaled by."""
        from naive_lpn import NaiveLPN

        naive, config = NaiveLPN(self.model), self.model.config
        forwards = config.max_rows * config.max_cols + 2
        timed = forwards if forwards < 200 else 3

        def search() -> None:
            with torch.no_grad():
                encoded = naive.encode(*(tensor.flatten(0, 1) for tensor in self.tasks))
            current = encoded.unflatten(0, (self.batch, self.pairs)).mean(1)
            for step in range(5):
                current = current.detach().requires_grad_()
                value = naive.task_log_prob(current, *self.tasks)
                if step < 4:
                    current = current + 0.1 * torch.autograd.grad(value.sum(), current)[0]

        def run(work: str) -> None:
            if work == "training step":
                self.model.train().zero_grad()
                naive.loss(*self.train_tasks).backward()
            elif work == "generation":
                naive.generate(self.latents[:, 0], self.query[:, 0], self.shapes[:, 0], max_forwards=timed)
            else:
                search()

        return run, forwards / timed


class CountOperators(TorchDispatchMode):
    """Counts what PyTorch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def measure(run: Callable[[str], None], work: str, device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    run(work)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def worker(args: argparse.Namespace) -> None:
    """Answers lines of `shape work` with seconds, for another commit's process to compare with."""
    loads: dict[str, Workload] = {}
    for line in sys.stdin:
        name, work = json.loads(line)
        if name not in loads:
            loads = {name: Workload(name, args.device, getattr(torch, args.dtype), args.seed)}
        print(json.dumps(measure(loads[name].run, work, args.device)), flush=True)


@contextlib.contextmanager
def commit_process(commit: str, args: argparse.Namespace) -> Iterator[Callable[[str, str], float]]:
    """A process that runs this file on the package of another commit; gives seconds for a shape and a work."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
        command = [sys.executable, __file__, "--worker", "--device", args.device, "--dtype", args.dtype]
        command += ["--seed", str(args.seed), "--num_threads", str(args.num_threads)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )

        def ask(name: str, work: str) -> float:
            process.stdin.write(json.dumps([name, work]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            yield ask
        finally:
            process.stdin.close()
            process.wait()
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def ceiling(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two 1024 x 1024 matrices, the best of a few."""
    left = torch.randn(1024, 1024, device=device, dtype=dtype)
    seconds = [measure(lambda _: left @ left, "", device) for _ in range(20)]
    return 2 * 1024**3 / min(seconds)


def count_flops(run: Callable[[str], None], work: str) -> int:
    """Of matrix products and attention, whose kernel on the CPU the counter does not know: by plain products."""
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        run(work)
    return counter.get_total_flops()


def profile_parts(run: Callable[[str], None], work: str) -> dict[str, float]:
    """Shares of the operators' own time: attention, matrix products, everything else."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        run(work)
    parts = {"attention": 0.0, "products": 0.0, "other": 0.0}
    for event in profiled.key_averages():
        attends, multiplies = "attention" in event.key, event.key in ("aten::mm", "aten::addmm", "aten::bmm")
        parts["attention" if attends else "products" if multiplies else "other"] += event.self_cpu_time_total
    return {part: value / sum(parts.values()) for part, value in parts.items()}


def rows_of(name: str, args: argparse.Namespace, others: dict[str, Callable[[str, str], float]], peak: float) -> list:
    settings = (name, args.device, getattr(torch, args.dtype), args.seed)
    load, rows = Workload(*settings), []
    blind = Workload(*settings, latent_visible_to_input=False) if args.blind_input else None
    plain, scale = load.plain()
    compiled = Workload(*settings) if args.compiled else None
    if compiled is not None:
        compiled.model.compile_search(**({"mode": "reduce-overhead"} if args.device == "cuda" else {}))
    for work in args.works:
        seconds: dict[str, list[float]] = {}
        for repeat in range(args.repeats + 1):
            runs = {"ours": measure(load.run, work, args.device)}
            runs |= {commit: ask(name, work) for commit, ask in others.items()}
            if blind is not None:
                runs["blind input"] = measure(blind.run, work, args.device)
            if compiled is not None and "search" in work:
                runs["compiled"] = measure(compiled.run, work, args.device)
            if args.plain and work in PLAIN_WORKS:
                runs["plain"] = measure(plain, work, args.device) * (scale if work == "generation" else 1.0)
            for key, value in runs.items():
                if repeat:  # the first round warms up
                    seconds.setdefault(key, []).append(value)
        with CountOperators() as operators:
            load.run(work)
        medians = {key: statistics.median(values) for key, values in seconds.items()}
        quarters = statistics.quantiles(seconds["ours"], n=4) if args.repeats > 1 else [0, 0, 0]
        flops = count_flops(load.run, work)
        row = {
            "shape": name,
            "work": work,
            "seconds": medians,
            "ratio": {key: value / medians["ours"] for key, value in medians.items() if key != "ours"},
            "spread": (quarters[2] - quarters[0]) / medians["ours"],
            "operators": operators.count,
            "flop_per_second": flops / medians["ours"],
            "of_ceiling": flops / medians["ours"] / peak,
            "parts": profile_parts(load.run, work) if args.device == "cpu" else None,
            "plain_scaled_by": scale if work == "generation" else 1.0,
            "all": seconds,
        }
        rows.append(row)
        star = "*" if work == "generation" and scale != 1 else " "
        ratios = "".join(f" {key} {value:.2f}x{star if key == 'plain' else ''}" for key, value in row["ratio"].items())
        parts = " ".join(f"{part} {share:.0%}" for part, share in (row["parts"] or {}).items())
        print(
            f"{name:12} {work:22} {medians['ours']:8.3f} s +-{row['spread']:4.0%} {operators.count:6d} operators "
            f"{row['of_ceiling']:5.0%} of ceiling {ratios}  {parts}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=[*SHAPES, *TINY])
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=[*WORKS, COMPILED_WORK])
    parser.add_argument("--against", nargs="+", default=[], metavar="COMMIT", help="earlier commits to compare with")
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain implementation")
    parser.add_argument("--blind-input", action="store_true", help="also time `latent_visible_to_input: false`")
    parser.add_argument("--compiled", action="store_true", help="also time searches by `LPNModel.compile_search`")
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each (median)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--num_threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    use_cpu_cores(args.num_threads)  # as the recipes do: freed memory is kept
    if args.worker:
        return worker(args)
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    if args.compiled:
        from modeling_lpn.runs import prepare_compilation  # here, since earlier commits have none

        prepare_compilation()
    peak = ceiling(args.device, getattr(torch, args.dtype))
    print(
        f"{hardware}, {args.dtype}, torch {torch.__version__}, {args.num_threads} threads, {peak / 1e9:.0f} GFLOP/s at most"
    )
    with contextlib.ExitStack() as stack:
        others = {commit: stack.enter_context(commit_process(commit, args)) for commit in args.against}
        rows = [row for name in args.shapes for row in rows_of(name, args, others, peak)]
    if args.output:
        write_results(
            args.output, args.seed, device=hardware, dtype=args.dtype, ceiling_flop_per_second=peak, rows=rows
        )
    return None


if __name__ == "__main__":
    main()
