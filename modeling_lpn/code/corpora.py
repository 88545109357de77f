"""Code corpora for training: Parquet files or Hub data sets of `text` rows, tokenised once or as they stream."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..codegen2.infilling_codegen2 import encode_sources, find_format
from ..optional import require
from .packing import TokenizedDocuments


STREAM_BATCH = 64  # files that are tokenised together, on all cores, while a source streams


def split_source(source: str) -> tuple[str, str]:
    """
    The name and the place of a source.

    Args:
        source (`str`): `PLACE` or `NAME=PLACE`; a place is a Parquet file, a folder of them, or `hub:ID` with an
            optional `:SPLIT`. Without a name it is called after its folder or data set.

    Returns:
        `tuple[str, str]`: name and place.

    Example:

    ```python
    >>> from modeling_lpn.code.corpora import split_source

    >>> split_source("outputs/stdlib/train.parquet"), split_source("docs=data/rst.parquet"), split_source("hub:me/code")
    (('stdlib', 'outputs/stdlib/train.parquet'), ('docs', 'data/rst.parquet'), ('code', 'hub:me/code'))

    ```
    """
    name, equals, place = source.partition("=")
    if equals:
        return name, place
    if source.startswith("hub:"):
        return source.split(":")[1].split("/")[-1], source
    path = Path(source)
    return (path.parent.name or path.stem) if path.stem in ("train", "validation", "test") else path.stem, source


def load_corpus(source: str, text_column: str = "text", streaming: bool = False):
    """
    Opens a source.

    Args:
        source (`str`): see [`split_source`].
        text_column (`str`, defaults to `"text"`): the column of file contents; a column `path` gives names.
        streaming (`bool`, defaults to `False`): whether to read it from the front as it is needed.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: for a path where no Parquet file is.
        ValueError: where the column is missing.
        ImportError: where `datasets` is not installed.
    """
    datasets, place = require("datasets", "data", "Reading corpora"), split_source(source)[1]
    if place.startswith("hub:"):
        _, name, *split = place.split(":")
        dataset = datasets.load_dataset(name, split=split[0] if split else "train", streaming=streaming)
    else:
        path = Path(place)
        files = sorted(map(str, path.glob("*.parquet"))) if path.is_dir() else [place] * path.is_file()
        if not files:
            raise FileNotFoundError(
                f"{place!r} is no Parquet file and no folder with one; build one with datasets_scripts/build_code.py, "
                "or give hub:ID for a data set of the Hub."
            )
        dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    columns = dataset.column_names if dataset.column_names is not None else next(iter(dataset)).keys()
    if text_column not in columns:
        raise ValueError(
            f"{place!r} has no column {text_column!r}; name the one of file contents: {', '.join(columns)}."
        )
    return dataset


def tokenize_corpus(source: str, tokenizer, text_column="text", infill_format="codegen2") -> TokenizedDocuments:
    """
    Tokenises a source once: the result is cached as Arrow and mapped into memory, also in later runs.

    Sentinels written in a file become the characters they are made of, see [`encode_source`]; no document can hold a
    control token.

    Args:
        source (`str`): see [`split_source`].
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        text_column (`str`, defaults to `"text"`): the column of file contents.
        infill_format (`str` or [`InfillFormat`], defaults to `"codegen2"`): family of the tokenizer, see [`infill_layout`].

    Returns:
        [`TokenizedDocuments`]: one document for each row.
    """
    datasets, dataset = require("datasets", "data", "Reading corpora"), load_corpus(source, text_column)
    names = ["path"] if "path" in dataset.column_names else []
    features = {
        "input_ids": datasets.List(datasets.Value("int32")),
        **{name: datasets.Value("string") for name in names},
    }
    encode = functools.partial(
        _encode_batch, tokenizer, text_column, find_format(infill_format, tokenizer).dummy_prefix
    )
    # `datasets` would hash the pickled tokenizer, whose state changes with use: the cache would miss.
    key = json.dumps([dataset._fingerprint, text_column, repr(infill_format), tokenizer.backend_tokenizer.to_str()])
    tokenized = dataset.map(
        encode,
        batched=True,
        batch_size=STREAM_BATCH,
        remove_columns=[name for name in dataset.column_names if name not in names],
        features=datasets.Features(features),
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        desc=f"Tokenising {split_source(source)[0]}",
    )
    return TokenizedDocuments.from_dataset(tokenized)


def stream_corpus(source: str, tokenizer, text_column="text", infill_format="codegen2") -> Callable[[], Iterator]:
    """
    A source for [`StreamedSequences`]: tokenised while it is read.

    Args:
        source, tokenizer, text_column, infill_format: see [`tokenize_corpus`].

    Returns:
        `Callable[[], Iterator[tuple[str, numpy.ndarray]]]`: starts an epoch of `(name, token_ids)`.
    """
    dataset = load_corpus(source, text_column, streaming=True)
    dummy_prefix = find_format(infill_format, tokenizer).dummy_prefix

    def epoch():
        for batch in dataset.iter(STREAM_BATCH):
            ids = _encode_batch(tokenizer, text_column, dummy_prefix, batch)["input_ids"]
            yield from zip(batch.get("path", [split_source(source)[0]] * len(ids)), map(np.asarray, ids))

    return epoch


def open_sources(sources: list[str], tokenizer, text_column="text", infill_format="codegen2", streaming=False) -> dict:
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
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        fault = f"two are called {twice[0]!r}" if twice else "there is none"
        raise ValueError(
            f"The sources are {sources}: {fault}; give at least one, and names where needed (NAME=PLACE)."
        )
    read = stream_corpus if streaming else tokenize_corpus
    return {name: read(source, tokenizer, text_column, infill_format) for name, source in zip(names, sources)}


def read_rows(sources: list[str], text_column: str = "text") -> list[dict]:
    """All files of some sources as rows with `text` and `path`, for [`make_infill_cases`]."""
    rows = (row for source in sources for row in load_corpus(source, text_column))
    return [{"text": row[text_column], "path": row.get("path", str(number))} for number, row in enumerate(rows)]


def _encode_batch(tokenizer, text_column, dummy_prefix, batch):
    return {"input_ids": encode_sources(tokenizer, batch[text_column], dummy_prefix)}


__all__ = ["load_corpus", "open_sources", "read_rows", "split_source", "stream_corpus", "tokenize_corpus"]
