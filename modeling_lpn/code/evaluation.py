"""
How well a code model fills in and predicts held-out files: infilling of spans against the original, loss per token.

Under `accelerate launch` the batches are dealt to the processes and every process gets the whole result, which is that of
one process. Benchmarks whose programs are run are in `sampling.py`.
"""

import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..batching import evaluating, map_batches
from ..codegen2.infilling_codegen2 import InfillFormat, cut_around_holes, encode_source, infill, infill_layout
from ..records import RecordStore, model_digest, text_digest
from .generation import context_length, decode, decode_after, encode_prompt, generate_rows, stop_ids
from .metrics import infill_scores


MAX_IDLE_TURNS = 10  # through all files without a new span, before it is said that there are no more
MAX_LINE = 200  # characters; longer lines are data more often than code
# Said in full, so that what a model's `generation_config` recommends for chatting does not enter a score.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
}


@dataclass(frozen=True)
class InfillCase:
    """
    A span taken out of a file.

    Args:
        name (`str`): the file's path, the kind and the span's place in it.
        prefix, middle, suffix (`str`): the text before the span (never blank), the span, and the text after it.
        kind (`str`): `"tokens"` or `"line"`.

    Example:

    ```python
    >>> from modeling_lpn.code.evaluation import make_infill_cases

    >>> make_infill_cases([{"path": "a.py", "text": "x = 1\\ny = 2\\n"}], num_cases=5, kind="line")
    [InfillCase(name='a.py:line:2', prefix='x = 1\\n', middle='y = 2', suffix='\\n', kind='line')]

    ```
    """

    name: str
    prefix: str
    middle: str
    suffix: str
    kind: str


def make_infill_cases(
    rows: Sequence[dict],
    num_cases: int,
    seed: int = 0,
    kind: str = "tokens",
    tokenizer=None,
    max_span_tokens: int = 8,
    context_tokens: int | None = None,
) -> list[InfillCase]:
    """
    Takes spans out of files: the same ones whenever files, seed and settings are the same.

    Args:
        rows (`Sequence[dict]`): held-out files with `text` and `path`.
        num_cases (`int`): how many spans; every file gives one before any gives a second one.
        seed (`int`, defaults to 0): of the files' order and of the spans.
        kind (`str`, defaults to `"tokens"`): `"tokens"`: a run of tokens that is not only white space; `"line"`: a line
            that is not blank, of at most 200 characters, with its indentation and without its line break.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): needed for `"tokens"` and for `context_tokens`.
        max_span_tokens (`int`, defaults to 8): longest run.
        context_tokens (`int`, *optional*): tokens around a span that are kept; all if not given.

    Returns:
        `list[InfillCase]`: fewer than `num_cases` where the files have no more spans to give.

    Raises:
        ValueError: for an unknown kind, without a tokenizer where one is needed, or where no file has a span.
    """
    if kind not in ("tokens", "line"):
        raise ValueError(f"`kind` is {kind!r}; known: tokens, line")
    if tokenizer is None and (kind == "tokens" or context_tokens is not None):
        raise ValueError("`tokenizer` is missing; spans and contexts are counted in its tokens")
    encode = functools.lru_cache(1024)(lambda index: encode_source(tokenizer, rows[index]["text"]))
    cases, turn, idle = {}, 0, 0
    while len(cases) < num_cases and idle < MAX_IDLE_TURNS:
        found = len(cases)
        for index in np.random.default_rng([seed, 0]).permutation(len(rows)).tolist():
            if len(cases) == num_cases:
                break
            if kind == "tokens":
                rng = np.random.default_rng([seed, index, turn])
                case = _token_case(rows[index], encode(index), rng, tokenizer, max_span_tokens, context_tokens)
            else:
                case = _line_case(rows[index], [seed, index], turn, tokenizer, context_tokens)
            if case is not None:
                cases.setdefault(case.name, case)
        turn, idle = turn + 1, 0 if len(cases) > found else idle + 1
    if not cases:
        raise ValueError(f"none of the {len(rows)} files has a span of kind {kind!r}; give longer ones")
    return list(cases.values())


def _token_case(row, ids, rng, tokenizer, max_span_tokens, context_tokens) -> InfillCase | None:
    for _ in range(20 if len(ids) > 2 else 0):
        length = min(int(rng.integers(1, max_span_tokens + 1)), len(ids) - 2)
        start = int(rng.integers(1, len(ids) - length))
        prefix, suffix = _cut([ids[:start], ids[start + length :]], context_tokens)
        prefix, middle, suffix = (decode(tokenizer, part) for part in (prefix, ids[start : start + length], suffix))
        # A cut inside a character does not decode to a part of the text.
        if prefix.strip() and middle.strip() and prefix + middle + suffix in row["text"]:
            return InfillCase(f"{row['path']}:tokens:{start}-{start + length}", prefix, middle, suffix, "tokens")
    return None


