"""What a server does with a request before and after HTTP: limits, spans for the batcher, and their news."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..code.generation import context_length, decode, decode_after, encode_prompt, stop_ids
from ..codegen2.infilling_codegen2 import Filling, Infiller, InfillFormat, special_ids
from .batching import Batcher, Drawing, Progress, QueueFull, Span, TextRules
from .requests import CompletionRequest, InfillRequest


OPENAI_TOKENS = 16  # what OpenAI's reference gives a request that names no `max_tokens`


@dataclass(frozen=True)
class Limits:
    """
    What one request, and all together, may ask for.

    Args:
        max_new_tokens (`int`, defaults to 256): tokens of a span.
        max_spans (`int`, defaults to 32): spans of a request: prompts times samples, or holes.
        max_body (`int`, defaults to 2 MiB): bytes of a request.
        max_waiting (`int`, defaults to 256): spans that may wait for a place.
        max_batch_size (`int`, defaults to 16): spans written at a time.
    """

    max_new_tokens: int = 256
    max_spans: int = 32
    max_body: int = 2 * 2**20
    max_waiting: int = 256
    max_batch_size: int = 16

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"`{name}` is {value}; give 1 or more")


class Refusal(Exception):
    """A request that is refused: status, sentence, the field and a word for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict:
        kinds = {429: "rate_limit_error", 503: "server_error", 500: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _refusal(error: Exception) -> Refusal:
    """What a client is told about an error of the batcher."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, QueueFull):
        return Refusal(429, str(error), code="queue_full")
    if isinstance(error, torch.OutOfMemoryError):
        return Refusal(503, "the request does not fit into the memory of the device", code="out_of_memory")
    return Refusal(500, "the model failed; the log of the server says why", code="model_error")


@dataclass(eq=False)
class Job:
    """
    A text to continue, or a source to fill hole by hole.

    Args:
        span ([`Span`]): the one being written.
        following (`Callable`, *optional*): from a span that is over to the next one, `None` after the last.
        truncated (`bool`): whether the model reads only a part of the text.
        filling ([`Filling`], *optional*): the source.
    """

    span: Span
    truncated: bool
    following: Callable[[Span], Span | None] = lambda span: None
    filling: Filling | None = None


class InfillServer:
    """
    Makes requests into spans for the batcher.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): any causal language model and its tokenizer.
        name (`str`): what the model is called in requests and answers.
        infill_format (`str` or [`InfillFormat`], defaults to `"auto"`): see [`infill`].
        limits ([`Limits`], *optional*): what may be asked for.

    Raises:
        ValueError: for sentinels the tokenizer lacks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        infill_format: str | InfillFormat = "auto",
        limits: Limits | None = None,
    ):
        self.model, self.tokenizer, self.name, self.limits = model, tokenizer, name, limits or Limits()
        self.infiller = Infiller(model, tokenizer, infill_format)
        self.infiller.encode("x")  # the first call takes off a saved truncation, which threads must not do at once
        self.stops = frozenset(stop_ids(model, tokenizer))
        self.batcher = Batcher(model, self.limits.max_batch_size, self.limits.max_waiting)
        self.created = int(time.time())

    def check(self, model: str | None, num_spans: int) -> None:
        """Refuses another model, and more spans than one request may have."""
        if model not in (None, self.name):
            message = f"there is no model {model!r} here; this server has {self.name!r}"
            raise Refusal(404, message, "model", "model_not_found")
        if num_spans > self.limits.max_spans:
            raise Refusal(
                400, f"{num_spans} spans are asked for; one request may have {self.limits.max_spans} at most"
            )

    def tokens(self, name: str, asked: int | None, default: int) -> int:
        """The length of a span, given what was asked for."""
        most = self.limits.max_new_tokens
        if asked is not None and asked > most:
            raise Refusal(400, f"`{name}` is {asked}; this server writes {most} tokens at most", name)
        return min(default, most) if asked is None else asked

    def completion_jobs(self, request: CompletionRequest) -> list[Job]:
        """The samples of every prompt."""
        prompts, number = request.prompts, request.n or 1
        self.check(request.model, len(prompts) * number)
        length = self.tokens("max_tokens", request.max_tokens, OPENAI_TOKENS)
        how = [(draw, request.rules) for draw in request.drawings(self.model.generation_config, number)]
        if request.suffix is None:
            return [self._continue(prompt, length, *some) for prompt in prompts for some in how]
        return [self._fill([prompt, request.suffix], length, *some) for prompt in prompts for some in how]

    def infill_job(self, request: InfillRequest) -> Job:
        """The source of a request, with other files as the family reads them, else as text before it."""
        pieces = list(request.sources)
        self.check(request.model, len(pieces) - 1)
        asked = None if request.n_predict == -1 else request.n_predict
        length = self.tokens("n_predict", asked, max(1, context_length(self.model) // 4))
        files, path = {extra.filename: extra.text for extra in request.input_extra}, request.path
        if files and self.infiller.names.repository is None:
            pieces[0] = "".join(f"{text}\n" for text in files.values()) + pieces[0]
            files = {}
        path = path or ("filename" if files or request.repo_name else None)
        (draw,) = request.drawings(self.model.generation_config)
        names = {"files": files, "path": path, "repo_name": request.repo_name}
        return self._fill(pieces, length, draw, request.rules, request.prompt, names)

    def _continue(self, text: str, length: int, drawing: Drawing, rules: TextRules) -> Job:
        prompt = encode_prompt(self.model, self.tokenizer, text, length)
        if not prompt:
            raise Refusal(400, "`prompt` is empty, and the tokenizer has no token that texts begin with", "prompt")
        is_full = len(prompt) == context_length(self.model) - length
        ends = self.stops | special_ids(self.tokenizer)

        def to_text(ids):
            return decode_after(self.tokenizer, prompt[-16:], ids)  # a few tokens tell how a text goes on

        span = Span(prompt, self.stops, ends, length, to_text, drawing, rules)
        return Job(span, truncated=is_full and text not in decode(self.tokenizer, prompt))

    def _fill(
        self,
        pieces: list[str],
        length: int,
        drawing: Drawing,
        rules: TextRules,
        begun: str = "",
        names: dict | None = None,
    ) -> Job:
        infiller = self.infiller
        start = infiller.encode(begun) if begun else []
        filling = infiller.start(pieces, length + len(start), infiller.context(**(names or {})))
        known = len(infiller.decode(start)) if start else 0

        def to_text(ids):
            return infiller.decode([*start, *ids])[known:]

        def next_span() -> Span:
            stops, ends = frozenset(infiller.layout.stops), frozenset(infiller.ends)
            return Span([*filling.prompt, *start], stops, ends, length, to_text, drawing, rules)

        def following(span: Span) -> Span | None:
            was_cut = span.reason in ("word", "rule")
            filling.add(infiller.encode(span.text) if was_cut else span.written)
            return None if filling.is_done else next_span()

        return Job(next_span(), filling.truncated, following, filling)


class Conversation:
    """
    The jobs of one request while they are written.

    Args:
        server ([`InfillServer`]): it writes them.
        jobs (`Sequence[Job]`): all of them are accepted or none.

    Raises:
        Refusal: too many requests wait.
    """

    def __init__(self, server: InfillServer, jobs: Sequence[Job]):
        self.server, self.jobs = server, jobs
        self.spans: list[list[Span]] = [[] for _ in jobs]  # of each job, hole by hole
        self._news: asyncio.Queue[tuple[int, Progress]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._submit(range(len(jobs)))

    def _submit(self, places: Sequence[int], started: bool = False) -> None:
        for place in places:
            self.jobs[place].span.listener = self._listener(place)
            self.spans[place].append(self.jobs[place].span)
        try:
            self.server.batcher.submit([self.jobs[place].span for place in places], started)
        except QueueFull as error:
            raise _refusal(error) from error

    def _listener(self, place: int) -> Callable[[Progress], None]:
        def tell(progress: Progress) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._news.put_nowait, (place, progress))

        return tell

    async def news(self) -> AsyncIterator[tuple[int, Progress]]:
        """What the jobs write, by their place, until all are done."""
        num_open = len(self.jobs)
        try:
            while num_open:
                place, progress = await self._news.get()
                if progress.error is not None:
                    raise _refusal(progress.error) from progress.error
                yield place, progress
                if progress.reason is not None:
                    job = self.jobs[place]
                    following = job.following(job.span)
                    if following is None:
                        num_open -= 1
                    else:
                        job.span = following
                        self._submit([place], started=True)
        finally:
            self.close()

    async def finish(self) -> None:
        """Waits until all is written."""
        async for _ in self.news():
            pass

    def close(self) -> None:
        """Gives up what is not written yet."""
        self.server.batcher.cancel([job.span for job in self.jobs])


__all__ = ["Conversation", "InfillServer", "Job", "Limits", "Refusal"]
