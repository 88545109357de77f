"""
Code corpora for training: Parquet, JSON or JSON lines files, or Hub data sets, tokenised once or as they stream.

Whatever a source looks like, its rows come out as `text` and `path`. Rows without a text are skipped and counted.
"""

import functools
import hashlib
import importlib.util
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from ..codegen2.infilling_codegen2 import InfillFormat, encode_sources, find_format
from ..optional import require
from .packing import TokenizedDocuments


logger = logging.getLogger(__name__)
STREAM_BATCH = 64  # files that are tokenised together, on all cores, while a source streams
# Tried in this order where no column is named.
TEXT_COLUMNS = ("text", "content", "code")
PATH_COLUMNS = ("path", "file_path", "max_stars_repo_path")
KINDS = {".parquet": "Parquet", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON"}
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"(\xb5/\xfd": "zstd", b"BZh": "bz2"}
HUB_SETTINGS = {"config": "name", "split": "split", "data_dir": "data_dir", "revision": "revision"}
SHOWN = 3  # skipped rows of each reason that a message names


def split_source(source: str) -> tuple[str, str]:
    """
    The name and the place of a source.

    Args:
        source (`str`): `PLACE` or `NAME=PLACE`. A place is

            - a Parquet, JSON lines or JSON file, which may be compressed (gzip, bz2, zstd), a pattern of such files
              (`data/*.jsonl.gz`), or a folder of them;
            - `hub:ID`, with `:SPLIT` or `:CONFIG:SPLIT` behind it, or `?` and any of `config`, `split`, `data_dir` and
              `revision`: `hub:bigcode/the-stack?data_dir=data/python&revision=v1.1`. The split is `train` if not given.

            Without a name it is called after its file, folder or data set.

    Returns:
        `tuple[str, str]`: name and place.

    Example:

    ```python
    >>> from modeling_lpn.code.corpora import split_source

    >>> split_source("outputs/stdlib/train.parquet"), split_source("docs=data/rst.parquet"), split_source("hub:me/code")
    (('stdlib', 'outputs/stdlib/train.parquet'), ('docs', 'data/rst.parquet'), ('code', 'hub:me/code'))

    ```
    """
    named = re.match(r"([\w.-]+)=(.+)", source)
    if named:
        return named[1], named[2]
    if source.startswith("hub:"):
        return re.split("[:?]", source)[1].split("/")[-1], source
    path = Path(source)
    stem = path.name.split(".")[0] or path.name
    return (path.parent.name or stem) if stem in ("train", "validation", "test") or "*" in stem else stem, source


def load_corpus(source: str, text_column: str | None = None, streaming: bool = False):
    """
    Opens a source.

    Null and empty texts, bytes that are no UTF-8 and rows without the column are skipped; how many of each, with the file
    and the number of the first ones, is logged as a warning whenever the source is opened.

    Args:
        source (`str`): see [`split_source`].
        text_column (`str`, *optional*): the column of file contents; by default the first one there is of `text`,
            `content` and `code`. Names are taken from a column `path` (or `file_path`, `max_stars_repo_path`).
        streaming (`bool`, defaults to `False`): whether to read it from the front as it is needed.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: rows of `text` and `path`, which is the file and the row's number
        where the source names none.

    Raises:
        FileNotFoundError: for a place where no such file is.
        ValueError: for a place that could mean several things, a file that cannot be read, a column that is missing or
            holds something else than text, and a source all of whose rows are skipped.
        ImportError: where `datasets` is not installed.
    """
    datasets, place = require("datasets", "data", "Reading corpora"), split_source(source)[1]
    opened = _open_hub(place) if place.startswith("hub:") else _open_files(place)
    if "hub" in opened:
        opened["hub"]["streaming"] = streaming
        opened["fingerprint"] = None if streaming else datasets.load_dataset(**opened["hub"])._fingerprint
    key = json.dumps([opened, text_column], sort_keys=True)
    features = datasets.Features({"text": datasets.Value("string"), "path": datasets.Value("string")})
    if streaming:
        next(_clean_rows(key), None)  # a fault in the first rows shows at once
        return datasets.IterableDataset.from_generator(_clean_rows, features, gen_kwargs={"key": key})
    _skipped.pop(key, None)
    try:
        dataset = datasets.Dataset.from_generator(_clean_rows, features, gen_kwargs={"key": key})
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, (ValueError, OSError)) else error) from None
    report = Path(dataset.cache_files[0]["filename"] + ".skipped.json") if dataset.cache_files else None
    if key in _skipped and report:
        report.write_text(json.dumps(_skipped[key]))
    _warn(place, json.loads(report.read_text()) if report and report.is_file() else _skipped.get(key))
    return dataset


