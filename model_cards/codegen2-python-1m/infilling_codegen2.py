# Copyright 2026 The modeling_lpn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Infilling: where the sentinels go, once, by token id (arXiv 2305.02309, section 3; InCoder, arXiv 2204.05999).

A source is a list of *pieces*, the text before, between and after its holes; *spans* fill the holes. CodeGen2 reads

    piece_0 <mask_1> piece_1 <mask_2> piece_2 <|endoftext|> <sep> <mask_1> span_1 <eom> <mask_2> span_2 <eom>

and models with fill-in-the-middle tokens (arXiv 2207.14255) read the two pieces around one hole in an order of `ORDERS`,
most often `<prefix> piece_0 <suffix> piece_1 <middle> span`.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# What a fill-in-the-middle sequence is made of before its span: the three sentinels, and the text before and after the
# hole. "spm" is the joint form (arXiv 2207.14255, section 4.3), whose span continues the prefix directly.
ORDERS = {
    "psm": ("<prefix>", "before", "<suffix>", "after", "<middle>"),
    "spm": ("<prefix>", "<suffix>", "after", "<middle>", "before"),
    "spm_separate": ("<suffix>", "after", "<prefix>", "before", "<middle>"),
    "suffix_prefix": ("<suffix>", "after", "<prefix>", "before"),
}
_TRAINED_TOGETHER = {"psm": "spm", "spm": "psm"}  # one model reads both


@dataclass(frozen=True)
class RepositoryFormat:
    """
    How a family writes the files of a repository before the one that has the hole: the name of the repository, then for
    every file its token, its path, a line break and its text.

    Args:
        file (`str`): token before a file.
        name (`str`, *optional*): token before the repository's name.
        after_name, after_file (`str`): text behind the name, and behind each file.
        path_in_prefix (`bool`): whether the path of the file with the hole stands behind the prefix token, not before it.
    """

    file: str
    name: str | None = None
    after_name: str = ""
    after_file: str = ""
    path_in_prefix: bool = False


@dataclass(frozen=True)
class InfillFormat:
    """
    The sentinel strings of a model family; ids are looked up in its tokenizer.

    Args:
        stops (`tuple[str, ...]`): all tokens that end a span; the first one is the family's end of a span, and a tokenizer
            may lack the others.
        end_of_text (`str`): token after the last piece.
        mask (`str`, *optional*): template of the numbered mask tokens: the CodeGen2 layout.
        first_mask (`int`): number of the first mask token.
        separator (`str`, *optional*): token between the source and its spans, behind an end of text. Without it the mask
            token after that of the last hole stands there (InCoder).
        prefix, suffix, middle (`str`, *optional*): fill-in-the-middle tokens, where there are no masks.
        order (`str`): the order they are read in, a key of `ORDERS`: `"psm"` (prefix, suffix, middle), `"spm"` (suffix
            first, joint), `"spm_separate"` (suffix first, each part behind its own token) or `"suffix_prefix"` (the same
            without a middle token). Models that read `"psm"` or `"spm"` are trained on both.
        start (`str`, *optional*): token every sequence begins with.
        dummy_prefix (`bool`): whether the tokenizer puts a space before every text it encodes (SentencePiece).
        repository ([`RepositoryFormat`], *optional*): how other files are written before the one to fill.
        marks, lacks (`tuple[str, ...]`): further tokens that the family's vocabulary has, and tokens that it has not, by
            which `infill_format="auto"` tells it from others.
        by_vocabulary (`bool`): whether `"auto"` may find it; `False` for the second order of a family.

    Raises:
        ValueError: for strings that make no layout.

    Example:

    ```python
    >>> from modeling_lpn.codegen2.infilling_codegen2 import InfillFormat

    >>> own = InfillFormat(stops=("<end>",), end_of_text="<end>", prefix="<p>", suffix="<s>", middle="<m>", order="spm")

    ```
    """

    stops: tuple[str, ...]
    end_of_text: str = "<|endoftext|>"
    mask: str | None = None
    first_mask: int = 1
    separator: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    middle: str | None = None
    order: str = "psm"
    start: str | None = None
    dummy_prefix: bool = False
    repository: RepositoryFormat | None = None
    marks: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    by_vocabulary: bool = True

    def __post_init__(self) -> None:
        if not self.stops or isinstance(self.stops, str):
            raise ValueError(
                f"`stops` is {self.stops!r}; give a tuple of the tokens that end a span, the usual one first."
            )
        if self.order not in ORDERS:
            raise ValueError(f"`order` is {self.order!r}; give one of {', '.join(ORDERS)}.")
        needed = {"suffix", "prefix"} | ({"middle"} if "<middle>" in ORDERS[self.order] else set())
        given = {name for name in ("prefix", "suffix", "middle") if getattr(self, name) is not None}
        if given != (set() if self.mask else needed):
            raise ValueError(
                f"A format with {f'the masks {self.mask!r}' if self.mask else f'the order {self.order!r}'} has the tokens "
                f"{sorted(given)}; give either `mask`, or {', '.join(sorted(needed))}."
            )
        if self.mask is not None and "{}" not in self.mask:
            raise ValueError(f"`mask` is {self.mask!r}; give a template with {{}} where the number stands.")

    @property
    def sentinels(self) -> tuple[str, ...]:
        """The strings that a tokenizer of this family must have."""
        masks = () if self.mask is None else (self.mask.format(self.first_mask),)
        found = (
            *masks,
            self.separator,
            self.prefix,
            self.suffix,
            self.middle,
            self.stops[0],
            self.end_of_text,
            self.start,
        )
        return tuple(dict.fromkeys(token for token in found if token is not None))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "InfillFormat":
        """The format that `dataclasses.asdict` (and JSON) made a dictionary of."""
        known = {field.name for field in fields(cls)}
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        if unknown := sorted(set(settings) - known):
            raise ValueError(
                f"An infill format has no field {unknown[0]!r}; its fields are {', '.join(sorted(known))}."
            )
        repository = settings.get("repository")
        settings["repository"] = RepositoryFormat(**repository) if isinstance(repository, Mapping) else repository
        return cls(**settings)


