"""
Files to sequences of exactly one length: documents, the weighted stream over them, and the sequences laid out on it.

Everything is a function of (seed, epoch, index of the sequence): the number of workers, processes and resumptions
changes nothing. Where a sequence starts depends on where the one before it stopped: [`PackedSequences`] lays them out in
order, which takes token counts only and some 50 microseconds each, and makes any of them on demand;
[`StreamedSequences`] walks a stream that cannot be indexed.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .objectives import ObjectiveMixture, UnitPlan, check_source


class TokenizedDocuments:
    """
    Token ids of many files, as views into a few flat arrays.

    Args:
        chunks (`list[tuple[numpy.ndarray, numpy.ndarray]]`): token ids of shape `(tokens,)` and the borders of the
            documents in them, of shape `(documents + 1,)`.
        names (`Sequence[str]`, *optional*): a name for each document, for messages.

    Example:

    ```python
    >>> from modeling_lpn.code.packing import TokenizedDocuments

    >>> documents = TokenizedDocuments.from_lists([[1, 2, 3], [4, 5]], names=["a.py", "b.py"])
    >>> len(documents), documents.num_tokens, documents[1].tolist(), documents.name(1)
    (2, 5, [4, 5], 'b.py')

    ```
    """

    def __init__(self, chunks: list[tuple[np.ndarray, np.ndarray]], names: Sequence[str] | None = None):
        self._chunks = chunks
        self._first = list(accumulate((len(borders) - 1 for _, borders in chunks), initial=0))
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(borders) for _, borders in chunks)])
        self.num_tokens = int(self.lengths.sum())
        self._names = names

    @classmethod
    def from_lists(cls, token_ids: Iterable[Sequence[int]], names: Sequence[str] | None = None):
        """Copies one sequence of ids for each document."""
        documents = [np.asarray(ids, dtype=np.int32) for ids in token_ids]
        borders = np.cumsum([0, *map(len, documents)])
        return cls([(np.concatenate([np.zeros(0, np.int32), *documents]), borders)], names)

    @classmethod
    def from_dataset(cls, dataset, column: str = "input_ids", name_column: str = "path"):
        """
        Reads a `datasets.Dataset` without copying: the ids stay in its memory-mapped Arrow files.

        Args:
            dataset (`datasets.Dataset`): one document a row.
            column (`str`): its column of token ids.
            name_column (`str`): its column of names, if there is one.
        """
        if dataset._indices is not None:
            dataset = dataset.flatten_indices()
        chunks = []
        for chunk in dataset.data.column(column).chunks:
            borders = chunk.offsets.to_numpy()
            chunks.append((chunk.flatten().to_numpy(), borders - borders[0]))
        names = dataset[name_column] if name_column in dataset.column_names else None
        return cls(chunks, names)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"Document {index} of {len(self)}.")
        chunk = bisect_right(self._first, index) - 1
        values, borders = self._chunks[chunk]
        place = index - self._first[chunk]
        return values[borders[place] : borders[place + 1]]

    def name(self, index: int) -> str:
        return str(index) if self._names is None else self._names[int(index)]

    def check(self, layout) -> None:
        """
        Refuses documents that hold control tokens.

        Raises:
            ValueError: naming the first such document, the token, and the cure.
        """
        control = sorted(layout.control_ids)
        for first, (values, borders) in zip(self._first[:-1], self._chunks, strict=True):
            found = np.isin(values, control)
            if found.any():
                place = int(borders.searchsorted(found.argmax(), side="right")) - 1
                check_source(values[borders[place] : borders[place + 1]], layout, repr(self.name(first + place)))


def document_order(num_documents: int, seed: int, source: int, epoch: int) -> np.ndarray:
    """The order of a source's documents in an epoch: a permutation of shape `(num_documents,)`."""
    return _generator(seed, epoch, source, purpose=1).permutation(num_documents)


def _generator(seed: int, epoch: int, number: int, purpose: int = 0) -> np.random.Generator:
    # Philox turns key and counter into random numbers directly: every sequence has a stream of its own, 2**64 long.
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, number, 0, purpose], dtype=np.uint64)))


