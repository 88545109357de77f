"""Writes the dataset card (README.md) that the Hub shows and from which `datasets.load_dataset` finds the files."""

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