# By name. The package adds other families when it is imported (`modeling_lpn/code/infill_formats.py`).
INFILL_FORMATS = {
    "codegen2": InfillFormat(stops=("<eom>", "<|endoftext|>"), mask="<mask_{}>", separator="<sep>"),
}
AUTO = "auto"


def find_format(infill_format: "str | InfillFormat", tokenizer: PreTrainedTokenizerBase | None = None) -> InfillFormat:
    """
    The format of a name; a format object is its own.

    Args:
        infill_format (`str` or [`InfillFormat`]): a key of `INFILL_FORMATS`, `"auto"`, or a format.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): for `"auto"`, see [`recognise_format`].

    Raises:
        ValueError: for an unknown name, or a vocabulary of none or of several families.
    """
    if isinstance(infill_format, InfillFormat):
        return infill_format
    if infill_format == AUTO and tokenizer is not None:
        return recognise_format(tokenizer)
    if infill_format not in INFILL_FORMATS:
        raise ValueError(
            f"Unknown infill format {infill_format!r}; known are {', '.join(INFILL_FORMATS)}, and {AUTO!r}. For another "
            "family give an `InfillFormat`."
        )
    return INFILL_FORMATS[infill_format]


def recognise_format(tokenizer: PreTrainedTokenizerBase) -> InfillFormat:
    """
    The format of a tokenizer, from its vocabulary, or the one that [`add_infill_tokens`] stored in it.

    Raises:
        ValueError: where no family's tokens are there, or those of several families that differ.
    """
    if stored := getattr(tokenizer, "init_kwargs", {}).get("infill_format"):
        return InfillFormat.from_dict(stored)
    vocab = tokenizer.get_vocab()
    found = {
        name: names
        for name, names in INFILL_FORMATS.items()
        if names.by_vocabulary and all(token in vocab for token in (*names.sentinels, *names.marks))
        if not any(token in vocab for token in names.lacks)
    }
    if not found:
        raise ValueError(
            f"The tokenizer ({len(vocab)} tokens) has the infilling tokens of no known family ({', '.join(INFILL_FORMATS)}); "
            "give an `InfillFormat` with its strings, or add some with `add_infill_tokens`."
        )
    if len(set(found.values())) > 1:
        raise ValueError(
            f"The tokenizer has the tokens of several families, {', '.join(found)}, whose prompts or stops differ; give "
            "the one of the model as `infill_format`."
        )
    return next(iter(found.values()))


