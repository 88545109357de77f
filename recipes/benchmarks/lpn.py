"""
Times LPN against a plain implementation of the same model (naive_lpn.py: padded, uncached, same weights) in one run.

    python recipes/benchmarks/lpn.py --output outputs/benchmark_lpn.json

Shapes: `pattern` is the model of Table 13 on 10x10 grids; `arc` the 44.6M-parameter model of Table 16 on grids whose sides
are drawn from 5 to 20. Every figure is the median of alternating runs. The plain generation at the `arc` shape would take
many minutes: it is timed for a few of its 902 identical forwards and scaled up, which the table marks with a star.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import yaml
from naive_lpn import NaiveLPN

from modeling_lpn import LPNConfig, LPNModel, SearchConfig
from modeling_lpn.runs import write_results


ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    # recipe, sides of the grids, tasks in a training step, tasks in a search step and a generation
    "pattern": ("pattern.yaml", (10, 10), 128, 16),
    "arc": ("arc.yaml", (5, 20), 1, 1),
}
PAIRS = {"pattern": 4, "arc": 3}
SEARCH_STEPS = {"pattern": 5, "arc": 2}


def load_config(recipe: str) -> LPNConfig:
    """The model of a recipe: those of its keys that are fields of the configuration."""
    settings = yaml.safe_load((ROOT / "recipes" / "lpn" / recipe).read_text())
    known = {name: value for name, value in settings.items() if name in LPNConfig.__annotations__}
    # YAML alone reads `1e-4` as text; the default of a field has its type.
    return LPNConfig(**{name: type(getattr(LPNConfig, name))(value) for name, value in known.items()})


def draw_tasks(batch: int, num_pairs: int, sides: tuple[int, int], device: str):
    """Random grids with random sides: demonstrations with a task axis."""
    shapes = torch.randint(sides[0], sides[1] + 1, (2, batch, num_pairs, 2))
    grids = torch.randint(0, 10, (2, batch, num_pairs, sides[1], sides[1]))
    return [tensor.to(device) for tensor in (grids[0], grids[1], shapes[0], shapes[1])]


def workloads(name: str, device: str, dtype: torch.dtype):
    """Pairs of functions that do the same work, ours and plain, with the factor that scales the plain one up."""
    recipe, sides, train_batch, search_batch = SHAPES[name]
    model = LPNModel(load_config(recipe)).to(device, dtype)
    naive, steps = NaiveLPN(model), SEARCH_STEPS[name]
    train_tasks = draw_tasks(train_batch, PAIRS[name], sides, device)
    tasks = draw_tasks(search_batch, PAIRS[name], sides, device)
    latents = torch.randn(search_batch, 1, model.config.latent_dim, device=device, dtype=dtype)
    query, shapes = tasks[0][:, 0], tasks[2][:, 0]

    def train(loss):
        model.zero_grad()
        loss.backward()

    def search():
        return model.search(*tasks, search_config=SearchConfig(num_steps=steps))

    def plain_search():
        with torch.no_grad():
            encoded = naive.encode(*(tensor.flatten(0, 1) for tensor in tasks))
        current = encoded.unflatten(0, (search_batch, PAIRS[name])).mean(1)
        for step in range(steps + 1):
            current = current.detach().requires_grad_()
            value = naive.task_log_prob(current, *tasks)
            if step < steps:
                current = current + 0.1 * torch.autograd.grad(value.sum(), current)[0]

    forwards = model.config.max_rows * model.config.max_cols + 2
    timed = forwards if name == "pattern" else 3
    return {
        "training step": (
            lambda: train(model(*train_tasks).loss),
            lambda: train(naive.loss(*train_tasks)),
            1.0,
        ),
        f"search, {steps} gradient steps": (search, plain_search, 1.0),
        "generation": (
            lambda: model.execute(latents, query.unsqueeze(1), shapes.unsqueeze(1)),
            lambda: naive.generate(latents[:, 0], query, shapes, max_forwards=timed),
            forwards / timed,
        ),
    }


def measure(function, device: str) -> float:
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each (median)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    hardware = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"{os.cpu_count()} x {platform.machine()} CPU"
    )
    print(f"{hardware}, {args.dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads, seed {args.seed}")
    print(f"{'shape':8} {'work':26} {'ours s':>10} {'plain s':>10} {'ratio':>8}")
    rows = []
    for name in args.shapes:
        for work, (ours, plain, scale) in workloads(name, args.device, getattr(torch, args.dtype)).items():
            seconds = {"ours": [], "plain": []}
            for repeat in range(args.repeats + 1):
                for key, function in (("ours", ours), ("plain", plain)):
                    if repeat:
                        seconds[key].append(measure(function, args.device))
                    else:
                        measure(function, args.device)  # the first round warms up
            ours_s, plain_s = statistics.median(seconds["ours"]), statistics.median(seconds["plain"]) * scale
            row = {"shape": name, "work": work, "ours_s": ours_s, "plain_s": plain_s, "scaled_by": scale}
            rows.append(row | {"all": seconds})
            mark = "*" if scale != 1 else " "
            print(f"{name:8} {work:26} {ours_s:10.3f} {plain_s:9.3f}{mark} {plain_s / ours_s:7.1f}x", flush=True)
    if args.output:
        write_results(args.output, args.seed, device=hardware, dtype=args.dtype, rows=rows)


if __name__ == "__main__":
    main()
