"""Times the task generators: tasks of five pairs for a second of processor time, on one core.

python recipes/benchmarks/generators.py --output results/benchmark_generators.json
"""

import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np

from modeling_lpn.arguments import option, parse_recipe
from modeling_lpn.runs import run_recipe, write_results
from modeling_lpn.tasks.generators import TASK_GENERATORS


@dataclasses.dataclass
class BenchmarkArguments:
    generators: list[str] = option(["pattern", "sequence", "string", "list"], "Keys of TASK_GENERATORS.")
    num_pairs: int = option(5, "Pairs of a task.")
    num_tasks: int = option(512, "Tasks drawn at a time.")
    repeats: int = option(9, "Draws; the median counts.")
    seed: int = option(0, "Seed of the tasks.")
    output: str = option("outputs/benchmark_generators.json", "File to write.")


def time_generator(name: str, args) -> float:
    task, rng, seconds = TASK_GENERATORS[name](num_pairs=args.num_pairs), np.random.default_rng(args.seed), []
    for _ in range(args.repeats + 1):
        start = time.process_time()  # not wall time: the core may be shared
        task.sample(args.num_tasks, rng)
        seconds.append(time.process_time() - start)
    return args.num_tasks / statistics.median(seconds[1:])


def main():
    (args,) = parse_recipe([BenchmarkArguments])
    rates = {name: round(time_generator(name, args)) for name in args.generators}
    write_results(Path(args.output), args.seed, arguments=vars(args), tasks_per_second=rates)
    print("\n".join(f"{name}: {rate} tasks a second" for name, rate in rates.items()))


if __name__ == "__main__":
    run_recipe(main)
