"""JSON and YAML files that may come from anybody: limited in size and depth, and nothing in them is built or expanded."""

import json
from pathlib import Path
from typing import Any

import yaml


MAX_BYTES = {".yaml": 2**19, ".json": 50 * 2**20}  # results of thousands of tasks stay far below; YAML is slow to read


class NoAliases:
    """For a class before a PyYAML loader: aliases are refused, of which a few lines stand for billions of values."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # type: ignore[attr-defined]
            event = self.peek_event()  # type: ignore[attr-defined]
            raise yaml.composer.ComposerError(
                None, None, f"it has the alias *{event.anchor}; write out what it stands for", event.start_mark
            )
        return super().compose_node(parent, index)  # type: ignore[misc]


class PlainLoader(NoAliases, yaml.SafeLoader):
    """Builds texts, numbers, dates, lists and dictionaries."""


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def parse_yaml(path: Path, loader: type = PlainLoader) -> Any:
    """
    The content of a YAML file.

    Args:
        path (`Path`): of the file.
        loader (`type`): a PyYAML loader, [`NoAliases`] among its classes.

    Raises:
        ValueError: it is larger than 512 KiB, no YAML in UTF-8, nested too deeply, or has an alias or a tag that would
            build anything else than data.
    """
    return _parse(path, ".yaml", lambda text: yaml.load(text, Loader=loader))  # noqa: S506 (a safe one, see above)


def parse_json(path: Path) -> Any:
    """The content of a JSON file. Raises `ValueError`: it is larger than 50 MiB, no JSON in UTF-8, or nested too deeply."""
    return _parse(path, ".json", json.loads)


def _parse(path: Path, kind: str, parse) -> Any:
    if (size := path.stat().st_size) > MAX_BYTES[kind]:
        raise ValueError(
            f"{path} has {size:,} bytes, more than {MAX_BYTES[kind]:,}: it is no {kind[1:]} file of a model; remove it"
        )
    try:
        return parse(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read: it is nested too deeply") from error
    except (ValueError, LookupError, AttributeError, TypeError, yaml.YAMLError) as error:  # of a wrong `!!bool`, ...
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_file(path: Path) -> dict[str, Any]:
    """The object in a JSON or YAML file, by its name. Raises `ValueError` as [`parse_yaml`], and where it is no object."""
    content = (parse_yaml if path.suffix == ".yaml" else parse_json)(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected are names and values")
    return content


def to_yaml(content: Any) -> str:
    """YAML that [`parse_yaml`] reads."""
    return yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


__all__ = ["NoAliases", "PlainLoader", "parse_json", "parse_yaml", "read_file", "to_yaml"]