class _SequenceGenerator:
    """`_generator` of the sequences of a seed by moving a single one, in a tenth of the time; valid until the next call."""

    def __init__(self, seed: int):
        self._random = np.random.Generator(np.random.Philox(key=np.array([seed, 0], dtype=np.uint64)))
        self._start = self._random.bit_generator.state  # at counter 0; setting it copies from these arrays

    def __call__(self, epoch: int, index: int) -> np.random.Generator:
        self._start["state"]["key"][1] = epoch
        self._start["state"]["counter"][1] = index
        self._random.bit_generator.state = self._start
        return self._random


def _window_order(seed: int, window: int, size: int) -> np.ndarray:
    """The order in which the sequences of a window are given."""
    return np.arange(size) if size == 1 else _generator(seed, 0, window, purpose=2).permutation(size)


def _check_window(shuffle_window):
    if shuffle_window < 1:
        raise ValueError(f"`shuffle_window` is {shuffle_window}; 1 keeps the order of the files, more shuffles.")


def _checked_weights(names, weights) -> np.ndarray:
    weights = np.array(weights, dtype=float)
    if len(weights) != len(names) or not len(names) or weights.min() <= 0:
        raise ValueError(
            f"The sources {list(names)} have the weights {weights.tolist()}; give each one a weight above 0."
        )
    return weights / weights.sum()


class DocumentStream:
    """
    An endless stream of the documents of several sources, mixed by tokens.

    The next document is always of the source that has given the fewest tokens for its weight, so that at any time the
    shares are the weights up to one document. Every source is gone through in a new order in each of its epochs.

    Args:
        sources (`Mapping[str, TokenizedDocuments]`): the documents by the name of their source.
        weights (`Sequence[float]`, *optional*): shares of tokens, up to a factor; by default those of the sources.
        seed (`int`, defaults to 0): of the orders.
        shuffle (`bool`, defaults to `True`): whether the order is random; else that of the source.

    Raises:
        ValueError: for sources without a token, or weights that do not belong to them.
    """

    def __init__(self, sources: Mapping[str, TokenizedDocuments], weights=None, seed: int = 0, shuffle: bool = True):
        self.names = list(sources)
        self.documents = list(sources.values())
        empty = [name for name, documents in sources.items() if not documents.num_tokens]
        if empty:
            raise ValueError(f"Source {empty[0]!r} has no tokens; leave it out, or build it with other filters.")
        sizes = [documents.num_tokens for documents in self.documents]
        self.weights = _checked_weights(self.names, sizes if weights is None else weights)
        self.seed, self.shuffle = seed, shuffle
        self.source = self.document = self.epoch = np.zeros(0, np.int64)  # of each document of the stream laid out yet
        self._tokens = 0

    @property
    def num_documents_of_an_epoch(self) -> int:
        """Documents with any token in all sources together."""
        return sum(int((documents.lengths > 0).sum()) for documents in self.documents)

    def __getitem__(self, index: int) -> np.ndarray:
        if index >= len(self.source):
            self.lay_out(index)
        return self.documents[self.source.item(index)][self.document.item(index)]

    def lay_out(self, index: int) -> None:
        """Lays the stream out until that document is in it."""
        while index >= len(self.source):
            self.reserve(2 * self._tokens + 2**16)

    def reserve(self, num_tokens: int) -> None:
        """Lays the stream out until it has at least that many tokens; what was laid out before stays as it is."""
        if num_tokens <= self._tokens:
            return
        parts = []
        for source, (documents, weight) in enumerate(zip(self.documents, self.weights, strict=True)):
            orders = self._orders(source, documents, weight * num_tokens)
            document = np.concatenate(orders)
            lengths = documents.lengths[document]
            begins = (lengths.cumsum() - lengths) / weight  # tokens of the whole stream when its turn comes
            epoch = np.repeat(np.arange(len(orders)), [len(order) for order in orders])
            due = begins < num_tokens
            parts.append(np.stack([begins[due], np.full(due.sum(), source), document[due], epoch[due]]))
        merged = np.concatenate(parts, axis=1)
        merged = merged[:, merged[0].argsort(kind="stable")]
        self.source, self.document, self.epoch = merged[1:].astype(np.int64)
        self._tokens = num_tokens

    def _orders(self, source, documents, num_tokens):
        orders, tokens = [], 0
        while tokens <= num_tokens:
            order = np.arange(len(documents))
            if self.shuffle:
                order = document_order(len(documents), self.seed, source, len(orders))
            orders.append(order[documents.lengths[order] > 0])
            tokens += documents.num_tokens
        return orders