@dataclass(frozen=True)
class MaskLayout:
    """
    The CodeGen2 layout on token ids: numbered masks in place, the spans after `<sep>`.

    Args:
        masks (`tuple[int, ...]`): ids of `<mask_1>`, `<mask_2>`, ...
        separator (`int`, *optional*): id of `<sep>`, which stands behind an end of text. Without it the mask after that
            of the last hole separates source and spans (InCoder).
        end_of_span (`int`): id of `<eom>`.
        end_of_text (`int`): id of `<|endoftext|>`.
        other_stops (`tuple[int, ...]`): further ids that end a span.
        start (`tuple[int, ...]`): ids every sequence begins with.
        special (`frozenset[int]`): the tokenizer's special ids, none of which can be in a text.

    Example:

    ```python
    >>> from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout

    >>> layout = MaskLayout(masks=(99, 98), separator=90, end_of_span=91, end_of_text=92)
    >>> layout.prompt([[1, 2], [5]])  # what an infilling model is given
    [1, 2, 99, 5, 92, 90, 99]
    >>> ids = layout.sequence([[1, 2], [5]], [[3, 4]])  # what it is trained on
    >>> ids
    [1, 2, 99, 5, 92, 90, 99, 3, 4, 91, 92]
    >>> layout.restore(ids)
    [1, 2, 3, 4, 5]

    ```
    """

    masks: tuple[int, ...]
    separator: int | None
    end_of_span: int
    end_of_text: int
    other_stops: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    special: frozenset[int] = frozenset()

    @property
    def max_holes(self) -> int:
        return len(self.masks) - (self.separator is None)

    @property
    def stops(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.end_of_span, self.end_of_text, *self.other_stops)))

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset((*self.masks, *self.stops, *self.start, *self._separators))

    @property
    def ends(self) -> frozenset[int]:
        """Ids that no span can hold: where a model writes one, its span is over."""
        return self.control_ids | self.special

    @property
    def _separators(self) -> tuple[int, ...]:
        return () if self.separator is None else (self.separator,)

    def between(self, holes: int) -> tuple[int, ...]:
        """The ids between a source with that many holes and its spans."""
        return (self.masks[holes],) if self.separator is None else (self.end_of_text, self.separator)

    def overhead(self, holes: int) -> int:
        """Number of sentinels in a finished sequence with that many holes, the final end of text not counted."""
        return len(self.start) + 3 * holes + len(self.between(0))

    def prompt(self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]] = ()) -> list[int]:
        """The sequence up to the hole after the given `spans`: what the model continues with the next span."""
        ids = _flat(self.parts(pieces, spans, final_end_of_text=False))
        return ids + [self.masks[len(spans)]] if len(spans) < len(pieces) - 1 else ids

    def parts(
        self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]], final_end_of_text: bool = True
    ) -> list[Sequence[int]]:
        """What a sequence is made of, in order: the given pieces and spans (of any type), and tuples of sentinels."""
        holes = len(pieces) - 1
        self.check_holes(holes)
        parts: list[Sequence[int]] = [self.start, pieces[0]] if self.start else [pieces[0]]
        for mask, piece in zip(self.masks[:holes], pieces[1:], strict=True):
            parts += ((mask,), piece)
        parts.append(self.between(holes))
        for mask, span in zip(self.masks[: len(spans)], spans, strict=True):
            parts += ((mask,), span, (self.end_of_span,))
        return [*parts, (self.end_of_text,)] if final_end_of_text else parts

    def sequence(
        self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]], final_end_of_text: bool = True
    ) -> list[int]:
        """The whole sequence, with all spans: what the model is trained on."""
        if len(spans) != len(pieces) - 1:
            raise ValueError(f"{len(pieces)} pieces have {len(pieces) - 1} holes; {len(spans)} spans are given.")
        return _flat(self.parts(pieces, spans, final_end_of_text))

    def restore(self, ids: Sequence[int]) -> list[int]:
        """
        Puts the spans of a `sequence` (or of a model's output) back into their holes.

        Raises:
            ValueError: for ids that are no such sequence: without a separator, with masks that are not numbered from the
                first on, a hole without its span, or tokens that belong to none.
        """
        ids = _without_start(ids, self.start)
        source, rest = self._split(ids)
        holes = [token for token in source if token in self.control_ids]
        if holes != list(self.masks[: len(holes)]):
            raise ValueError(
                f"The source has the control tokens {holes}, not the first masks in order; {_NO_SEQUENCE}"
            )
        spans = self._spans(rest, len(holes))
        return [token for item in source for token in (spans[self.masks.index(item)] if item in holes else (item,))]

    def _split(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """What stands before and after the ids that separate source and spans."""
        if self.separator is not None:
            if self.separator not in ids:
                raise ValueError(f"No separator (id {self.separator}) in the {len(ids)} ids; {_NO_SEQUENCE}")
            split = ids.index(self.separator)
            if ids[max(split - 1, 0) : split] != [self.end_of_text]:
                raise ValueError(f"No end of text (id {self.end_of_text}) before the separator; {_NO_SEQUENCE}")
            return ids[: split - 1], ids[split + 1 :]
        masks = [place for place, token in enumerate(ids) if token in self.masks]
        again = [number for number, place in enumerate(masks) if number and ids[place] == self.masks[0]]
        if not again or again[0] < 2:
            raise ValueError(
                f"The first mask (id {self.masks[0]}) does not begin a span behind the source; {_NO_SEQUENCE}"
            )
        split = masks[again[0] - 1]
        if ids[split] != self.masks[again[0] - 1] or masks[again[0]] != split + 1:
            raise ValueError(f"The mask before the spans is not that after the last hole's; {_NO_SEQUENCE}")
        return ids[:split], ids[split + 1 :]

    def _spans(self, rest: list[int], holes: int) -> list[list[int]]:
        spans = []
        for number in range(holes):
            if rest[:1] != [self.masks[number]]:
                raise ValueError(
                    f"Mask {number + 1} (id {self.masks[number]}) has no span in its place after the separator; "
                    f"{_NO_SEQUENCE}"
                )
            span, rest = _cut_span(rest[1:], self.stops, self.ends)
            spans.append(span)
        if any(token not in self.stops for token in rest):
            raise ValueError(f"{len(rest)} tokens follow the last span, from {rest[0]} on; {_NO_SEQUENCE}")
        return spans

    def check_holes(self, holes: int) -> None:
        if not 1 <= holes <= self.max_holes:
            raise ValueError(
                f"{holes} holes; this layout has mask tokens for 1 to {self.max_holes}. "
                "Give the pieces before, between and after the holes, and split the source if there are too many."
            )


@dataclass(frozen=True)
class MiddleLayout:
    """
    The fill-in-the-middle layouts on token ids: one hole, its sentinels in an order of `ORDERS`.

    Args:
        prefix, suffix (`int`): ids of the sentinels.
        middle (`int`, *optional*): id of the third; the order `"suffix_prefix"` has none.
        stops (`tuple[int, ...]`): ids that end the span; training ends it with the first one.
        order (`str`, defaults to `"psm"`): see [`InfillFormat`].
        start (`tuple[int, ...]`): ids every sequence begins with.
        end_of_text (`int`, *optional*): id that ends a file; by default the first of `stops`.
        special (`frozenset[int]`): the tokenizer's special ids, none of which can be in a text.

    Example:

    ```python
    >>> from modeling_lpn.codegen2.infilling_codegen2 import MiddleLayout

    >>> layout = MiddleLayout(prefix=90, suffix=91, middle=92, stops=(99,))
    >>> layout.sequence([[1, 2], [5]], [[3, 4]]), layout.sequence([[1, 2], [5]], [[3, 4]], suffix_first=True)
    ([90, 1, 2, 91, 5, 92, 3, 4, 99], [90, 91, 5, 92, 1, 2, 3, 4, 99])
    >>> layout.restore([90, 91, 5, 92, 1, 2, 3, 4, 99])
    [1, 2, 3, 4, 5]
    >>> MiddleLayout(prefix=90, suffix=91, middle=92, stops=(99,), order="spm_separate").prompt([[1, 2], [5]])
    [91, 5, 90, 1, 2, 92]

    ```
    """

    prefix: int
    suffix: int
    middle: int | None
    stops: tuple[int, ...]
    order: str = "psm"
    start: tuple[int, ...] = ()
    end_of_text: int | None = None
    special: frozenset[int] = frozenset()
    max_holes = 1

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"`order` is {self.order!r}; give one of {', '.join(ORDERS)}.")
        if (self.middle is None) == ("<middle>" in ORDERS[self.order]):
            raise ValueError(
                f"`middle` is {self.middle} in the order {self.order!r}; give it in all but 'suffix_prefix'."
            )
        if self.end_of_text is None:
            object.__setattr__(self, "end_of_text", self.stops[0])

    @property
    def orders(self) -> dict[bool, str]:
        """The orders that models of this layout read, by whether the suffix comes first."""
        both = {self.order, _TRAINED_TOGETHER.get(self.order, self.order)}
        return {order != "psm": order for order in sorted(both)}

    @property
    def sentinels(self) -> dict[str, int]:
        """Ids by the names that they have in `ORDERS`."""
        found = {"<prefix>": self.prefix, "<suffix>": self.suffix, "<middle>": self.middle}
        return {name: token for name, token in found.items() if token is not None}

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset((*self.sentinels.values(), self.end_of_text, *self.stops, *self.start))

    @property
    def ends(self) -> frozenset[int]:
        """Ids that no span can hold: where a model writes one, its span is over."""
        return self.control_ids | self.special

    def overhead(self, holes: int) -> int:
        """Number of sentinels of a finished sequence."""
        return len(self.start) + len(self.sentinels) + 1

    def prompt(self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]] = ()) -> list[int]:
        """The sequence up to the hole: what the model continues with the span."""
        return _flat(self.parts(pieces, ()))

    def parts(
        self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]], suffix_first: bool | None = None
    ) -> list[Sequence[int]]:
        """What a sequence is made of, in order: the given pieces and span (of any type), and tuples of sentinels."""
        if len(pieces) != 2:
            raise ValueError(f"{len(pieces) - 1} holes; fill-in-the-middle models know one. Fill them one by one.")
        if suffix_first is not None and suffix_first not in self.orders:
            raise ValueError(f"`suffix_first` is {suffix_first}, but this layout has the order {self.order!r} only.")
        order = self.order if suffix_first is None else self.orders[suffix_first]
        texts = {"before": pieces[0], "after": pieces[1]}
        parts: list[Sequence[int]] = [self.start] if self.start else []
        parts += [texts[name] if name in texts else (self.sentinels[name],) for name in ORDERS[order]]
        return [*parts, *spans, self.stops[:1]] if len(spans) else parts

    def sequence(
        self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]], suffix_first: bool | None = None
    ) -> list[int]:
        """The whole sequence, with its span: what the model is trained on."""
        return _flat(self.parts(pieces, spans, suffix_first))

    def restore(self, ids: Sequence[int]) -> list[int]:
        """
        Puts the span of a `sequence` (or of a model's output), in an order that this layout's models read, back into
        its hole.

        Raises:
            ValueError: where the sentinels are not those of such an order, once each, or text stands where none belongs.
        """
        ids, stop = _cut_span(_without_start(ids, self.start), self.stops, self.ends - set(self.sentinels.values()))
        if any(token not in self.stops for token in stop):
            raise ValueError(f"{len(stop)} tokens follow the end of the span, from {stop[0]} on; {_NO_SEQUENCE}")
        places = [place for place, token in enumerate(ids) if token in self.sentinels.values()]
        for order in self.orders.values():
            names = [name for name in ORDERS[order] if name in self.sentinels]
            if [self.sentinels[name] for name in names] == [ids[place] for place in places] and places[0] == 0:
                starts = [place + 1 for place in places]
                texts = dict(
                    zip(names, (ids[a:b] for a, b in zip(starts, [*places[1:], len(ids)], strict=True)), strict=True)
                )
                # In the joint order the prefix stands before the span already, and nothing between the first two.
                before, span = texts["<prefix>"], texts.get("<middle>", [])
                return before + span + texts["<suffix>"]
        known = " or ".join(" ".join(ORDERS[order]) for order in self.orders.values())
        raise ValueError(
            f"The ids have the sentinels {[ids[place] for place in places]} at {places}, not the order {known} with the ids "
            f"{self.sentinels}; {_NO_SEQUENCE}"
        )