_skipped: dict[str, dict[str, list]] = {}  # by source and reason: how many rows, and the first ones


def _warn(place: str, skipped: dict[str, list] | None) -> None:
    for reason, (count, first) in (skipped or {}).items():
        logger.warning("%s: %d rows skipped, %s: %s", place, count, reason, ", ".join(first))


def _open_hub(place: str) -> dict[str, Any]:
    """What `datasets.load_dataset` is given for a place of the Hub."""
    where, _, query = place.removeprefix("hub:").partition("?")
    name, *parts = where.split(":")
    pairs = parse_qsl(query, keep_blank_values=True)
    unknown = [key for key, _ in pairs if key not in HUB_SETTINGS]
    if len(parts) > 2 or unknown or (query and not pairs):
        fault = f"the setting {unknown[0]!r}" if unknown else f"{len(parts)} parts behind the name" if parts else query
        raise ValueError(
            f"{place!r} has {fault}; write hub:ID, hub:ID:SPLIT, hub:ID:CONFIG:SPLIT, or hub:ID? and any of "
            f"{', '.join(HUB_SETTINGS)} as in hub:ID?split=train&data_dir=python"
        )
    settings = {HUB_SETTINGS[key]: value for key, value in pairs}
    given = dict(zip(("name", "split")[-len(parts) :] if parts else (), parts, strict=True))
    if twice := sorted(set(given) & set(settings)):
        raise ValueError(f"{place!r} gives {twice[0]!r} twice; leave one of the two out")
    return {"hub": {"path": name, "split": "train", "streaming": False, **given, **settings}}


def _open_files(place: str) -> dict[str, Any]:
    """The files of a place with what tells whether they have changed."""
    files = find_data_files(place)
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {"files": stats}


def _kind(path: Path) -> str | None:
    """What a file is by the end of its name, a compression's left out."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in (".gz", ".zst", ".bz2")]
    return KINDS.get(endings[-1]) if endings else None


def find_data_files(place: str) -> list[Path]:
    """
    The files of a place in order of their names.

    Raises:
        FileNotFoundError: where no file of a known kind is.
        ValueError: for a folder with several kinds of files, or with several splits.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _files_of_folder(path)
    pattern = any(letter in place for letter in "*?[")
    found = sorted(path.parent.glob(path.name)) if pattern and not path.exists() else [path]
    found = [file for file in found if file.is_file()]
    if not found or not all(map(_kind, found)):
        wrong = [file.name for file in found if not _kind(file)]
        fault = f"{wrong[0]!r} is no" if wrong else f"{place!r} is no"
        raise FileNotFoundError(
            f"{fault} Parquet, JSON or JSON lines file and no folder with one (.parquet, .jsonl, .ndjson, .json, also "
            "compressed); build one of source files with datasets_scripts/build_code.py, or give hub:ID for a data set "
            "of the Hub."
        )
    return found


