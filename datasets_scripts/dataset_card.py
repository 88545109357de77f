"""Writes the dataset card (README.md) that the Hub shows and from which `datasets.load_dataset` finds the files."""

import argparse
from pathlib import Path


GRID_TAGS = ("arc-agi", "program-synthesis")


def write_card(
    folder: Path, license_name: str, files: dict[str, dict[str, str]], body: str, tags: tuple[str, ...] = GRID_TAGS
) -> None:
    """
    Writes `folder/README.md`.

    Args:
        folder: Where the Parquet files lie.
        license_name: As the Hub spells it, e.g. `"apache-2.0"`.
        files: Configuration name -> split name -> file name relative to `folder`.
        body: The card's text in Markdown, starting with its title.
        tags: What the Hub finds the data by.
    """
    lines = ["---", f"license: {license_name}", "tags:", *(f"- {tag}" for tag in tags), "configs:"]
    for config, splits in files.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, name in splits.items():
            lines += [f"  - split: {split}", f"    path: {name}"]
    (folder / "README.md").write_text("\n".join(lines) + f"\n---\n\n{body.strip()}\n", encoding="utf-8")


def table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """`--output` and `--overwrite`, for [`check_output`]; `--push_to_hub` and `--public`, for [`push`]."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier build in --output")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="publish the folder as this data set, privately")
    parser.add_argument("--public", action="store_true", help="publish it for everybody")


def check_output(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the command where `--output` is no folder, or holds a data set (its card or Parquet files) and may not be replaced."""
    folder = arguments.output
    if folder.exists() and not folder.is_dir():
        parser.error(f"--output {folder} is a file; give a folder")
    found = sorted(path.name for pattern in ("README.md", "*.parquet") for path in folder.glob(pattern))
    if found and not arguments.overwrite:
        parser.error(f"--output {folder} has {found[0]} already; give another folder, or --overwrite")


def push(folder: Path, arguments: argparse.Namespace) -> None:
    """Publishes a folder that was written, where `--push_to_hub` asks for it."""
    if not arguments.push_to_hub:
        return
    from modeling_lpn.hub import publish_dataset  # takes seconds to import: only who publishes waits for it

    try:
        print(f"published: {publish_dataset(folder, arguments.push_to_hub, private=not arguments.public).url}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"{folder} is written, but not published: {error}") from error