# A named tuple is made in a third of the time of a frozen dataclass, and there are two units for every thousand tokens.
class Unit(NamedTuple):
    """
    A part of a file in a sequence.

    Args:
        token_ids (`numpy.ndarray`): the file from the unit's first token on.
        plan ([`UnitPlan`]): what is done with it.
        document (`int`): number of the file in the stream.
        offset (`int`): place of the unit's first token in its file.
    """

    token_ids: np.ndarray
    plan: UnitPlan
    document: int
    offset: int


def plan_sequence(
    documents, cursor: tuple[int, int], max_length: int, mixture: ObjectiveMixture, layout, rng
) -> tuple[list[Unit], tuple[int, int]]:
    """
    Fills one sequence: files, each corrupted by itself, until exactly `max_length` tokens are there.

    Args:
        documents: `documents[i]` gives the token ids of the i-th file of the stream.
        cursor (`tuple[int, int]`): the file to begin with, and the first of its tokens that no sequence has had yet.
        max_length (`int`): tokens of the sequence.
        mixture ([`ObjectiveMixture`]): draws the objective.
        layout: the sentinels.
        rng (`numpy.random.Generator`): the sequence's own.

    Returns:
        `tuple`: the [`Unit`]s and the next cursor. A file that does not fit goes on in the next sequence.
    """
    (document, offset), room, units = cursor, max_length, []
    objective = mixture.draw(rng)
    while room:
        token_ids = documents[document]
        if offset:
            token_ids = token_ids[offset:]
        if units and mixture.per == "document":
            objective = mixture.draw(rng)
        plan = objective.plan(token_ids, room, rng, layout, opens_sequence=not units)
        units.append(Unit(token_ids, plan, document, offset))
        room -= plan.size
        document, offset = (document + 1, 0) if plan.taken == len(token_ids) else (document, offset + plan.taken)
    return units, (document, offset)


