"""Dataset cards as the tests read them."""

from pathlib import Path

import yaml


ROOT = Path(__file__).parents[1]
TASK = {"train": [{"input": [[1, 2]], "output": [[3]]}], "test": [{"input": [[4]]}]}


def card_header(folder):
    """The YAML block of a dataset card; its files must exist."""
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    for config in header["configs"]:
        for data_file in config["data_files"]:
            assert (folder / data_file["path"]).is_file()
    return header, body
