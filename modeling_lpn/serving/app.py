"""The HTTP server: `/v1/completions`, `/infill`, `/v1/models`, `/health`. It has no authentication: see docs/serving.md."""

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ..code.generation import context_length, decode
from .batching import Span
from .requests import CompletionRequest, InfillRequest
from .server import Conversation, InfillServer, Job, Refusal


# A span that ran into a token which is no text is not whole, as one cut off by its limit.
FINISH_REASONS = {"end": "stop", "word": "stop", "rule": "stop", "limit": "length", "control": "length"}
STOP_TYPES = {"end": "eos", "word": "word", "rule": "limit", "limit": "limit", "control": "none"}


def _refuse(refusal: Refusal) -> JSONResponse:
    headers = {"Retry-After": "1"} if refusal.status == 429 else None
    return JSONResponse(refusal.body(), refusal.status, headers)


class _BodyLimit:
    """Middleware that reads no more of a request than it may have."""

    def __init__(self, app, max_body: int):
        self.app, self.max_body = app, max_body

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size, message = 0, f"the request has more than {self.max_body} bytes"
        refusal = Refusal(413, message, code="request_too_large")
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body:
            return await _refuse(refusal)(scope, receive, send)

        async def receive_some():
            nonlocal size
            part = await receive()
            size += len(part.get("body", b""))
            if size > self.max_body:
                raise refusal
            return part

        await self.app(scope, receive_some, send)


def _event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"