_NO_SEQUENCE = "this is no infilling sequence of this layout."


def _flat(parts: Iterable[Iterable[int]]) -> list[int]:
    return [token for part in parts for token in part]


def _without_start(ids: Sequence[int], start: tuple[int, ...]) -> list[int]:
    ids = list(ids)
    return ids[len(start) :] if start and ids[: len(start)] == list(start) else ids


def _cut_span(ids: list[int], stops: tuple[int, ...], ends: Iterable[int]) -> tuple[list[int], list[int]]:
    """A span and what follows its stop. A span that runs into another control token is refused, an unfinished one is not."""
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    if end < len(ids) and ids[end] not in stops:
        raise ValueError(f"A span runs into the control token {ids[end]}; {_NO_SEQUENCE}")
    return ids[:end], ids[end + 1 :]


def infill_layout(
    tokenizer: PreTrainedTokenizerBase, infill_format: str | InfillFormat = "codegen2"
) -> MaskLayout | MiddleLayout:
    """
    Looks the sentinels of a family up in a tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        infill_format (`str` or [`InfillFormat`], defaults to `"codegen2"`): a key of `INFILL_FORMATS`, a format, or
            `"auto"`: the family that the vocabulary tells, see [`recognise_format`].

    Returns:
        [`MaskLayout`] or [`MiddleLayout`]: the layout with this tokenizer's ids.

    Raises:
        ValueError: for an unknown format, or a sentinel the tokenizer does not have (it would silently be encoded as
            the unknown token).
    """
    names, vocab = find_format(infill_format, tokenizer), tokenizer.get_vocab()
    missing = [token for token in names.sentinels if token not in vocab]
    if missing:
        raise ValueError(
            f"The tokenizer ({len(vocab)} tokens) has no sentinel {missing[0]!r}, which the format {infill_format!r} "
            f"needs; pass the tokenizer of an infilling model, or another `infill_format` of "
            f"{', '.join(INFILL_FORMATS)}, or give a plain model such tokens with `add_infill_tokens`."
        )
    stops = tuple(vocab[token] for token in names.stops if token in vocab)
    start = () if names.start is None else (vocab[names.start],)
    end_of_text, special = vocab[names.end_of_text], special_ids(tokenizer)
    if names.mask is None:
        middle = None if names.middle is None else vocab[names.middle]
        sentinels = vocab[names.prefix], vocab[names.suffix], middle
        return MiddleLayout(*sentinels, stops, names.order, start, end_of_text, special)
    masks = [vocab[names.mask.format(names.first_mask)]]
    while (following := names.mask.format(names.first_mask + len(masks))) in vocab:
        masks.append(vocab[following])
    separator = None if names.separator is None else vocab[names.separator]
    return MaskLayout(tuple(masks), separator, stops[0], end_of_text, stops[1:], start, special)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that a tokenizer holds to be special, and leaves out of a text where it is asked to."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


