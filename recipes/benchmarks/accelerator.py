"""
Both families on one device: absolute times, memory and share of the device's peak, eager and compiled.

    python recipes/benchmarks/accelerator.py --seconds 110 --output outputs/benchmark_accelerator.json

The models and batches are those of the recipes. A row is the median of steps behind a warm-up, whose seconds (compilation
included) stand beside it. Floating-point operations are counted by torch, attention included; the peak is what a large
matrix product of the same type reaches here in the same run. Cases come in order of their weight and are written one by
one; what `--seconds` leaves no time for is listed as not measured, and what fails keeps its error.

Modes: `layers` compiles every transformer layer, `model` compiles the whole with CUDA graphs (`reduce-overhead`).
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from codegen2 import make_step
from lpn import load_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM, LPNModel, SearchConfig
from modeling_lpn.lpn.plan_lpn import GridPlan
from modeling_lpn.runs import prepare_compilation, write_results


ROOT = Path(__file__).resolve().parents[2]
MODES = ("eager", "layers", "model")


class Work(NamedTuple):
    """A model on the device, what to do with it once, and how many tasks or tokens that is."""

    model: torch.nn.Module
    step: Callable[[torch.nn.Module], None]
    items: int
    unit: str


def settings_of(recipe: str) -> dict:
    return yaml.safe_load((ROOT / "recipes" / recipe).read_text())


def grid_batch(config, tasks: int, pairs: int, device: str, smallest_side: int | None = None) -> dict:
    """Random demonstrations with their plan: full grids, or sides drawn from `smallest_side` on."""
    sides = np.array([config.max_rows, config.max_cols])
    low = sides if smallest_side is None else np.full(2, smallest_side)
    rng = np.random.default_rng(0)
    shapes = [rng.integers(low, sides + 1, (tasks, pairs, 2)) for _ in range(2)]
    grids = [rng.integers(0, min(10, config.vocab_size), (tasks, pairs, *sides)) for _ in range(2)]
    mask = np.ones((tasks, pairs), dtype=bool)
    names = ("input_grids", "output_grids", "input_shapes", "output_shapes", "pair_mask")
    tensors = (torch.from_numpy(array).to(device) for array in (*grids, *shapes, mask))
    return {**dict(zip(names, tensors, strict=True)), "plan": GridPlan(*shapes, mask, config.vocab_size)}


def with_optimizer(model: torch.nn.Module, loss: Callable[[torch.nn.Module], torch.Tensor]):
    """A whole training step: loss, gradients, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(called: torch.nn.Module) -> None:
        loss(called).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def lpn_work(recipe: str, kind: str, device: str, tiny: bool, smallest_side: int | None = None) -> Work:
    """`training`, `search` (20 gradient steps) or `generation` of the model of a recipe."""
    settings = settings_of(f"lpn/{recipe}.yaml")
    config = load_config(f"{recipe}.yaml")
    model = LPNModel(config).to(device)
    tasks = 2 if tiny else settings["per_device_train_batch_size"]
    batch = grid_batch(config, tasks, 2 if tiny else settings.get("task_num_pairs", 4), device, smallest_side)
    if kind == "training":
        prefix = "train_search_"
        search = {
            n.removeprefix(prefix): v for n, v in settings.items() if n.startswith(prefix) and n != f"{prefix}from"
        }
        loss = lambda called: called(**batch, search_config=SearchConfig(**search) if search else None).loss  # noqa: E731
        return Work(model.train(), with_optimizer(model, loss), tasks, "tasks")
    if kind == "search":
        search = SearchConfig(num_steps=1 if tiny else 20, lr=0.1)
        return Work(model.eval(), lambda _: model.search(**batch, search_config=search), tasks, "tasks")
    latents = torch.randn(tasks, 1, config.latent_dim, device=device)
    queries = {"query_grids": batch["input_grids"][:, :1], "query_shapes": batch["input_shapes"][:, :1]}
    return Work(model.eval(), torch.no_grad()(lambda _: model.execute(latents, **queries)), tasks, "tasks")


def codegen2_work(case: str, device: str, tiny: bool) -> Work:
    """The model of small_10m.yaml: `training` on its batch, or a case of codegen2.py."""
    settings = settings_of("codegen2/small_10m.yaml")
    sizes = {name: settings[name] for name in ("n_embd", "n_layer", "n_head", "rotary_dim")}
    sizes |= {"n_layer": 1, "n_embd": 64, "n_head": 2, "rotary_dim": 16} if tiny else {}
    length = 32 if tiny else settings["max_length"]
    # `make_step` draws token ids up to 50,000.
    vocabulary = 51200 if case != "training" else 8192
    model = CodeGen2ForCausalLM(CodeGen2Config(vocab_size=vocabulary, n_positions=max(length, 256), mp_num=1, **sizes))
    model = model.to(device)
    if case != "training":
        step = make_step(model, case, device)
        return Work(model, lambda _: step(), 64, "tokens")
    rows = 1 if tiny else settings["per_device_train_batch_size"]
    ids = torch.randint(3, 8192, (rows, length), device=device)
    loss = lambda called: called(ids, labels=ids, use_cache=False).loss  # noqa: E731
    return Work(model.train(), with_optimizer(model, loss), rows * length, "tokens")