def _line_case(row, seed, turn, tokenizer, context_tokens) -> InfillCase | None:
    lines = row["text"].split("\n")
    written = [place for place, line in enumerate(lines) if line.strip()]
    places = [place for place in written[1:] if len(lines[place]) <= MAX_LINE]  # a prefix is never blank
    if turn >= len(places):
        return None
    place = np.random.default_rng(seed).permutation(places)[turn]
    prefix = "".join(line + "\n" for line in lines[:place])
    suffix = "".join("\n" + line for line in lines[place + 1 :])
    if context_tokens is not None:
        pieces = [encode_source(tokenizer, text) for text in (prefix, suffix)]
        before, after = (decode(tokenizer, piece) for piece in _cut(pieces, context_tokens))
        if not before.strip() or not prefix.endswith(before) or not suffix.startswith(after):
            return None
        prefix, suffix = before, after
    return InfillCase(f"{row['path']}:line:{place + 1}", prefix, lines[place], suffix, "line")


def _cut(pieces, context_tokens):
    return pieces if context_tokens is None else cut_around_holes(pieces, context_tokens)


def evaluate_infilling(
    model,
    tokenizer,
    cases: Sequence[InfillCase],
    infill_format: str | InfillFormat = "codegen2",
    max_new_tokens: int = 64,
    batch_size: int = 32,
    left_to_right: bool = False,
    keep_in: str | os.PathLike | None = None,
) -> tuple[dict[str, float], list[dict]]:
    """
    Fills spans greedily and compares them with the originals.

    Args:
        model (`PreTrainedModel`): the model; used in evaluation mode, left in its mode, on the device where it is. Every
            process needs a whole copy (as with DDP; not the shards of FSDP).
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        cases (`Sequence[InfillCase]`): see [`make_infill_cases`].
        infill_format (`str` or [`InfillFormat`], defaults to `"codegen2"`): see [`infill`].
        max_new_tokens (`int`, defaults to 64): longest span, with the token that ends it.
        batch_size (`int`, defaults to 32): spans written at a time; changes no result, a batch that does not fit into
            the memory is halved.
        left_to_right (`bool`, defaults to `False`): the baseline for models that read in one direction: continue the
            prefix and cut at the true span's number of tokens, which it is told.
        keep_in (`str` or path, *optional*): a `.jsonl` file to which the result of every case is appended batch by batch; a
            call with the same model, cases and settings, in any number of processes, goes on from it ([`RecordStore`]).

    Returns:
        `tuple[dict[str, float], list[dict]]`: the scores of [`infill_scores`] and `num_cases`, `eom_rate` being the share
        of spans that ended by the format's end of span (`<eom>`) itself; and for every case, in order, `number`, `name`, `kind`,
        `prediction`, `reference`, `ended`. The baseline ends nothing: it has no `eom_rate` and `ended` is `None`.

    Raises:
        ValueError: there are no cases, `keep_in` holds results of another model, other cases or settings, or as [`infill`].
    """
    if not cases:
        raise ValueError("there are no cases to evaluate; give at least one")
    with evaluating(model) as model:
        if left_to_right:
            work = _Continuation(model, tokenizer, max_new_tokens)
        else:
            work = _Infilling(model, tokenizer, infill_format, max_new_tokens)
        settings = {"infill_format": infill_format, "max_new_tokens": max_new_tokens, "left_to_right": left_to_right}
        predictions = _fill_all(work, cases, batch_size, keep_in and _store(keep_in, model, cases, settings))
    spans, ended = ([record[name] for record in predictions] for name in ("prediction", "ended"))
    scores = infill_scores(spans, [case.middle for case in cases], None if left_to_right else ended)
    return {**scores, "num_cases": len(cases)}, predictions


def _store(path, model, cases, settings) -> RecordStore:
    texts = json.dumps([[case.prefix, case.middle, case.suffix] for case in cases])
    settings = {**settings, "cases": text_digest(texts), "model": model_digest(model)}
    return RecordStore(path, settings, ("number",), ("name", "kind", "prediction", "reference", "ended"))


def _fill_all(work, cases, batch_size, store) -> list[dict]:
    """A record of every case, in order."""
    known = {number: record for (number,), record in store.open().items()} if store else {}

    def fill(numbers):
        filled = zip(numbers, work([cases[number] for number in numbers]), strict=True)
        records = [
            {
                "number": number,
                "name": cases[number].name,
                "kind": cases[number].kind,
                "prediction": span,
                "reference": cases[number].middle,
                "ended": ended,
            }
            for number, (span, ended) in filled
        ]
        if store:
            store.append(records)
        return records

    def size(number):
        return len(cases[number].prefix) + len(cases[number].suffix)

    records = map_batches(fill, range(len(cases)), size, batch_size, known=known)
    if store:
        store.close({store.key_of(record): record for record in records})
    return records