def _files_of_folder(folder: Path) -> list[Path]:
    visible = (file for file in folder.rglob("*") if file.is_file())
    kinds: dict[str, list[Path]] = {}
    for file in sorted(visible):
        if _kind(file) and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            kinds.setdefault(_kind(file), []).append(file)
    if len(kinds) > 1:  # such as a manifest beside Parquet files
        kinds.pop("JSON", None)
    if len(kinds) != 1:
        found = ", ".join(f"{len(files)} {kind}" for kind, files in kinds.items()) or "no Parquet, JSON or JSON lines"
        raise (ValueError if kinds else FileNotFoundError)(
            f"The folder {str(folder)!r} has {found} files; give the files themselves, or a pattern such as '*.jsonl.gz'."
        )
    files = next(iter(kinds.values()))
    splits = sorted({match[0] for file in files if (match := re.match("train|validation|test", file.name))})
    if len(splits) > 1:
        raise ValueError(
            f"The folder {str(folder)!r} has the splits {', '.join(splits)}, which would be mixed; give the file of one."
        )
    return files


def _clean_rows(key: str) -> Iterator[dict[str, str]]:
    """Rows of `text` and `path` of an opened source; what is skipped is noted in `_skipped`."""
    opened, text_column = json.loads(key)
    skipped: dict[str, list] = {}
    _skipped[key], kept = skipped, False
    sources = (
        _read_hub(**opened["hub"]) if "hub" in opened else (_read_file(*file, text_column) for file in opened["files"])
    )
    for file, rows in sources:
        column, path_column = text_column, None
        for number, row in enumerate(rows, start=1):
            where = f"{file}:{number}"
            if number == 1:
                column, path_column = _choose_columns(where, row, text_column)
            text, reason = _text_of(row, column, where)
            if reason:
                entry = skipped.setdefault(reason, [0, []])
                entry[0] += 1
                entry[1] += [where] if entry[0] <= SHOWN else []
                continue
            kept = True
            yield {"text": text, "path": str(row.get(path_column) or where)}
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, (count, _) in skipped.items()) or "there are none"
        raise ValueError(
            f"No row of {opened.get('hub') or opened['files'][0][0]} has a text: {reasons}; check the column."
        )


def _choose_columns(where: str, row: Iterable[str], text_column: str | None) -> tuple[str, str | None]:
    columns = ", ".join(row)
    if text_column is not None and text_column not in row:
        raise ValueError(f"{where!r} has no column {text_column!r}; name the one of file contents: {columns}.")
    found = text_column or next((name for name in TEXT_COLUMNS if name in row), None)
    if found is None:
        raise ValueError(
            f"{where!r} has none of the columns {', '.join(TEXT_COLUMNS)}; set `text_column` to one of {columns}."
        )
    return found, next((name for name in PATH_COLUMNS if name in row), None)


def _text_of(row: Mapping[str, Any], column: str, where: str) -> tuple[str, str | None]:
    """The text of a row, or why it has none."""
    value = row.get(column)
    if value is None:
        return "", f"{column!r} is null" if column in row else f"no {column!r}"
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return "", f"{column!r} is bytes that are no UTF-8"
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: {column!r} is a {type(value).__name__}, not a text; set `text_column` to one of texts."
        )
    value = value.removeprefix("\ufeff")
    if any("\ud800" <= letter <= "\udfff" for letter in value) if not value.isascii() else False:
        return "", f"{column!r} has half a surrogate pair"
    return value, None if value else f"{column!r} is empty"


def _read_hub(**settings: Any) -> Iterator[tuple[str, Iterable[Mapping[str, Any]]]]:
    datasets = require("datasets", "data", "Reading corpora")
    yield f"hub:{settings['path']}", datasets.load_dataset(**settings)


def _read_file(name: str, size: int, changed: int, text_column: str | None) -> tuple[str, Iterator[Mapping[str, Any]]]:
    path = Path(name)
    if _kind(path) == "Parquet":
        return name, _parquet_rows(path, text_column)
    return name, _json_line_rows(path) if _kind(path) == "JSON lines" else _json_rows(path)


def _parquet_rows(path: Path, text_column: str | None) -> Iterator[Mapping[str, Any]]:
    pa = require("pyarrow.parquet", "data", "Parquet")
    try:
        with pa.parquet.ParquetFile(path) as file:
            chosen = _choose_columns(str(path), file.schema_arrow.names, text_column)
            for batch in file.iter_batches(256, columns=[name for name in chosen if name]):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error}); fetch or build it again") from error


