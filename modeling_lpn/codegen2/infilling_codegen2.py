"""
Infilling: where the sentinels go, once, by token id (arXiv 2305.02309, section 3; InCoder, arXiv 2204.05999).

A source is a list of *pieces*, the text before, between and after its holes; *spans* fill the holes. CodeGen2 reads

    piece_0 <mask_1> piece_1 <mask_2> piece_2 <|endoftext|> <sep> <mask_1> span_1 <eom> <mask_2> span_2 <eom>

and models with fill-in-the-middle tokens (arXiv 2207.14255) read `<prefix> piece_0 <suffix> piece_1 <middle> span`.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class InfillFormat:
    """
    The sentinel strings of a model family; ids are looked up in its tokenizer.

    Args:
        stops (`tuple[str, ...]`): tokens that end a span; the first one is the family's end of a span.
        end_of_text (`str`): token after the last piece.
        mask (`str`, *optional*): template of the numbered mask tokens, with `separator`: the CodeGen2 layout.
        separator (`str`, *optional*): token between the source and its spans.
        prefix, suffix, middle (`str`, *optional*): fill-in-the-middle tokens, where there are no masks.
        suffix_first (`bool`): whether the suffix comes first (SPM) instead of the prefix (PSM).
        start (`str`, *optional*): token every sequence begins with.
        dummy_prefix (`bool`): whether the tokenizer puts a space before every text it encodes (SentencePiece).
    """

    stops: tuple[str, ...]
    end_of_text: str = "<|endoftext|>"
    mask: str | None = None
    separator: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    middle: str | None = None
    suffix_first: bool = False
    start: str | None = None
    dummy_prefix: bool = False


# By name. The package adds other families when it is imported (`modeling_lpn/code/infill_formats.py`).
INFILL_FORMATS = {
    "codegen2": InfillFormat(stops=("<eom>", "<|endoftext|>"), mask="<mask_{}>", separator="<sep>"),
}


def find_format(infill_format: "str | InfillFormat") -> InfillFormat:
    """
    The format of a name; a format object is its own.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(infill_format, InfillFormat):
        return infill_format
    if infill_format not in INFILL_FORMATS:
        raise ValueError(
            f"Unknown infill format {infill_format!r}; known are {', '.join(INFILL_FORMATS)}. For another family give "
            "an `InfillFormat`."
        )
    return INFILL_FORMATS[infill_format]


