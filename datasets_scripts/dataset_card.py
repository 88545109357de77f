"""Writes the dataset card (README.md) that the Hub shows and from which `datasets.load_dataset` finds the files."""

from pathlib import Path


def write_card(folder: Path, license_name: str, files: dict[str, dict[str, str]], body: str) -> None:
    """
    Writes `folder/README.md`.

    Args:
        folder: Where the Parquet files lie.
        license_name: As the Hub spells it, e.g. `"apache-2.0"`.
        files: Configuration name -> split name -> file name relative to `folder`.
        body: The card's text in Markdown, starting with its title.
    """
    lines = ["---", f"license: {license_name}", "tags:", "- arc-agi", "- program-synthesis", "configs:"]
    for config, splits in files.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, name in splits.items():
            lines += [f"  - split: {split}", f"    path: {name}"]
    (folder / "README.md").write_text("\n".join(lines) + f"\n---\n\n{body.strip()}\n", encoding="utf-8")


def table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