def _open_bytes(path: Path):
    """A file opened for reading, whatever it is compressed by."""
    pa = require("pyarrow", "data", "Compressed files")
    with open(path, "rb") as file:
        head = file.read(4)
    name = next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)
    return pa.CompressedInputStream(pa.OSFile(str(path)), name) if name else open(path, "rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty with their numbers; a byte order mark is taken off."""
    pending, number = b"", 0
    try:
        with _open_bytes(path) as file:
            while block := file.read(1 << 20):
                *lines, pending = (pending + block).split(b"\n")
                for line in lines:
                    number += 1
                    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    if line.strip():
                        yield number, line
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is cut off or damaged after line {number} ({error}); fetch it again") from error
    if pending.strip():
        yield number + 1, pending.removeprefix(b"\xef\xbb\xbf") if number == 0 else pending


def _json_line_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON ({error}); give one JSON object a line") from error
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}:{number} is a {type(row).__name__}; give one JSON object a line")
        yield row


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """A list of objects, or JSON lines all the same."""
    first = next(_lines(path), (0, b""))[1].lstrip()
    if not first.startswith(b"["):
        yield from _json_line_rows(path)
        return
    try:
        with _open_bytes(path) as file:
            rows = json.loads(file.read().removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not JSON ({error}); give a list of objects, or one object a line") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}: entry {number} of the list is a {type(row).__name__}; give a list of objects")
        yield row


def tokenize_corpus(
    source: str, tokenizer, text_column: str | None = None, infill_format: str | InfillFormat = "codegen2"
) -> TokenizedDocuments:
    """
    Tokenises a source once: the result is cached as Arrow and mapped into memory, also in later runs. Where `datasets` is
    not installed it stays in this process's memory.

    Sentinels written in a file become the characters they are made of, see [`encode_source`]; no document can hold a
    control token.

    Args:
        source (`str`): see [`split_source`].
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        text_column (`str`, *optional*): the column of file contents, see [`load_corpus`].
        infill_format (`str` or [`InfillFormat`], defaults to `"codegen2"`): family of the tokenizer, see [`infill_layout`].

    Returns:
        [`TokenizedDocuments`]: one document for each row with a text.
    """
    if importlib.util.find_spec("datasets") is None:
        return _tokenize_in_memory(source, tokenizer, text_column, infill_format)
    datasets, dataset = require("datasets", "data", "Reading corpora"), load_corpus(source, text_column)
    features = {"input_ids": datasets.List(datasets.Value("int32")), "path": datasets.Value("string")}
    encode = functools.partial(_encode_batch, tokenizer, find_format(infill_format, tokenizer).dummy_prefix)
    # `datasets` would hash the pickled tokenizer, whose state changes with use: the cache would miss.
    key = json.dumps([dataset._fingerprint, repr(infill_format), tokenizer.backend_tokenizer.to_str()])
    tokenized = dataset.map(
        encode,
        batched=True,
        batch_size=STREAM_BATCH,
        remove_columns=["text"],
        features=datasets.Features(features),
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        desc=f"Tokenising {split_source(source)[0]}",
    )
    return TokenizedDocuments.from_dataset(tokenized)


def _tokenize_in_memory(source: str, tokenizer, text_column, infill_format) -> TokenizedDocuments:
    dummy_prefix = find_format(infill_format, tokenizer).dummy_prefix
    ids: list[Sequence[int]] = []
    names: list[str] = []
    rows = _rows(source, text_column)
    while batch := list(islice(rows, STREAM_BATCH)):
        ids += _encode_batch(tokenizer, dummy_prefix, {"text": [row["text"] for row in batch]})["input_ids"]
        names += [row["path"] for row in batch]
    return TokenizedDocuments.from_lists(ids, names)