class _Stream(StreamingResponse):
    """Server-sent events of a conversation, which is closed when the client hangs up, also before the first event."""

    def __init__(self, events: AsyncIterator[str], conversation: Conversation):
        super().__init__(self._guarded(events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.conversation = conversation

    @staticmethod
    async def _guarded(events: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for event in events:
                yield event
        except Refusal as refusal:  # the status is sent already
            yield _event(refusal.body())

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.conversation.close()


async def _unless_hung_up(request: Request, answer: Coroutine[Any, Any, Any]) -> Any:
    """The answer; where the client hangs up before, what makes it is cancelled."""

    async def hang_up():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.ensure_future(answer), asyncio.ensure_future(hang_up())
    await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
    is_answered = work.done()
    for task in (work, watch):
        task.cancel()
    return await work if is_answered else Response(status_code=499)  # nobody reads it


async def _converse(server: InfillServer, make: Callable[[], Sequence[Job]]) -> Conversation:
    """Tokenises beside the event loop, then hands over."""
    try:
        jobs = await run_in_threadpool(make)
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    return Conversation(server, jobs)


def _completion_body(server: InfillServer, identity: dict, choices: list[dict]) -> dict:
    return {**identity, "object": "text_completion", "model": server.name, "choices": choices}


def _choice(index: int, text: str, reason: str | None) -> dict:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason and FINISH_REASONS[reason]}


def _usage(conversation: Conversation, samples: int) -> dict[str, int]:
    read = sum(len(spans[0].prompt) for spans in conversation.spans[::samples])
    written = sum(len(span.written) for spans in conversation.spans for span in spans)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def _completion_events(
    conversation: Conversation, request: CompletionRequest, identity: dict
) -> AsyncIterator[str]:
    server, samples = conversation.server, request.n or 1
    wants_usage = request.stream_options is not None and request.stream_options.include_usage
    rest = {"usage": None} if wants_usage else {}
    started: set[int] = set()
    async for place, progress in conversation.news():
        echo = request.prompts[place // samples] if request.echo and place not in started else ""
        started.add(place)
        choice = _choice(place, echo + progress.text, progress.reason)
        yield _event({**_completion_body(server, identity, [choice]), **rest})
    if wants_usage:
        yield _event({**_completion_body(server, identity, []), "usage": _usage(conversation, samples)})
    yield "data: [DONE]\n\n"


async def _completion(conversation: Conversation, request: CompletionRequest, identity: dict) -> dict:
    samples = request.n or 1
    await conversation.finish()
    choices = []
    for place, (span,) in enumerate(conversation.spans):
        echo = request.prompts[place // samples] if request.echo else ""
        choices.append(_choice(place, echo + span.text, span.reason))
    body = _completion_body(conversation.server, identity, choices)
    is_cut = any(job.truncated for job in conversation.jobs)
    return {**body, "usage": _usage(conversation, samples), **({"truncated": True} if is_cut else {})}


def _timings(spans: list[Span]) -> dict[str, float]:
    """llama.cpp's names: the wait for the first token (in its batch, and for its turn), and the time of the others."""
    read, written = sum(len(span.prompt) for span in spans), sum(len(span.written) for span in spans)
    times = {"prompt": sum(span.seconds[1] - span.seconds[0] for span in spans)}
    times["predicted"] = sum(span.seconds[2] - span.seconds[1] for span in spans)
    found: dict[str, float] = {}
    for name, number in (("prompt", read), ("predicted", written)):
        seconds = max(times[name], 1e-6)
        found |= {f"{name}_n": number, f"{name}_ms": 1000 * seconds, f"{name}_per_second": number / seconds}
        found[f"{name}_per_token_ms"] = 1000 * seconds / max(number, 1)
    return found


def _infill_end(conversation: Conversation, request: InfillRequest) -> dict[str, Any]:
    """The fields of an answer that stand in its last event too."""
    server, (job,), (spans,) = conversation.server, conversation.jobs, conversation.spans
    last = spans[-1]
    settings = {"temperature": last.drawing.temperature, "top_p": last.drawing.top_p, "top_k": last.drawing.top_k}
    settings |= {"seed": last.drawing.seed, "n_predict": last.max_new_tokens, "n_indent": request.n_indent}
    settings |= {"stop": list(request.stops), "n_ctx": context_length(server.model), "stream": bool(request.stream)}
    result = {
        "index": 0,
        "id_slot": -1,
        "stop": True,
        "model": server.name,
        "tokens_predicted": sum(len(span.written) for span in spans),
        "tokens_evaluated": sum(len(span.prompt) for span in spans),
        "generation_settings": settings,
        "prompt": decode(server.tokenizer, spans[0].prompt),
        "has_new_line": any("\n" in span.text for span in spans),
        "truncated": job.truncated,
        "stop_type": STOP_TYPES[last.reason],
        "stopping_word": last.word,
        "tokens_cached": 0,
        "timings": _timings(spans),
    }
    if request.pieces is not None:
        filled = "".join(span.text + piece for span, piece in zip(spans, request.pieces[1:], strict=True))
        result |= {"spans": [span.text for span in spans], "text": request.pieces[0] + filled}
        result["stop_types"] = [STOP_TYPES[span.reason] for span in spans]
    return result


def _chosen_fields(result: dict[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """Of `response_fields`; `a/b` is the field `b` of `a`, under that name. What is not there is left out."""
    if fields is None:
        return result
    chosen = {}
    for name in fields:
        value: Any = result
        for key in name.split("/"):
            value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING:
            chosen[name] = value
    return chosen


_MISSING = object()


async def _infill_events(conversation: Conversation, request: InfillRequest) -> AsyncIterator[str]:
    written = 0
    async for _, progress in conversation.news():
        written += len(progress.tokens)
        hole = {} if request.pieces is None else {"hole": len(conversation.spans[0]) - 1}
        event = {"index": 0, "content": progress.text, "tokens": list(progress.tokens), "stop": False, "id_slot": -1}
        yield _event({**event, **hole, "tokens_predicted": written})
    result = {"content": "", "tokens": [], **_infill_end(conversation, request)}
    yield _event(_chosen_fields(result, request.response_fields))


async def _infill_answer(conversation: Conversation, request: InfillRequest) -> dict[str, Any]:
    await conversation.finish()
    (spans,) = conversation.spans
    result = _infill_end(conversation, request)
    if request.pieces is None:
        result = {"content": spans[0].text, **result}
    result["tokens"] = [token for span in spans for token in span.written] if request.return_tokens else []
    return _chosen_fields(result, request.response_fields)


def build_app(server: InfillServer) -> FastAPI:
    """
    The application of a server; its shutdown closes the batcher.

    Args:
        server ([`InfillServer`]): what answers.

    Returns:
        `FastAPI`
    """

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await run_in_threadpool(server.batcher.close)

    app = FastAPI(title="modeling-lpn", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_BodyLimit, max_body=server.limits.max_body)
    _add_errors(app)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request):
        conversation = await _converse(server, lambda: server.completion_jobs(body))
        identity = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        if body.stream:
            return _Stream(_completion_events(conversation, body, identity), conversation)
        return await _unless_hung_up(request, _completion(conversation, body, identity))

    @app.post("/infill")
    async def infill(body: InfillRequest, request: Request):
        conversation = await _converse(server, lambda: [server.infill_job(body)])
        if body.stream:
            return _Stream(_infill_events(conversation, body), conversation)
        return await _unless_hung_up(request, _infill_answer(conversation, body))

    @app.get("/v1/models")
    async def models():
        model = {"id": server.name, "object": "model", "created": server.created, "owned_by": "modeling-lpn"}
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str):
        server.check(name, 0)
        return (await models())["data"][0]

    @app.get("/health")
    async def health():
        running, waiting = server.batcher.load
        return {"status": "ok", "running": running, "waiting": waiting}

    return app


def _add_errors(app: FastAPI) -> None:
    """Every error is JSON, in OpenAI's form."""

    @app.exception_handler(Refusal)
    async def refused(request, error):
        return _refuse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        places = [(str((*found["loc"], "")[1]), found["msg"]) for found in error.errors()]
        field = places[0][0]
        text = "; or ".join(
            dict.fromkeys(said.removeprefix("Value error, ") for name, said in places if name == field)
        )
        return _refuse(Refusal(400, f"`{field}`: {text}" if field else text, field or None))

    @app.exception_handler(HTTPException)
    async def http_error(request, error):
        if isinstance(error.__cause__, Refusal):  # raised while the body was read
            return _refuse(error.__cause__)
        return _refuse(Refusal(error.status_code, f"{error.detail} ({request.method} {request.url.path})"))


def serve(server: InfillServer, host: str = "127.0.0.1", port: int = 8012) -> None:
    """
    Serves until it is interrupted.

    Args:
        server ([`InfillServer`]): what answers.
        host (`str`, defaults to `"127.0.0.1"`), port (`int`, defaults to 8012): where; port 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        print(f"{server.name} at http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(build_app(server), log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])


__all__ = ["build_app", "serve"]
