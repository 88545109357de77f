"""
Times how a trained model writes its output grids: cell by cell against passes over drafted cells (speculative decoding), in
processor seconds of one run, and checks that the grids are the same.

    python recipes/benchmarks/decoding.py --model_name_or_path outputs/re_arc_small --tasks arcagi:training --num_tasks 50

How many cells a pass settles is a matter of the model and of the tasks: a model that has learned nothing says nothing here.
"""

import dataclasses
import time
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from modeling_lpn.arguments import option, parse_recipe
from modeling_lpn.lpn.plan_lpn import grouping_of
from modeling_lpn.lpn.transformer_lpn import LPNDecoder
from modeling_lpn.runs import load_pretrained, run_recipe, use_cpu_cores, write_results
from modeling_lpn.tasks.arc import load_tasks
from modeling_lpn.tasks.arguments import make_task, task_arguments
from modeling_lpn.tasks.generators import TASK_GENERATORS
from modeling_lpn.tasks.stream import TaskStream, tasks_from_stream


@dataclasses.dataclass
class BenchmarkArguments:
    model_name_or_path: str = option(dataclasses.MISSING, "Folder or Hub name of the model.")
    tasks: str = option("arcagi:training", "A source like arcagi:training, a file, a folder, or a task generator.")
    num_tasks: int = option(50, "So many of them, spread evenly.")
    batch_sizes: list[int] = option([1, 8, 50], "Grids written at a time.")
    num_steps: int = option(5, "Gradient steps of the search before.")
    repeats: int = option(3, "Alternating repetitions; the median counts.")
    seed: int = option(0, "Seed of generated tasks.")
    output: str = option("outputs/benchmark_decoding.json", "File to write.")
    num_threads: int = option(1, "CPU threads.")


def read_tasks(args, task_args, processor) -> list[dict]:
    if args.tasks in TASK_GENERATORS:
        stream = TaskStream(make_task(args.tasks, task_args), args.num_tasks, args.seed)
        return tasks_from_stream(stream, args.num_tasks)
    tasks = load_tasks(args.tasks, None, processor)
    return tasks[:: max(1, len(tasks) // args.num_tasks)][: args.num_tasks]


def write_grids(model, latents, grids, shapes, batch_size: int, speculate: bool) -> tuple[float, list[torch.Tensor]]:
    """Processor seconds, and what was written for queries `(tasks, rows, cols)`."""
    written, start = [], time.process_time()
    for first in range(0, len(grids), batch_size):
        part = slice(first, first + batch_size)
        sizes = torch.stack([shapes[part], torch.ones_like(shapes[part])], 1).numpy()
        grouping = grouping_of(sizes, grids.device, written=True)
        for own, extent, *_ in grouping.groups:
            batch = (latents[part][own], grids[part][own], shapes[part][own], extent, grids[part][own])
            written += model.decoder.generate(*batch, speculate=speculate)
    return time.process_time() - start, written


def measure(model, batch, latents, batch_size: int, repeats: int) -> dict:
    grids, shapes = batch["query_grids"][:, 0], batch["query_shapes"][:, 0]
    passes, predict = [], LPNDecoder._predict
    seconds: dict[bool, list[float]] = {False: [], True: []}
    try:
        LPNDecoder._predict = lambda self, *rest: passes.append(1) or predict(self, *rest)
        for _ in range(repeats + 1):
            (by_steps, expected), (by_passes, written) = (
                write_grids(model, latents, grids, shapes, batch_size, speculate) for speculate in (False, True)
            )
            seconds[False].append(by_steps)
            seconds[True].append(by_passes)
    finally:
        LPNDecoder._predict = predict
    same = all(torch.equal(one, other) for one, other in zip(expected, written, strict=True))
    ratios = [steps / by_passes for steps, by_passes in zip(seconds[False][1:], seconds[True][1:], strict=True)]
    cells = sum(int(shape.prod(-1).sum()) for shape in written[1::2])
    return {
        "batch_size": batch_size,
        "seconds_by_steps": sorted(seconds[False][1:])[repeats // 2],
        "seconds_by_passes": sorted(seconds[True][1:])[repeats // 2],
        "ratio": sorted(ratios)[repeats // 2],
        "ratios": ratios,
        "cells": cells,
        "passes": len(passes) // (repeats + 1),
        "same_grids": same,
    }


def main():
    args, task_args = parse_recipe([BenchmarkArguments, task_arguments()])
    use_cpu_cores(args.num_threads)
    model = load_pretrained(AutoModel.from_pretrained, args.model_name_or_path).eval()
    processor = load_pretrained(AutoProcessor.from_pretrained, args.model_name_or_path)
    batch = processor(read_tasks(args, task_args, processor), return_tensors="pt")
    names = ("input_grids", "output_grids", "input_shapes", "output_shapes", "pair_mask")
    found = model.search(**{name: batch[name] for name in names if name in batch}, num_steps=args.num_steps)
    rows = [measure(model, batch, found.latents[:, 0], size, args.repeats) for size in args.batch_sizes]
    write_results(Path(args.output), args.seed, arguments=vars(args), rows=rows)
    for row in rows:
        print(
            f"{row['batch_size']:3d} at a time: {row['seconds_by_steps']:.2f} s by steps, {row['seconds_by_passes']:.2f} s by "
            f"passes, {row['ratio']:.2f}x; {row['cells']} cells in {row['passes']} passes, the same: {row['same_grids']}"
        )


if __name__ == "__main__":
    run_recipe(main)