class PackedSequences(Dataset):
    """
    The sequences of a training run or an evaluation, any of them on demand.

    An item is a dictionary that [`DataCollatorForCodeObjectives`] turns into tensors. With a sampler that keeps the
    order (`train_sampling_strategy="sequential"`) training sees every file once an epoch.

    Args:
        stream ([`DocumentStream`]): the files.
        mixture ([`ObjectiveMixture`]): what is trained.
        layout ([`MaskLayout`] or [`MiddleLayout`]): the sentinels, see [`infill_layout`].
        max_length (`int`, defaults to 2048): tokens of each sequence; nothing is padded, cut or dropped.
        num_sequences (`int`, *optional*): how many there are. By default one epoch, the last sequence filled up with
            the start of the next.
        seed (`int`, defaults to 0): of the objectives and of the order; a frozen evaluation has one of its own.
        shuffle_window (`int`, defaults to 1): so many sequences at a time are put into a random order; 1 keeps the
            order of the files.

    Raises:
        ValueError: for a file that holds control tokens, with its name, a `max_length` below 16, or a `shuffle_window`
            below 1.

    Example:

    ```python
    >>> from modeling_lpn import DocumentStream, ObjectiveMixture, PackedSequences
    >>> from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout
    >>> from modeling_lpn.code.packing import TokenizedDocuments

    >>> layout = MaskLayout(masks=(99, 98, 97), separator=90, end_of_span=91, end_of_text=92)
    >>> documents = TokenizedDocuments.from_lists([range(50), range(20), range(60)])
    >>> mixture = ObjectiveMixture.from_preset("codegen2")
    >>> sequences = PackedSequences(DocumentStream({"code": documents}), mixture, layout, max_length=32)
    >>> len(sequences), [unit.plan.objective for unit in sequences[2]["units"]]
    (5, ['span_corruption', 'span_corruption'])

    ```
    """

    KEPT = 64  # so that reading in order plans every sequence once

    def __init__(
        self,
        stream,
        mixture,
        layout,
        max_length: int = 2048,
        num_sequences: int | None = None,
        seed: int = 0,
        shuffle_window: int = 1,
    ):
        _check_window(shuffle_window)
        if max_length < 16:
            raise ValueError(
                f"`max_length` is {max_length}; a sequence with one masked span needs at least 16 tokens."
            )
        for documents in stream.documents:
            documents.check(layout)
        self.stream, self.mixture, self.layout = stream, mixture, layout
        self.max_length, self.seed, self.shuffle_window = max_length, seed, shuffle_window
        self._length, self._window = num_sequences, (None, None, None)
        self._generator = _SequenceGenerator(seed)
        self._cursors, self._source_tokens = [(0, 0)], [np.zeros(len(stream.names), np.int64)]
        self._recent = {}  # units of sequences that were laid out, but not asked for yet
        if num_sequences is None:
            last = stream.num_documents_of_an_epoch
            while self._cursors[-1][0] < last:
                self._lay_out_next()
            self._length = len(self._cursors) - 1
        else:
            stream.reserve(num_sequences * max_length)

    def _plan(self, index):
        document, offset = self._cursors[index]
        self.stream.lay_out(document)
        rng = self._generator(self.stream.epoch.item(document), index)
        return plan_sequence(self.stream, (document, offset), self.max_length, self.mixture, self.layout, rng)

    def _lay_out_next(self):
        index = len(self._cursors) - 1
        units, cursor = self._plan(index)
        tokens = self._source_tokens[-1].copy()
        for unit in units:
            tokens[self.stream.source[unit.document]] += unit.plan.taken
        self._cursors.append(cursor)
        self._source_tokens.append(tokens)
        self._recent[index] = units
        self._recent.pop(index - self.KEPT - self.shuffle_window, None)

    def _order(self, window):
        """Places of a window's sequences in the order they are given, and the tokens of each source up to each one."""
        if window != self._window[0]:
            start = window * self.shuffle_window
            order = _window_order(self.seed, window, min(self.shuffle_window, len(self) - start))
            while len(self._cursors) - 1 < start + len(order):
                self._lay_out_next()
            before = np.array(self._source_tokens[start : start + len(order) + 1])
            self._window = window, start + order, before[0] + np.diff(before, axis=0)[order].cumsum(axis=0)
        return self._window[1:]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"Sequence {index} of {len(self)}.")
        order, source_tokens = self._order(index // self.shuffle_window)
        place = index % self.shuffle_window
        units = self._recent.pop(int(order[place]), None) or self._plan(int(order[place]))[0]
        return {"index": index, "units": units, "source_tokens": source_tokens[place]}

    @property
    def source_names(self) -> list[str]:
        """Names in the order of the items' `source_tokens`, the tokens of each source up to and with that item."""
        return self.stream.names


class StreamedSequences(IterableDataset):
    """
    The sequences of a run over sources that can only be read from the front; memory stays flat.

    Same packing, mixing, seeding and shuffling as [`PackedSequences`], but the order of the files is that of the sources
    and a whole `shuffle_window` of sequences is held in memory. One worker does all the reading (further ones yield
    nothing), so their number changes nothing. `state_dict()` and `load_state_dict()` continue exactly; `Trainer` resumes
    by reading the stream again from the front, which is exact as well.

    Args:
        sources (`Mapping[str, Callable[[], Iterable]]`): for each source a function that starts an epoch of it: an
            iterable of `(name, token_ids)`.
        mixture, layout, max_length, seed, shuffle_window: see [`PackedSequences`].
        weights (`Sequence[float]`, *optional*): shares of tokens, up to a factor; equal by default.

    Raises:
        ValueError: for weights that do not belong to the sources, a source without a token, or a file that holds
            control tokens, with its name.
    """

    def __init__(
        self,
        sources: Mapping[str, Callable[[], Iterable]],
        mixture,
        layout,
        max_length: int = 2048,
        weights=None,
        seed: int = 0,
        shuffle_window: int = 1,
    ):
        _check_window(shuffle_window)
        self.sources, self.mixture, self.layout = dict(sources), mixture, layout
        self.max_length, self.seed, self.shuffle_window = max_length, seed, shuffle_window
        self.weights = _checked_weights(self.sources, [1.0] * len(self.sources) if weights is None else weights)
        self.load_state_dict({"index": 0, "offset": 0, "read": [[0, 0, 0]] * len(self.sources), "given": 0})

    @property
    def source_names(self) -> list[str]:
        """Names in the order of the items' `source_tokens`."""
        return list(self.sources)

    def state_dict(self) -> dict:
        """Where the next sequence starts: JSON, without any token."""
        return self._state

    def load_state_dict(self, state: dict) -> None:
        """Continues where a `state_dict` was taken."""
        self._state = state

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        if worker is not None and worker.id > 0:
            return
        reader, cursor = _Reader(self, self._state["read"]), (0, self._state["offset"])
        counts = np.array([tokens for _, _, tokens in self._state["read"]], dtype=np.int64)
        if cursor[1]:  # the file that the state stopped in is read again; a part of it was counted
            reader[0]
            counts[reader.source[0]] += cursor[1]
        index, given = self._state["index"], self._state["given"]
        generator = _SequenceGenerator(self.seed)
        while True:
            began, items = self._state, []
            for place in range(self.shuffle_window):
                reader[cursor[0]]
                rng = generator(reader.epoch[cursor[0]], index + place)
                units, cursor = plan_sequence(reader, cursor, self.max_length, self.mixture, self.layout, rng)
                tokens = np.zeros_like(counts)
                for unit in units:
                    tokens[reader.source[unit.document]] += unit.plan.taken
                items.append((units, tokens))
                read = reader.forget(cursor[0])
            order = _window_order(self.seed, index // self.shuffle_window, len(items))
            for place, (units, tokens) in enumerate(items[number] for number in order):
                counts = counts + tokens
                if place < given:
                    continue
                self._state = {**began, "given": place + 1}
                if place + 1 == len(items):
                    self._state = {"index": index + place + 1, "offset": cursor[1], "read": read, "given": 0}
                yield {"index": index + place, "units": units, "source_tokens": counts}
            index, given = index + len(items), 0


class _Reader:
    """Documents of a stream by their number, kept until they are forgotten."""

    def __init__(self, sequences, read):
        self._sequences, self._names = sequences, sequences.source_names
        self._read = [list(entry) for entry in read]  # per source: epoch, documents of it, tokens in all
        self._iterators = [self._start(source, skip) for source, (_, skip, _) in enumerate(self._read)]
        self._epoch_began = [-1 if skip else tokens for _, skip, tokens in self._read]
        self._count = 0
        self._documents, self.source, self.epoch, self._before = {}, {}, {}, {}

    def _start(self, source, skip=0):
        return islice(iter(self._sequences.sources[self._names[source]]()), skip, None)

    def __getitem__(self, index):
        while index >= self._count:
            self._next()
        return self._documents[index]

    def _next(self):
        before = [list(entry) for entry in self._read]
        source = int((np.array([tokens for _, _, tokens in before]) / self._sequences.weights).argmin())
        name, token_ids = self._advance(source)
        check_source(token_ids, self._sequences.layout, repr(name))
        self._read[source][2] += len(token_ids)
        index, self._count = self._count, self._count + 1
        self._documents[index], self._before[index] = token_ids, before
        self.source[index], self.epoch[index] = source, self._read[source][0]

    def _advance(self, source):
        while True:
            for name, token_ids in self._iterators[source]:
                self._read[source][1] += 1
                if len(token_ids):
                    return name, np.asarray(token_ids)
            epoch, _, tokens = self._read[source]
            if tokens == self._epoch_began[source]:
                raise ValueError(f"Source {self._names[source]!r} has no tokens; leave it out, or check its files.")
            self._epoch_began[source], self._read[source][:2] = tokens, [epoch + 1, 0]
            self._iterators[source] = self._start(source)

    def forget(self, document):
        """Drops the documents before this one and returns what had been read before it."""
        for index in [index for index in self._documents if index < document]:
            for kept in (self._documents, self.source, self.epoch, self._before):
                kept.pop(index, None)
        return self._before[document] if document in self._before else [list(entry) for entry in self._read]


__all__ = [
    "DocumentStream",
    "PackedSequences",
    "StreamedSequences",
    "TokenizedDocuments",
    "Unit",
    "plan_sequence",
]