def stream_corpus(
    source: str, tokenizer, text_column: str | None = None, infill_format: str | InfillFormat = "codegen2"
) -> Callable[[], Iterator[tuple[str, np.ndarray]]]:
    """
    A source for [`StreamedSequences`]: tokenised while it is read.

    Args:
        source, tokenizer, text_column, infill_format: see [`tokenize_corpus`].

    Returns:
        `Callable[[], Iterator[tuple[str, numpy.ndarray]]]`: starts an epoch of `(name, token_ids)`.
    """
    dataset = load_corpus(source, text_column, streaming=True)
    dummy_prefix = find_format(infill_format, tokenizer).dummy_prefix

    def epoch() -> Iterator[tuple[str, np.ndarray]]:
        for batch in dataset.iter(STREAM_BATCH):
            ids = _encode_batch(tokenizer, dummy_prefix, batch)["input_ids"]
            yield from zip(batch["path"], map(np.asarray, ids), strict=True)

    return epoch


def open_sources(
    sources: list[str],
    tokenizer,
    text_column: str | None = None,
    infill_format: str | InfillFormat = "codegen2",
    streaming: bool = False,
) -> dict[str, Any]:
    """
    Several sources by name, for [`DocumentStream`], or for [`StreamedSequences`] if `streaming`.

    Args:
        sources (`list[str]`): see [`split_source`].
        tokenizer, text_column, infill_format: see [`tokenize_corpus`].
        streaming (`bool`, defaults to `False`): whether to tokenise them while they are read.

    Returns:
        `dict`: by name, what [`tokenize_corpus`] or [`stream_corpus`] gives.

    Raises:
        ValueError: no source, or two of one name.
    """
    names = [split_source(source)[0] for source in sources]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        fault = f"two are called {twice[0]!r}" if twice else "there is none"
        raise ValueError(
            f"The sources are {sources}: {fault}; give at least one, and names where needed (NAME=PLACE)."
        )
    read = stream_corpus if streaming else tokenize_corpus
    return {
        name: read(source, tokenizer, text_column, infill_format) for name, source in zip(names, sources, strict=True)
    }


def read_rows(sources: list[str], text_column: str | None = None) -> list[dict[str, str]]:
    """All files of some sources as rows with `text` and `path`, for [`make_infill_cases`]."""
    return [row for source in sources for row in _rows(source, text_column)]


def find_shared_files(
    rows: Iterable[Mapping[str, str]], sources: Iterable[str], text_column: str | None = None
) -> dict[str, str]:
    """
    Held-out files that occur in the training data, whatever they are called there: compared is their text, white space
    aside. Reads the training sources once, a row at a time.

    Args:
        rows (iterable of `dict`): held-out files, of [`read_rows`].
        sources (`list[str]`): training sources, see [`split_source`].
        text_column (`str`, *optional*): see [`load_corpus`].

    Returns:
        `dict[str, str]`: their `path`, and that of a training file of the same text.
    """
    wanted: dict[bytes, list[str]] = {}
    for row in rows:
        wanted.setdefault(_content(row["text"]), []).append(row["path"])
    found = {}
    for source in sources:
        for row in _rows(source, text_column):
            found |= dict.fromkeys(wanted.pop(_content(row["text"]), ()), row["path"])
    return found


def _content(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.split()).encode(errors="surrogatepass")).digest()


def _rows(source: str, text_column: str | None) -> Iterator[dict[str, str]]:
    """The rows of [`load_corpus`] without its cache, which only `datasets` has."""
    place = split_source(source)[1]
    key = json.dumps([_open_hub(place) if place.startswith("hub:") else _open_files(place), text_column])
    yield from _clean_rows(key)
    _warn(place, _skipped.pop(key))


def _encode_batch(tokenizer, dummy_prefix: bool, batch: Mapping[str, list]) -> dict[str, list]:
    return {"input_ids": encode_sources(tokenizer, batch["text"], dummy_prefix)}


__all__ = [
    "find_data_files",
    "find_shared_files",
    "load_corpus",
    "open_sources",
    "read_rows",
    "split_source",
    "stream_corpus",
    "tokenize_corpus",
]
