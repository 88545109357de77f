"""Writes Re-ARC pairs as Parquet in the pair schema (task_id, input, output), with a held-out split and a card.

    python datasets_scripts/build_re_arc.py --source re_arc.zip --output re_arc --validation_rows 20

The source is Re-ARC's archive (or the folder it unpacks to) of `<task_id>.json` files, lists of {"input", "output"},
or a Parquet file of pairs. `PairTask` draws training tasks from the result.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dataset_card import add_output_arguments, check_output, push, table, write_card

from modeling_lpn.lpn.processing_lpn import validate_grid
from modeling_lpn.tasks.pairs import read_pairs


GRID = pa.list_(pa.list_(pa.uint8()))
SCHEMA = pa.schema([("task_id", pa.string()), ("input", GRID), ("output", GRID)])
TASK_FILE = re.compile(r"(?:^|/)([0-9a-f]{8})\.json$")
BODY = """
# Re-ARC pairs

Input/output pairs of the Re-ARC generators (Michael Hodel, arXiv 2404.07353, MIT licence), which re-create the 400
ARC-AGI-1 training tasks. One pair a row: `task_id`, `input`, `output` (`list<list<uint8>>`, colours 0 to 9).

{counts}

The validation split holds the last {validation_rows} pairs of every task. Left out: {excluded}. Keep in mind that task
40853293 equals the ARC-AGI-1 evaluation task 070dd51e.

## Source

`{source}`, converted by `datasets_scripts/build_re_arc.py`; every grid is checked to be a rectangle of colours
in range.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", type=Path, required=True, help=".zip, folder or .parquet")
    parser.add_argument("--validation_rows", type=int, default=20, help="last pairs of each task, default 20")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="TASK_ID", help="tasks to leave out")
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    check_output(parser, arguments)
    if not arguments.source.exists():
        parser.error(f"--source {arguments.source} does not exist; give a .zip, a folder or a .parquet file")
    if arguments.source.resolve().parent == arguments.output.resolve() and arguments.source.suffix == ".parquet":
        parser.error(
            f"--output {arguments.output} is the folder of --source, which might be overwritten; give another"
        )
    if arguments.validation_rows < 0:
        parser.error(f"--validation_rows is {arguments.validation_rows}; give 0 or more")
    return arguments


def json_texts(source: Path) -> Iterator[tuple[str, bytes]]:
    """(task id, file content) of every task file in a zip archive or folder, sorted by id."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*.json")]
        read = lambda name: (source / name).read_bytes()  # noqa: E731
    elif zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)
        names, read = archive.namelist(), archive.read
    else:
        raise SystemExit(f"{source} is neither a zip archive, a folder nor a .parquet file; give Re-ARC's archive")
    found = sorted((match[1], name) for name in names if "__MACOSX" not in name and (match := TASK_FILE.search(name)))
    if not found:
        raise SystemExit(f"{source} has no files named <8 hex digits>.json; give Re-ARC's archive or folder")
    for task_id, name in found:
        yield task_id, read(name)


def table_of_pairs(task_id: str, text: bytes) -> pa.Table:
    try:
        pairs = json.loads(text)
    except ValueError as error:
        raise SystemExit(f"{task_id}.json is not JSON ({error}); unpack the archive again") from error
    sides = ("input", "output")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) and {*sides} <= {*pair} for pair in pairs):
        raise SystemExit(f"{task_id}.json is not a list of input/output pairs; give Re-ARC's files, not ARC's")
    columns = {side: [] for side in sides}
    for index, pair in enumerate(pairs):
        for side, grids in columns.items():
            grids.append(validate_grid(pair[side], f"{task_id}.json, pair {index}, `{side}`").tolist())
    return pa.table({"task_id": [task_id] * len(pairs), **columns}, schema=SCHEMA)


def task_tables(source: Path) -> Iterator[tuple[str, pa.Table]]:
    """(task id, its pairs) for every task of the source, grids validated."""
    if source.suffix != ".parquet":
        for task_id, text in json_texts(source):
            yield task_id, table_of_pairs(task_id, text)
        return
    pairs = read_pairs(source)
    if (largest := max(pairs.inputs.shapes.max(), pairs.outputs.shapes.max())) > 30:
        raise SystemExit(
            f"{source} has a grid with a side of {largest} cells; ARC grids have at most 30, drop the row"
        )
    rows = pq.read_table(source, columns=SCHEMA.names).cast(SCHEMA).combine_chunks()
    order = np.argsort(pairs.task_index, kind="stable")
    borders = np.cumsum(np.bincount(pairs.task_index, minlength=len(pairs.task_ids)))[:-1]
    for task_id, chosen in zip(pairs.task_ids, np.split(order, borders), strict=True):
        yield task_id, rows.take(pa.array(chosen))


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    splits = ("train", "validation") if arguments.validation_rows else ("train",)
    # Under another name until all is written: an error half-way leaves no file that looks whole.
    partial = {name: arguments.output / f"{name}.parquet.partial" for name in splits}
    writers = {name: pq.ParquetWriter(path, SCHEMA, compression="zstd") for name, path in partial.items()}
    counts, left_out = {name: [0, 0] for name in splits}, set(arguments.exclude)
    for task_id, rows in task_tables(arguments.source):
        if task_id in arguments.exclude:
            left_out.discard(task_id)
            continue
        border = len(rows) - arguments.validation_rows
        if border < 1:
            raise SystemExit(f"Task {task_id} has {len(rows)} pairs; lower --validation_rows or --exclude the task")
        parts = {"train": rows[:border], "validation": rows[border:]}
        for name, writer in writers.items():
            writer.write_table(parts[name])
            counts[name] = [counts[name][0] + 1, counts[name][1] + len(parts[name])]
    for writer in writers.values():
        writer.close()
    if left_out:
        raise SystemExit(f"--exclude {sorted(left_out)[0]}: {arguments.source} has no such task; check the id")
    for name, path in partial.items():
        path.replace(arguments.output / f"{name}.parquet")
    print(*(f"{name}.parquet: {pairs} pairs of {tasks} tasks" for name, (tasks, pairs) in counts.items()), sep="\n")
    body = BODY.format(
        counts=table(["split", "tasks", "pairs"], [[name, *numbers] for name, numbers in counts.items()]),
        validation_rows=arguments.validation_rows,
        excluded=", ".join(arguments.exclude) or "no task",
        source=arguments.source.name,
    )
    write_card(arguments.output, "mit", {"default": {name: f"{name}.parquet" for name in splits}}, body)
    push(arguments.output, arguments)


if __name__ == "__main__":
    main()