@functools.lru_cache(maxsize=8)
def _control_pattern(control: frozenset[str]) -> re.Pattern[str]:
    # A lookahead finds overlapping strings as well.
    return re.compile("(?=" + "|".join(re.escape(text) for text in sorted(control, key=len, reverse=True)) + ")")


def encode_source(
    tokenizer: PreTrainedTokenizerBase, text: str, dummy_prefix: bool = False, first: bool = False
) -> list[int]:
    """
    Token ids of source text that is data whatever it holds: a `<mask_1>` or `<|endoftext|>` written in the text is
    encoded as the characters it is made of and never becomes a control token.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        text (`str`): any text.
        dummy_prefix (`bool`): whether the tokenizer puts a space before a text (see [`InfillFormat`]), which is left
            out.
        first (`bool`): whether the text begins a source; there a tokenizer's space stays, as in training.

    Returns:
        `list[int]`: ids that decode to `text`.
    """
    control = _control_strings(tokenizer)
    # Cutting a control string after its first character leaves no piece that contains it.
    cuts = [match.start() + 1 for match in _control_pattern(control).finditer(text)] if control else []
    ids: list[int] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if start < end:
            ids += _encode(tokenizer, text[start:end], dummy_prefix and not (first and start == 0))
    return ids


def encode_sources(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], dummy_prefix: bool = False
) -> list[list[int]]:
    """
    [`encode_source`] of many whole files, in one call to the tokenizer for all that hold no control string.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        texts (`Sequence[str]`): the files.
        dummy_prefix (`bool`): see [`encode_source`].

    Returns:
        `list[list[int]]`: the ids of each file.
    """
    control = _control_strings(tokenizer)
    plain = [not control or _control_pattern(control).search(text) is None for text in texts]
    chosen = [text for text, is_plain in zip(texts, plain, strict=True) if is_plain]
    # `verbose=False`: a file may be longer than the context.
    encoded = iter(tokenizer(chosen, add_special_tokens=False, verbose=False)["input_ids"] if chosen else [])
    return [
        next(encoded) if is_plain else encode_source(tokenizer, text, dummy_prefix, first=True)
        for text, is_plain in zip(texts, plain, strict=True)
    ]


def _control_strings(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    return frozenset(token for token in tokenizer.get_added_vocab() if len(token.strip()) > 1)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, dummy_prefix: bool) -> list[int]:
    if not dummy_prefix:
        return tokenizer.encode(text, add_special_tokens=False, verbose=False)
    # A line break is never joined with what follows it, so its tokens, dummy space and all, can be taken off again.
    anchor = len(tokenizer.encode("\n", add_special_tokens=False))
    return tokenizer.encode("\n" + text, add_special_tokens=False)[anchor:]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], dummy_prefix: bool) -> str:
    """Text of a span, every token of it: there is no special one among them."""
    # A tokenizer with a dummy space takes the first one off again, which a span after `return` needs.
    anchor = tokenizer.encode("\n", add_special_tokens=False) if dummy_prefix else []
    start, text = (str(tokenizer.decode(part, clean_up_tokenization_spaces=False)) for part in (anchor, anchor + ids))
    return text[len(start) :]