class _FirstControlToken(StoppingCriteria):
    """Stops nothing; remembers the first control token of every row, which tells an `<eom>` from an end of text."""

    def __init__(self, control_ids):
        self.control = torch.tensor(sorted(control_ids))
        self.first = None

    def __call__(self, input_ids, scores, **kwargs):
        last = input_ids[:, -1]
        seen = torch.where(torch.isin(last, self.control.to(last.device)), last, -1)
        self.first = seen if self.first is None else torch.where(self.first < 0, seen, self.first)
        return torch.zeros_like(last, dtype=torch.bool)


class _Infilling:
    def __init__(self, model, tokenizer, infill_format, max_new_tokens):
        self.model, self.tokenizer, self.layout = model, tokenizer, infill_layout(tokenizer, infill_format)
        self.settings = {**GREEDY, "infill_format": infill_format, "max_new_tokens": max_new_tokens}

    def __call__(self, cases) -> list[tuple[str, bool]]:
        control = _FirstControlToken(self.layout.ends)
        results = infill(
            self.model,
            self.tokenizer,
            [case.prefix for case in cases],
            [case.suffix for case in cases],
            stopping_criteria=StoppingCriteriaList([control]),
            **self.settings,
        )
        ended = (control.first == self.layout.stops[0]).tolist()
        return [(result.spans[0], end) for result, end in zip(results, ended, strict=True)]


class _Continuation:
    def __init__(self, model, tokenizer, max_new_tokens):
        self.model, self.tokenizer, self.limit = model, tokenizer, max_new_tokens
        self.stops = stop_ids(model, tokenizer)

    def __call__(self, cases) -> list[tuple[str, None]]:
        lengths = [min(len(encode_source(self.tokenizer, case.middle)), self.limit) for case in cases]
        # Room for the limit, not for this batch's longest span: what a prompt holds must not depend on its batch.
        prompts = [encode_prompt(self.model, self.tokenizer, case.prefix, self.limit) for case in cases]
        rows = generate_rows(self.model, prompts, self.stops, max(lengths), **GREEDY)
        return [
            (decode_after(self.tokenizer, prompt, ids[:length]), None)
            for prompt, (ids, _), length in zip(prompts, rows, lengths, strict=True)
        ]


def causal_loss(
    model, tokenizer, rows: Sequence[dict], max_length: int | None = None, batch_size: int = 8
) -> dict[str, float]:
    """
    Cross-entropy of the next token in held-out files, read from left to right.

    No file sees another. A file longer than `max_length` is read in windows that share one token, so that every token
    except a file's first is predicted once, at the start of a window from little context.

    Args:
        model (`PreTrainedModel`): the model; used in evaluation mode and left in its mode.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        rows (`Sequence[dict]`): files with `text`.
        max_length (`int`, *optional*): tokens of a window; the model's context if not given.
        batch_size (`int`, defaults to 8): windows at a time.

    Returns:
        `dict[str, float]`: `loss` in nats per token, `bits_per_byte` of UTF-8 (comparable between tokenizers),
        `num_tokens` that were predicted, and `num_files` they belong to.

    Raises:
        ValueError: no file has two tokens.
    """
    with evaluating(model) as model:
        max_length = max_length or context_length(model)
        windows, num_bytes, num_files = [], 0, 0
        for row in rows:
            ids = encode_source(tokenizer, row["text"])
            if len(ids) > 1:
                windows += [ids[start : start + max_length] for start in range(0, len(ids) - 1, max_length - 1)]
                num_bytes += len(row["text"].encode(errors="replace")) - len(decode(tokenizer, ids[:1]).encode())
                num_files += 1
        if not windows:
            raise ValueError(f"none of the {len(rows)} files has two tokens, so there is nothing to predict")
        total = math.fsum(map_batches(functools.partial(_summed_losses, model), windows, len, batch_size))
    num_tokens = sum(len(window) - 1 for window in windows)
    return {
        "loss": total / num_tokens,
        "bits_per_byte": total / math.log(2) / num_bytes,
        "num_tokens": num_tokens,
        "num_files": num_files,
    }


def _summed_losses(model, windows) -> list[float]:
    """The summed loss of each window, a few positions at a time: in float32 the logits may not fit into memory twice."""
    length = max(map(len, windows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in windows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in windows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    sums = []
    for row, window in enumerate(windows):
        parts = zip(logits[row, : len(window) - 1].split(256), ids[row, 1 : len(window)].split(256), strict=True)
        losses = [torch.nn.functional.cross_entropy(part.float(), targets, reduction="sum") for part, targets in parts]
        sums.append(float(sum(losses)))
    return sums


__all__ = ["InfillCase", "causal_loss", "evaluate_infilling", "make_infill_cases"]