WORKS = {
    "pattern_2d training": partial(lpn_work, "pattern_2d", "training"),
    "pattern training": partial(lpn_work, "pattern", "training"),
    "strings_gpu training": partial(lpn_work, "strings_gpu", "training", smallest_side=1),
    "codegen2_small training": partial(codegen2_work, "training"),
    "pattern search": partial(lpn_work, "pattern", "search"),
    "pattern generation": partial(lpn_work, "pattern", "generation"),
    "arc training": partial(lpn_work, "arc", "training", smallest_side=5),
    "arc search": partial(lpn_work, "arc", "search", smallest_side=5),
    "codegen2_small decoding": partial(codegen2_work, "decode-1-static"),
}
CASES = [
    *itertools.product(["pattern_2d training", "pattern training"], ["float32"], MODES),
    *itertools.product(["codegen2_small training"], ["bfloat16"], ["eager", "model"]),
    *itertools.product(["strings_gpu training"], ["bfloat16"], ["eager", "layers"]),
    *itertools.product(["pattern search", "pattern generation"], ["float32", "bfloat16"], ["eager"]),
    ("pattern_2d training", "bfloat16", "eager"),
    ("pattern training", "bfloat16", "eager"),
    ("arc training", "bfloat16", "eager"),
    ("arc search", "bfloat16", "eager"),
    ("codegen2_small training", "float32", "eager"),
    ("codegen2_small decoding", "bfloat16", "eager"),
    ("arc training", "bfloat16", "layers"),
]
TINY_CASES = [(name, "float32", "eager") for name in WORKS if not name.startswith("arc")]
TINY_CASES += [("pattern_2d training", "bfloat16", "eager")]


def clock(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(dtype: torch.dtype, device: str, side: int) -> float:
    """Operations a second of one large matrix product."""
    first, second = torch.randn(2, side, side, device=device, dtype=dtype)
    product = partial(torch.mm, first, second)
    product()
    return 2 * side**3 / statistics.median(clock(product, device) for _ in range(5))


def count_flops(step: Callable[[], None], device: str) -> int:
    """Operations of a step. torch knows those of CUDA's attention kernels; on a CPU the plain products are counted."""
    kernel = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()
    with kernel, FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure(name: str, dtype: str, mode: str, device: str, tiny: bool, steps: int) -> dict:
    """One row; float32 weights, computed under autocast where `dtype` is bfloat16."""
    torch.compiler.reset()
    prepare_compilation()
    work = WORKS[name](device=device, tiny=tiny)
    cast = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    with cast:
        flops = count_flops(partial(work.step, work.model), device)
        called = work.model
        if mode == "layers":
            work.model.compile_layers()
        elif mode == "model":
            called = torch.compile(work.model, mode="reduce-overhead")
        step = partial(work.step, called)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        warm_up = sum(clock(step, device) for _ in range(1 if tiny else 3))
        times = [clock(step, device) for _ in range(steps)]
    seconds = statistics.median(times)
    row = {"seconds": seconds, "all": times, "warm_up_seconds": warm_up, "flops": flops}
    row |= {"flops_per_second": flops / seconds, f"{work.unit}_per_second": work.items / seconds}
    return row | {"peak_mb": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=110.0, help="no case begins after so many")
    parser.add_argument("--steps", type=int, default=10, help="steps behind a median")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small batches, nothing compiled: a try on a CPU")
    parser.add_argument(
        "--only", nargs="+", metavar="WORK", help="works to measure, e.g. 'pattern training'; all if not given"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="ways to run them")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_accelerator.json"))
    args = parser.parse_args()
    start, side = time.perf_counter(), 256 if args.tiny else 8192
    if unknown := set(args.only or ()) - WORKS.keys():
        parser.error(f"there is no work {sorted(unknown)[0]!r}; known: {', '.join(WORKS)}")
    cases = [
        case
        for case in (TINY_CASES if args.tiny else CASES)
        if case[0] in (args.only or WORKS) and case[2] in args.modes
    ]
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    peaks = {name: peak_flops(getattr(torch, name), args.device, side) for name in ("float32", "bfloat16")}
    result = {"device": machine, "tiny": args.tiny, "peak_flops_per_second": peaks, "rows": [], "not_measured": []}
    print(f"{machine}; peak {', '.join(f'{peak / 1e12:.3g} TFLOP/s in {name}' for name, peak in peaks.items())}")
    print(
        f"{'work':24} {'type':9} {'mode':7} {'ms':>9} {'items/s':>10} {'peak MB':>8} {'of peak':>8} {'warm-up s':>9}"
    )
    for name, dtype, mode in cases:
        row = {"work": name, "dtype": dtype, "mode": mode}
        if time.perf_counter() - start > args.seconds:
            result["not_measured"].append(row)
            continue
        try:
            row |= measure(name, dtype, mode, args.device, args.tiny, 2 if args.tiny else args.steps)
        except Exception as error:  # what one case cannot do must not cost the others
            row["error"] = f"{type(error).__name__}: {str(error).strip()[:2000]}"
            print(f"{name:24} {dtype:9} {mode:7} {row['error'].splitlines()[0][:120]}", flush=True)
        else:
            row["share_of_peak"] = row["flops_per_second"] / peaks[dtype]
            items = next(value for key, value in row.items() if key in ("tasks_per_second", "tokens_per_second"))
            print(
                f"{name:24} {dtype:9} {mode:7} {1e3 * row['seconds']:9.2f} {items:10.0f} {row['peak_mb'] or 0:8.0f} "
                f"{100 * row['share_of_peak']:7.1f}% {row['warm_up_seconds']:9.1f}",
                flush=True,
            )
        result["rows"].append(row)
        write_results(args.output, 0, **result)
    if result["not_measured"]:
        print(f"{len(result['not_measured'])} cases were not begun within {args.seconds:g} s")
        write_results(args.output, 0, **result)


if __name__ == "__main__":
    main()