@dataclass(frozen=True)
class MaskLayout:
    """
    The CodeGen2 layout on token ids: numbered masks in place, the spans after `<sep>`.

    Args:
        masks (`tuple[int, ...]`): ids of `<mask_1>`, `<mask_2>`, ...
        separator (`int`): id of `<sep>`.
        end_of_span (`int`): id of `<eom>`.
        end_of_text (`int`): id of `<|endoftext|>`.

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
    separator: int
    end_of_span: int
    end_of_text: int

    @property
    def max_holes(self) -> int:
        return len(self.masks)

    @property
    def stops(self) -> tuple[int, ...]:
        return (self.end_of_span, self.end_of_text)

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset((*self.masks, self.separator, *self.stops))

    def overhead(self, holes: int) -> int:
        """Number of sentinels in a finished sequence with that many holes, the final end of text not counted."""
        return 3 * holes + 2

    def prompt(self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]] = ()) -> list[int]:
        """The sequence up to the hole after the given `spans`: what the model continues with the next span."""
        ids = _flat(self.parts(pieces, spans, final_end_of_text=False))
        return ids + [self.masks[len(spans)]] if len(spans) < len(pieces) - 1 else ids

    def parts(self, pieces, spans, final_end_of_text: bool = True) -> list:
        """What a sequence is made of, in order: the given pieces and spans (of any type), and tuples of sentinels."""
        self.check_holes(len(pieces) - 1)
        parts = [pieces[0]]
        for mask, piece in zip(self.masks, pieces[1:]):
            parts += ((mask,), piece)
        parts.append((self.end_of_text, self.separator))
        for mask, span in zip(self.masks, spans):
            parts += ((mask,), span, (self.end_of_span,))
        return [*parts, (self.end_of_text,)] if final_end_of_text else parts

    def sequence(self, pieces, spans, final_end_of_text: bool = True) -> list[int]:
        """The whole sequence, with all spans: what the model is trained on."""
        if len(spans) != len(pieces) - 1:
            raise ValueError(f"{len(pieces)} pieces have {len(pieces) - 1} holes; {len(spans)} spans are given.")
        return _flat(self.parts(pieces, spans, final_end_of_text))

    def restore(self, ids: Sequence[int]) -> list[int]:
        """
        Puts the spans of a `sequence` (or of a model's output) back into their holes.

        Raises:
            ValueError: where the ids have no `<sep>`, or a mask in the source has no span after it.
        """
        ids = list(ids)
        if self.separator not in ids:
            raise ValueError(
                f"No separator (id {self.separator}) in the {len(ids)} ids; this is no infilling sequence."
            )
        split = ids.index(self.separator)
        spans: dict[int, list[int]] = {}
        current: list[int] | None = None
        for token in ids[split + 1 :]:
            if token in self.stops:
                current = None
            elif token in self.masks:
                current = spans.setdefault(token, [])
            elif current is not None:
                current.append(token)
        source: list[int] = []
        for token in ids[: max(split - 1, 0)]:  # the end of text stands before the separator
            if token in self.masks and token not in spans:
                raise ValueError(f"Mask {self.masks.index(token) + 1} (id {token}) has no span after the separator.")
            source += spans[token] if token in self.masks else [token]
        return source

    def check_holes(self, holes):
        if not 1 <= holes <= self.max_holes:
            raise ValueError(
                f"{holes} holes; this layout has mask tokens for 1 to {self.max_holes}. "
                "Give the pieces before, between and after the holes, and split the source if there are too many."
            )


@dataclass(frozen=True)
class MiddleLayout:
    """
    The fill-in-the-middle layouts on token ids: one hole, prefix-suffix-middle or (joint) suffix-prefix-middle.

    Args:
        prefix, suffix, middle (`int`): ids of the three sentinels.
        stops (`tuple[int, ...]`): ids that end the span; training ends it with the first one.
        suffix_first (`bool`): SPM, where the span continues the prefix directly (arXiv 2207.14255, section 4.3).
        start (`tuple[int, ...]`): ids every sequence begins with.
        end_of_text (`int`, *optional*): id that ends a file; by default the first of `stops`.

    Example:

    ```python
    >>> from modeling_lpn.codegen2.infilling_codegen2 import MiddleLayout

    >>> layout = MiddleLayout(prefix=90, suffix=91, middle=92, stops=(99,))
    >>> layout.sequence([[1, 2], [5]], [[3, 4]]), layout.sequence([[1, 2], [5]], [[3, 4]], suffix_first=True)
    ([90, 1, 2, 91, 5, 92, 3, 4, 99], [90, 91, 5, 92, 1, 2, 3, 4, 99])
    >>> layout.restore([90, 91, 5, 92, 1, 2, 3, 4, 99])
    [1, 2, 3, 4, 5]

    ```
    """

    prefix: int
    suffix: int
    middle: int
    stops: tuple[int, ...]
    suffix_first: bool = False
    start: tuple[int, ...] = ()
    end_of_text: int | None = None
    max_holes = 1

    def __post_init__(self):
        if self.end_of_text is None:
            object.__setattr__(self, "end_of_text", self.stops[0])

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset((self.prefix, self.suffix, self.middle, self.end_of_text, *self.stops))

    def overhead(self, holes: int) -> int:
        """Number of sentinels of a finished sequence."""
        return 4 + len(self.start)

    def prompt(self, pieces: Sequence[Sequence[int]], spans: Sequence[Sequence[int]] = ()) -> list[int]:
        """The sequence up to the hole: what the model continues with the span."""
        return _flat(self.parts(pieces, ()))

    def parts(self, pieces, spans, suffix_first: bool | None = None) -> list:
        """What a sequence is made of, in order: the given pieces and span (of any type), and tuples of sentinels."""
        if len(pieces) != 2:
            raise ValueError(f"{len(pieces) - 1} holes; fill-in-the-middle models know one. Fill them one by one.")
        before, after = pieces
        if self.suffix_first if suffix_first is None else suffix_first:
            parts = [(*self.start, self.prefix, self.suffix), after, (self.middle,), before]
        else:
            parts = [(*self.start, self.prefix), before, (self.suffix,), after, (self.middle,)]
        return [*parts, *spans, self.stops[:1]] if len(spans) else parts

    def sequence(self, pieces, spans, suffix_first: bool | None = None) -> list[int]:
        """The whole sequence, with its span: what the model is trained on."""
        return _flat(self.parts(pieces, spans, suffix_first))

    def restore(self, ids: Sequence[int]) -> list[int]:
        """
        Puts the span of a `sequence` of either order back into its hole.

        Raises:
            ValueError: where the ids lack one of the three sentinels.
        """
        ids = list(ids)
        for sentinel in (self.prefix, self.suffix, self.middle):
            if sentinel not in ids:
                raise ValueError(f"No sentinel {sentinel} in the {len(ids)} ids; this is no infilling sequence.")
        prefix, suffix, middle = map(ids.index, (self.prefix, self.suffix, self.middle))
        span = [token for token in ids[middle + 1 :] if token not in self.stops]
        # In SPM order the prefix stands before the span already, and nothing between the first two sentinels.
        return ids[prefix + 1 : suffix] + span + ids[suffix + 1 : middle]


def _flat(parts):
    return [token for part in parts for token in part]


def infill_layout(tokenizer, infill_format: str | InfillFormat = "codegen2") -> MaskLayout | MiddleLayout:
    """
    Looks the sentinels of a family up in a tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        infill_format (`str` or [`InfillFormat`], defaults to `"codegen2"`): a key of `INFILL_FORMATS`, or a format.

    Returns:
        [`MaskLayout`] or [`MiddleLayout`]: the layout with this tokenizer's ids.

    Raises:
        ValueError: for an unknown format, or a sentinel the tokenizer does not have (it would silently be encoded as
            the unknown token).
    """
    names, vocab = find_format(infill_format), tokenizer.get_vocab()

    def find(token):
        if token not in vocab:
            raise ValueError(
                f"The tokenizer ({len(vocab)} tokens) has no sentinel {token!r}, which the format {infill_format!r} "
                f"needs; pass the tokenizer of an infilling model, or another `infill_format` of "
                f"{', '.join(INFILL_FORMATS)}."
            )
        return vocab[token]

    if names.mask is None:
        prefix, suffix, middle = (find(token) for token in (names.prefix, names.suffix, names.middle))
        # Not every tokenizer of a family has every token that may end a span; the first one it must have.
        stops = (find(names.stops[0]), *(vocab[token] for token in names.stops[1:] if token in vocab))
        start = () if names.start is None else (find(names.start),)
        end_of_text = find(names.end_of_text)
        return MiddleLayout(prefix, suffix, middle, stops, names.suffix_first, start, end_of_text)
    masks = [find(names.mask.format(1))]
    while (following := names.mask.format(len(masks) + 1)) in vocab:
        masks.append(vocab[following])
    return MaskLayout(tuple(masks), find(names.separator), find(names.stops[0]), find(names.end_of_text))


@functools.lru_cache(maxsize=8)
def _control_pattern(control):
    # A lookahead finds overlapping strings as well.
    return re.compile("(?=" + "|".join(re.escape(text) for text in sorted(control, key=len, reverse=True)) + ")")


def encode_source(tokenizer, text: str, dummy_prefix: bool = False, first: bool = False) -> list[int]:
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
    ids = []
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        if start < end:
            ids += _encode(tokenizer, text[start:end], dummy_prefix and not (first and start == 0))
    return ids


def encode_sources(tokenizer, texts: Sequence[str], dummy_prefix: bool = False) -> list[list[int]]:
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
    chosen = [text for text, is_plain in zip(texts, plain) if is_plain]
    # `verbose=False`: a file may be longer than the context.
    encoded = iter(tokenizer(chosen, add_special_tokens=False, verbose=False)["input_ids"] if chosen else [])
    return [
        next(encoded) if is_plain else encode_source(tokenizer, text, dummy_prefix, first=True)
        for text, is_plain in zip(texts, plain)
    ]


def _control_strings(tokenizer):
    return frozenset(token for token in tokenizer.get_added_vocab() if len(token.strip()) > 1)


def _encode(tokenizer, text, dummy_prefix):
    if not dummy_prefix:
        return tokenizer.encode(text, add_special_tokens=False, verbose=False)
    # A line break is never joined with what follows it, so its tokens, dummy space and all, can be taken off again.
    anchor = len(tokenizer.encode("\n", add_special_tokens=False))
    return tokenizer.encode("\n" + text, add_special_tokens=False)[anchor:]


def _decode(tokenizer, ids, dummy_prefix):
    """Text of a span. Special tokens that are no stop, such as reserved ones, are dropped."""
    arguments = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    if not dummy_prefix:
        return tokenizer.decode(ids, **arguments)
    # Such a tokenizer takes the first space off again, which a span after `return` needs.
    anchor = tokenizer.encode("\n", add_special_tokens=False)
    return tokenizer.decode(anchor + ids, **arguments)[len(tokenizer.decode(anchor, **arguments)) :]


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
class Infilling:
    """
    A filled source.

    Args:
        text (`str`): the source with its holes filled.
        spans (`tuple[str, ...]`): what was written into each hole.
        finished (`tuple[bool, ...]`): whether the model ended the span itself, or ran out of `max_new_tokens`.
        truncated (`bool`): whether the model saw only a part of the source, around the holes.
    """

    text: str
    spans: tuple[str, ...]
    finished: tuple[bool, ...]
    truncated: bool


def infill(
    model,
    tokenizer,
    prefix: str | Sequence[str] | None = None,
    suffix: str | Sequence[str] | None = None,
    pieces: Sequence[str] | Sequence[Sequence[str]] | None = None,
    max_new_tokens: int | None = None,
    infill_format: str | InfillFormat = "codegen2",
    **kwargs,
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
            `INFILL_FORMATS`, or a format of one's own.
        kwargs: passed to `generate`: `do_sample`, `temperature`, `num_beams`, a `generation_config`, ... Spans end at the
            format's stops, and after one of `stop_strings`, which stays part of its span.

    Returns:
        [`Infilling`], or a list of them for a batch.

    Raises:
        ValueError: for sentinels the tokenizer lacks, a tokenizer and a model that do not belong together, a wrong
            number of holes, or no room left for the source.
    """
    requests, single = _requests(prefix, suffix, pieces)
    settings = _generation_settings(model, kwargs)
    max_new_tokens = max_new_tokens or settings.pop("max_new_tokens", None) or 128
    layout = infill_layout(tokenizer, infill_format)
    dummy_prefix = find_format(infill_format).dummy_prefix
    sources = [
        _encode_request(model, tokenizer, layout, request, max_new_tokens, dummy_prefix) for request in requests
    ]
    _check_vocabulary(model, layout, sources)

    spans: list[list[list[int]]] = [[] for _ in sources]
    finished: list[list[bool]] = [[] for _ in sources]
    for hole in range(max((len(pieces) for pieces, _ in sources), default=1) - 1):
        rows = [row for row, (pieces, _) in enumerate(sources) if hole < len(pieces) - 1]
        prompts = [layout.prompt(sources[row][0], spans[row]) for row in rows]
        new_ids = continue_prompts(
            model, prompts, layout.stops, max_new_tokens, pad=layout.stops[-1], tokenizer=tokenizer, **settings
        )
        for row, new in zip(rows, new_ids, strict=True):
            end = next((place for place, token in enumerate(new) if token in layout.control_ids), len(new))
            spans[row].append(new[:end])
            finished[row].append(end < len(new) and new[end] in layout.stops)

    results = []
    stop_strings = settings.get("stop_strings") or ()
    stop_strings = (stop_strings,) if isinstance(stop_strings, str) else stop_strings
    for request, (_, truncated), filled, ended in zip(requests, sources, spans, finished, strict=True):
        texts = [_decode(tokenizer, span, dummy_prefix) for span in filled]
        ended = [end or any(stop in text for stop in stop_strings) for end, text in zip(ended, texts, strict=True)]
        text = request[0] + "".join(written + piece for written, piece in zip(texts, request[1:], strict=True))
        results.append(Infilling(text, tuple(texts), tuple(ended), truncated))
    return results[0] if single else results


def _requests(prefix, suffix, pieces):
    """The texts of each row, and whether a single one was asked for."""
    if (pieces is None) == (prefix is None) or (prefix is None) != (suffix is None):
        raise ValueError("Give `prefix` and `suffix` for one hole, or `pieces` for several, not a part of both.")
    if pieces is None:
        single = isinstance(prefix, str)
        prefixes, suffixes = ([prefix], [suffix]) if single else (prefix, suffix)
        if single != isinstance(suffix, str) or len(prefixes) != len(suffixes):
            raise ValueError("`prefix` and `suffix` are not alike: give two texts, or two lists of equal lengths.")
        pieces = list(zip(prefixes, suffixes))
    else:
        single = len(pieces) > 0 and isinstance(pieces[0], str)
        pieces = [pieces] if single else pieces
    for row in pieces:
        if len(row) < 2:
            raise ValueError("A row of `pieces` has a single text and so no hole; give the texts around each hole.")
    return [list(row) for row in pieces], single


def _check_vocabulary(model, layout, sources):
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(layout.control_ids.union(*(piece for pieces, _ in sources for piece in pieces)))
    if highest >= rows:
        raise ValueError(
            f"The tokenizer gives ids up to {highest}, the model embeds {rows} tokens; load the tokenizer that belongs "
            "to the model (or resize the embeddings and train them)."
        )


def _encode_request(model, tokenizer, layout, request, max_new_tokens, dummy_prefix):
    """Token ids of the pieces, cut to the model's context, and whether they were cut."""
    pieces = [encode_source(tokenizer, text, dummy_prefix, first=place == 0) for place, text in enumerate(request)]
    holes = len(pieces) - 1
    context = model.config.get_text_config().max_position_embeddings
    budget = context - layout.overhead(holes) - holes * max_new_tokens
    if budget < 1:
        raise ValueError(
            f"{holes} hole(s) of `max_new_tokens` {max_new_tokens} leave no room for the source in a context of "
            f"{context} tokens; lower `max_new_tokens`."
        )
    if sum(map(len, pieces)) <= budget:
        return pieces, False
    return cut_around_holes(pieces, budget), True


def _generation_settings(model, kwargs: dict) -> dict:
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
    model,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[int],
    max_new_tokens: int,
    pad: int,
    tokenizer=None,
    **kwargs,
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
    kwargs |= {"eos_token_id": list(stops) or None, "pad_token_id": pad, "max_new_tokens": max_new_tokens}
    with torch.no_grad():
        rows = model.generate(ids, attention_mask=mask, **{**kwargs, "return_dict_in_generate": False})
    return rows[:, length:].tolist()