def cut_around_holes(pieces: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """
    Shortens the outer pieces to a number of tokens: the end of the first and the start of the last one stay.

    Args:
        pieces (`Sequence[Sequence[int]]`): token ids before, between and after the holes.
        budget (`int`): number of tokens that may stay.

    Returns:
        `list[list[int]]`: the pieces; each outer one keeps half of what the others leave, more where the other one
        does not need its half.

    Raises:
        ValueError: where the pieces between the holes alone exceed the budget.

    Example:

    ```python
    >>> from modeling_lpn.codegen2.infilling_codegen2 import cut_around_holes

    >>> cut_around_holes([[1, 2, 3, 4], [5, 6, 7, 8]], 5)
    [[3, 4], [5, 6, 7]]

    ```
    """
    first, *middle, last = (list(piece) for piece in pieces)
    room = budget - sum(map(len, middle))
    if room < 0:
        raise ValueError(
            f"The context leaves {budget} tokens for the source, but the text between the holes alone has "
            f"{sum(map(len, middle))}; lower `max_new_tokens`, or fill holes that are far apart in separate calls."
        )
    keep_first = min(len(first), max(room // 2, room - len(last)))
    return [first[len(first) - keep_first :], *middle, last[: room - keep_first]]


@dataclass(frozen=True)
class _Context:
    """Ids of a repository's other files and of the path, in parts that may be left out from the front."""

    name: tuple[int, ...] = ()
    files: tuple[tuple[int, ...], ...] = ()
    head: tuple[int, ...] = ()  # the token and the path of the file with the hole
    in_prefix: tuple[int, ...] = ()  # the path, where it stands behind the prefix token

    def fitting(self, room: int) -> "_Context":
        """Without the first files, as many as it takes to have at most that many ids."""
        files = self.files
        while files and len(self.name) + sum(map(len, files)) + len(self.head) > room:
            files = files[1:]
        return _Context(self.name, files, self.head, self.in_prefix)

    @property
    def before(self) -> tuple[int, ...]:
        return (*self.name, *_flat(self.files), *self.head)


def _encode_context(
    tokenizer: PreTrainedTokenizerBase,
    names: InfillFormat,
    files: Mapping[str, str] | None,
    path: str | None,
    repo_name: str | None,
) -> _Context:
    """
    The files of a repository before the one to fill, in its family's form.

    Raises:
        ValueError: for a family without such a form or without a token for the repository's name, and files without the
            `path` of the one to fill.
    """
    if not (files or path or repo_name):
        return _Context()
    known, vocab = names.repository, tokenizer.get_vocab()
    if known is None or path is None or (repo_name is not None and known.name is None):
        fault, cure = "the format has no tokens for files of a repository", "leave `files`, `path` and `repo_name` out"
        if known is not None and path is None:
            fault, cure = "`path` is not given", "say what the file with the hole is called"
        elif known is not None:
            fault, cure = "the format has no token for a repository's name", "leave `repo_name` out"
        raise ValueError(f"Other files stand before the one to fill, but {fault}; {cure}.")
    missing = [token for token in (known.file, known.name if repo_name else None) if token and token not in vocab]
    if missing:
        raise ValueError(f"The tokenizer has no token {missing[0]!r}, which other files need; leave `files` out.")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(encode_source(tokenizer, text, names.dummy_prefix))

    name = (vocab[known.name], *encode(repo_name + known.after_name)) if repo_name and known.name else ()
    others = (encode(f"{other}\n{text}{known.after_file}") for other, text in (files or {}).items())
    own, token = encode(f"{path}\n"), (vocab[known.file],)
    head = token if known.path_in_prefix else token + own
    return _Context(name, tuple(token + ids for ids in others), head, own if known.path_in_prefix else ())


@dataclass(frozen=True)
class Infilling:
    """
    A filled source.

    Args:
        text (`str`): the source with its holes filled.
        spans (`tuple[str, ...]`): what was written into each hole.
        finished (`tuple[bool, ...]`): whether the model ended the span itself by a stop of the format; not, where it ran
            out of `max_new_tokens` or wrote another control or special token, at which its span is cut.
        truncated (`bool`): whether the model saw only a part of the source, around the holes, or of the other files.
    """

    text: str
    spans: tuple[str, ...]
    finished: tuple[bool, ...]
    truncated: bool


@dataclass(frozen=True)
class _Source:
    """Token ids of a request, as the model reads it."""

    pieces: list[list[int]]
    before: tuple[int, ...]
    truncated: bool


class Infiller:
    """
    A model with the sentinels of its family looked up once: what [`infill`] and a server of many requests share.

    Args:
        model, tokenizer, infill_format: see [`infill`].

    Attributes:
        ends (`list[int]`): ids at which a span is over, the format's stops first.

    Raises:
        ValueError: for sentinels the tokenizer lacks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        infill_format: str | InfillFormat = "codegen2",
    ):
        self.model, self.tokenizer = model, tokenizer
        self.names = find_format(infill_format, tokenizer)
        self.layout = infill_layout(tokenizer, self.names if infill_format == AUTO else infill_format)
        # Whatever cannot be in a text ends its row: generation behind it would be thrown away.
        self.ends = [*self.layout.stops, *sorted(self.layout.ends - set(self.layout.stops))]

    def context(
        self, files: Mapping[str, str] | None = None, path: str | None = None, repo_name: str | None = None
    ) -> _Context:
        """Other files of the repository, for [`Infiller.start`]; arguments and errors as of [`infill`]."""
        return _encode_context(self.tokenizer, self.names, files, path, repo_name)

    def start(self, pieces: Sequence[str], max_new_tokens: int, context: _Context = _Context()) -> "Filling":
        """
        A source to fill.

        Args:
            pieces (`Sequence[str]`): the texts before, between and after the holes.
            max_new_tokens (`int`): longest span, for which room is left in the context.
            context: other files, from [`Infiller.context`].

        Raises:
            ValueError: as [`infill`].
        """
        dummy_prefix = self.names.dummy_prefix
        source = _encode_request(
            self.model, self.tokenizer, self.layout, list(pieces), max_new_tokens, dummy_prefix, context
        )
        _check_vocabulary(self.model, self.layout, source)
        return Filling(self, list(pieces), source)

    def encode(self, text: str) -> list[int]:
        """Ids of a text within a source."""
        return encode_source(self.tokenizer, text, self.names.dummy_prefix)

    def decode(self, ids: list[int]) -> str:
        """Text of the ids of a span."""
        return _decode(self.tokenizer, ids, self.names.dummy_prefix)


class Filling:
    """
    A source whose holes are being filled, one after the other, made by [`Infiller.start`].

    Attributes:
        spans (`list[list[int]]`): ids of the spans so far, without what ended them.
        truncated (`bool`): see [`Infilling`].
    """

    def __init__(self, infiller: Infiller, pieces: list[str], source: _Source):
        self.infiller, self.pieces, self.source = infiller, pieces, source
        self.spans: list[list[int]] = []
        self.finished: list[bool] = []
        self.truncated = source.truncated

    @property
    def is_done(self) -> bool:
        return len(self.spans) == len(self.pieces) - 1

    @property
    def prompt(self) -> list[int]:
        """Ids that the model continues with the next span."""
        layout = self.infiller.layout
        prompt = layout.prompt(self.source.pieces, self.spans)
        return [*layout.start, *self.source.before, *prompt[len(layout.start) :]]

    def add(self, new_ids: Sequence[int]) -> None:
        """Fills the next hole with what the model wrote; ids from the first end on are left out."""
        layout = self.infiller.layout
        end = next((place for place, token in enumerate(new_ids) if token in layout.ends), len(new_ids))
        self.spans.append(list(new_ids[:end]))
        self.finished.append(end < len(new_ids) and new_ids[end] in layout.stops)

    def result(self, stop_strings: Sequence[str] = ()) -> Infilling:
        """The filled source; a span that holds one of `stop_strings` is finished too."""
        texts = [self.infiller.decode(span) for span in self.spans]
        ended = [
            end or any(stop in text for stop in stop_strings) for end, text in zip(self.finished, texts, strict=True)
        ]
        text = self.pieces[0] + "".join(span + piece for span, piece in zip(texts, self.pieces[1:], strict=True))
        return Infilling(text, tuple(texts), tuple(ended), self.truncated)


def infill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prefix: str | Sequence[str] | None = None,
    suffix: str | Sequence[str] | None = None,
    pieces: Sequence[str] | Sequence[Sequence[str]] | None = None,
    max_new_tokens: int | None = None,
    infill_format: str | InfillFormat = "codegen2",
    files: Mapping[str, str] | None = None,
    path: str | None = None,
    repo_name: str | None = None,
    **kwargs: Any,
) -> "Infilling | list[Infilling]":
    """
    Writes the code that belongs between a prefix and a suffix.

    Args:
        model (`PreTrainedModel`): a causal language model trained to infill.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer; source text is encoded as data, see [`encode_source`].
        prefix, suffix (`str` or `list[str]`): text before and after the hole; lists of equal lengths are a batch.
        pieces (`list[str]` or `list[list[str]]`): for several holes, the texts before, between and after them,
            instead of `prefix` and `suffix`; a list of lists is a batch, whose rows may differ in their holes.
        max_new_tokens (`int`, *optional*): longest span, in tokens; that of a given `generation_config`, else 128. A
            context that would grow beyond the model's is cut at its ends, far from the holes.
        infill_format (`str` or [`InfillFormat`], defaults to `"codegen2"`): the model's family, a key of
            `INFILL_FORMATS`, or `"auto"`, see [`recognise_format`], or a format of one's own.
        files (`Mapping[str, str]`, *optional*): texts of other files of the repository by their paths, the most useful
            ones last, for families that read them ([`RepositoryFormat`]). They get half of the context at most; what is
            too much is left out from the front, by whole files.
        path, repo_name (`str`, *optional*): path of the file with the hole, and the repository's name.
        kwargs: passed to `generate`: `do_sample`, `temperature`, `num_beams`, a `generation_config`, ... Spans end at the
            format's stops, and after one of `stop_strings`, which stays part of its span.

    Returns:
        [`Infilling`], or a list of them for a batch.

    Raises:
        ValueError: for sentinels the tokenizer lacks, a tokenizer and a model that do not belong together, a wrong
            number of holes, other files where the family reads none, or no room left for the source.
    """
    requests, single = _requests(prefix, suffix, pieces)
    settings = _generation_settings(model, kwargs)
    max_new_tokens = max_new_tokens or settings.pop("max_new_tokens", None) or 128
    infiller = Infiller(model, tokenizer, infill_format)
    context = infiller.context(files, path, repo_name)
    fillings = [infiller.start(request, max_new_tokens, context) for request in requests]
    while rows := [filling for filling in fillings if not filling.is_done]:
        prompts, pad = [filling.prompt for filling in rows], infiller.layout.stops[-1]
        written = continue_prompts(
            model, prompts, infiller.ends, max_new_tokens, pad=pad, tokenizer=tokenizer, **settings
        )
        for filling, ids in zip(rows, written, strict=True):
            filling.add(ids)
    stop_strings = settings.get("stop_strings") or ()
    stop_strings = (stop_strings,) if isinstance(stop_strings, str) else stop_strings
    results = [filling.result(stop_strings) for filling in fillings]
    return results[0] if single else results


def _requests(
    prefix: str | Sequence[str] | None,
    suffix: str | Sequence[str] | None,
    pieces: Sequence[str] | Sequence[Sequence[str]] | None,
) -> tuple[list[list[str]], bool]:
    """The texts of each row, and whether a single one was asked for."""
    if (pieces is None) == (prefix is None) or (prefix is None) != (suffix is None):
        raise ValueError("Give `prefix` and `suffix` for one hole, or `pieces` for several, not a part of both.")
    if pieces is None:
        single = isinstance(prefix, str)
        prefixes, suffixes = ([prefix], [suffix]) if single else (prefix, suffix)
        if single != isinstance(suffix, str) or len(prefixes) != len(suffixes):
            raise ValueError("`prefix` and `suffix` are not alike: give two texts, or two lists of equal lengths.")
        rows: list[Any] = list(zip(prefixes, suffixes, strict=True))
    else:
        single = len(pieces) > 0 and isinstance(pieces[0], str)
        rows = [pieces] if single else list(pieces)
    for row in rows:
        if len(row) < 2:
            raise ValueError("A row of `pieces` has a single text and so no hole; give the texts around each hole.")
    return [list(row) for row in rows], single


def _check_vocabulary(model: PreTrainedModel, layout: MaskLayout | MiddleLayout, source: _Source) -> None:
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    highest = max(layout.control_ids.union(*source.pieces, source.before))
    if highest >= rows:
        raise ValueError(
            f"The tokenizer gives ids up to {highest}, the model embeds {rows} tokens; load the tokenizer that belongs "
            "to the model (or resize the embeddings and train them, see `add_infill_tokens`)."
        )


def _encode_request(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layout: MaskLayout | MiddleLayout,
    request: list[str],
    max_new_tokens: int,
    dummy_prefix: bool,
    context: _Context,
) -> _Source:
    """Token ids of the pieces and the other files, cut to the model's context."""
    pieces = [encode_source(tokenizer, text, dummy_prefix, first=place == 0) for place, text in enumerate(request)]
    holes = len(pieces) - 1
    limit = model.config.get_text_config().max_position_embeddings
    room = limit - layout.overhead(holes) - holes * max_new_tokens
    fitting = context.fitting(room // 2)
    budget = room - len(fitting.before) - len(fitting.in_prefix)
    if budget < 1:
        raise ValueError(
            f"{holes} hole(s) of `max_new_tokens` {max_new_tokens} leave no room for the source in a context of "
            f"{limit} tokens; lower `max_new_tokens`."
        )
    cut = sum(map(len, pieces)) > budget
    pieces = cut_around_holes(pieces, budget) if cut else pieces
    pieces[0] = [*fitting.in_prefix, *pieces[0]]
    return _Source(pieces, fitting.before, cut or fitting != context)


def _generation_settings(model: PreTrainedModel, kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    The settings of `generate` with those of a given `generation_config` among them, which alone may be given together.

    The stops of the layout replace those of a `generation_config`, which may end at a token that is part of a span.
    """
    config = kwargs.pop("generation_config", None)
    settings = {} if config is None else config.to_diff_dict()
    for name in ("transformers_version", "eos_token_id", "pad_token_id", "bos_token_id", "max_length"):
        settings.pop(name, None)
    settings |= kwargs
    of_model = getattr(model, "generation_config", None)
    samples = settings.get("num_return_sequences") or getattr(of_model, "num_return_sequences", None) or 1
    if samples != 1:
        raise ValueError(
            f"`num_return_sequences` is {samples}; `infill` writes one span per hole. For several samples repeat the "
            "prefix and the suffix in the batch, with `do_sample=True` and `num_return_sequences=1`."
        )
    return settings


def continue_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
    max_new_tokens: int,
    pad: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **kwargs: Any,
) -> list[list[int]]:
    """
    Continues prompts of different lengths, padded on the left.

    Args:
        model (`PreTrainedModel`): the model.
        prompts (`Sequence[Sequence[int]]`): token ids, none of them empty.
        stops (`Sequence[int]`): ids that end a row; without one, no row ends before the limit.
        max_new_tokens (`int`): the limit.
        pad (`int`): id that fills rows.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): for `stop_strings`.
        kwargs: passed to `generate`.

    Returns:
        `list[list[int]]`: the new ids of each prompt, the one that ended it and padding included.
    """
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    if kwargs.get("stop_strings"):
        kwargs["tokenizer"] = tokenizer
    generate: Any = model.generate
    kwargs |= {"eos_token_id": list(stops) or None, "pad_token_id": pad, "max_new_tokens": max_new_tokens}
    with torch.no_grad():
        rows = generate(ids, attention_mask=mask, **{**kwargs, "return_dict_in_generate": False})
    return rows[:, length:].tolist()
