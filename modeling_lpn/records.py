"""Records of long evaluations on disk, from which a stopped one goes on."""

import hashlib
import json
import os
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list


# What a configuration says of files and versions, and how to search, which is recorded beside it.
_MEANS_NOTHING = (
    "architectures",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "search",
    "transformers_version",
    "_name_or_path",
)


def model_digest(model) -> str:
    """A digest of a model's weights and of the settings that are no weights, the same on every machine."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _MEANS_NOTHING}
    weights = {name: _checksum(weight) for name, weight in model.state_dict().items()}
    return text_digest(json.dumps([config, weights], default=str, sort_keys=True))


def text_digest(text: str) -> str:
    """A digest of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _checksum(weight) -> int:
    """Of the bits, as integers: the same on every machine."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(weight.detach().contiguous().view(kinds[weight.element_size()]).sum(dtype=torch.int64))


class RecordStore:
    """
    Results of hours of work in a file of JSON lines, appended as they come: a call after a kill goes on from them.

    Every further process of a launch has a file of its own beside it while it works; any number of processes may go on.

    Args:
        path (`str` or path): the `.jsonl` file; what the records depend on is kept beside it in `.settings.json`.
        settings (`dict`): what they depend on, among it digests of the model and of the work.
        key (`tuple[str, ...]`): the fields that tell records apart.
        fields (`tuple[str, ...]`): the other fields of a whole record.
    """

    def __init__(self, path: str | os.PathLike, settings: dict, key: tuple[str, ...], fields: tuple[str, ...]):
        self.path, self.key, self.fields, self.state = Path(path), key, fields, PartialState()
        self.settings = json.loads(json.dumps(settings, default=repr))  # as the file will give them back
        path = self.path
        self.settings_path = path.with_suffix(".settings.json")
        rank = self.state.process_index
        self.own = path if rank == 0 else path.with_suffix(f".rank{rank}.jsonl")

    def open(self) -> dict:
        """The records that there are, by their key, the same in every process; `ValueError` for those of other settings."""
        known, error = {}, None
        if self.state.is_main_process:
            try:
                known = self._collect()
            except ValueError as problem:  # every process must hear of it, or the others would wait for ever
                error = problem
        known, error = broadcast_object_list([known, error]) if self.state.num_processes > 1 else (known, error)
        if error is not None:
            raise error
        return known

    def key_of(self, record: dict) -> tuple:
        """What tells a record from others."""
        return tuple(record[name] for name in self.key)

    def _collect(self) -> dict:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = [path for path in (self.path, *self._other_parts()) if path.exists()]
        if parts and self.settings_path.exists():
            before = json.loads(self.settings_path.read_text())
            other = [name for name, value in self.settings.items() if before.get(name) != value]
            if other:
                raise ValueError(
                    f"{self.path} holds records made with {other[0]} {before.get(other[0])!r}, now it is "
                    f"{self.settings[other[0]]!r}; give another output folder, or delete the file"
                )
        self.settings_path.write_text(json.dumps(self.settings, indent=1) + "\n")
        known = {}
        for path in parts:
            for record in read_records(path, {*self.key, *self.fields}):
                known.setdefault(self.key_of(record), record)
        self._write(known)
        return known

    def _other_parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.rank*.jsonl"))

    def _write(self, known) -> None:
        new = self.path.with_suffix(".tmp")
        new.write_text("".join(json.dumps(record) + "\n" for record in known.values()))
        os.replace(new, self.path)
        for path in self._other_parts():
            path.unlink()

    def append(self, records) -> None:
        """Keeps new records of this process."""
        with open(self.own, "a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))

    def close(self, known) -> None:
        """Writes all records, by their key, in order into the one file."""
        if self.state.is_main_process:
            self._write(dict(sorted(known.items())))
        self.state.wait_for_everyone()


def read_records(path: str | os.PathLike, fields: set[str]) -> list[dict]:
    """
    Reads the whole records of a file of JSON lines.

    Args:
        path (`str` or path): see [`RecordStore`].
        fields (`set[str]`): what a whole record has.

    Returns:
        `list[dict]`: the records; what an interruption left of a line is skipped.
    """
    records = []
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and fields <= set(record):
            records.append(record)
    return records


__all__ = ["RecordStore", "model_digest", "read_records", "text_digest"]
