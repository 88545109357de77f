"""The server on the loopback: with the real client of OpenAI, with many clients, with those that hang up, with wrong requests."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
import torch
import uvicorn
from cases_codegen2 import tiny_tokenizer, tokenizer_config
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from modeling_lpn import CodeGen2ForCausalLM
from modeling_lpn.code.generation import encode_prompt, generate_rows, stop_ids
from modeling_lpn.code.infill_formats import add_infill_tokens
from modeling_lpn.codegen2.infilling_codegen2 import continue_prompts, infill, infill_layout, special_ids
from modeling_lpn.serving.app import build_app, serve
from modeling_lpn.serving.batching import Batcher, Drawing, Span, TextRules
from modeling_lpn.serving.server import InfillServer, Limits


PREFIX, SUFFIX = "def add(a, b):\n    ", "\n    return a + b\n"
LIMITS = Limits(max_new_tokens=64, max_spans=8, max_body=20_000)
PATIENCE = 60  # seconds until a test gives up


@contextlib.contextmanager
def serving(server):
    """The address of a server in a thread of its own."""
    app = uvicorn.Server(uvicorn.Config(build_app(server), port=0, log_level="error"))
    thread = threading.Thread(target=app.run)
    thread.start()
    try:
        wait_for(lambda: app.started)
        yield f"http://127.0.0.1:{app.servers[0].sockets[0].getsockname()[1]}"
    finally:
        app.should_exit = True
        thread.join()


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = tokenizer_config(tokenizer, mp_num=1)
    config.n_positions = 256
    return CodeGen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def server(model, tokenizer):
    return InfillServer(model, tokenizer, "tiny", limits=LIMITS)


@pytest.fixture(scope="module")
def url(server):
    with serving(server) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def post(url):
    def send(path, /, **body):
        return httpx.post(f"{url}{path}", json=body, timeout=PATIENCE)

    return send


def events(text):
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n") if part and part != "data: [DONE]"]


def test_the_openai_client_fills_a_hole(client, model, tokenizer):
    expected = infill(model, tokenizer, PREFIX, SUFFIX, max_new_tokens=24)
    answer = client.completions.create(model="tiny", prompt=PREFIX, suffix=SUFFIX, max_tokens=24)
    (choice,) = answer.choices
    assert choice.text == expected.spans[0] != ""
    assert choice.finish_reason == ("stop" if expected.finished[0] else "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 24
    assert [found.id for found in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"


def test_the_openai_client_streams(client, model, tokenizer):
    options = {"include_usage": True}
    asked = {"model": "tiny", "prompt": [PREFIX, "a = "], "suffix": SUFFIX, "max_tokens": 24}
    whole = client.completions.create(**asked)
    parts = list(client.completions.create(**asked, stream=True, stream_options=options))
    texts = {}
    for part in parts[:-1]:
        (choice,) = part.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert len(parts) > 4 and parts[-1].usage == whole.usage
    expected = infill(model, tokenizer, [PREFIX, "a = "], [SUFFIX, SUFFIX], max_new_tokens=24)
    assert [texts[0], texts[1]] == [result.spans[0] for result in expected]


def test_without_a_suffix_a_text_is_continued(client, model, tokenizer):
    ids = encode_prompt(model, tokenizer, PREFIX, 12)
    ((new, ended),) = generate_rows(model, [ids], stop_ids(model, tokenizer), 12, do_sample=False)
    answer = client.completions.create(model="tiny", prompt=PREFIX, max_tokens=12, echo=True)
    text = answer.choices[0].text
    assert text.startswith(PREFIX)
    end = next((place for place, token in enumerate(new) if token in special_ids(tokenizer)), len(new))
    assert end and text == tokenizer.decode([*ids, *new[:end]], clean_up_tokenization_spaces=False)


def test_a_seed_gives_the_same_samples_beside_others(client):
    asked = {"model": "tiny", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 16, "temperature": 1.5, "n": 4}
    first, again = (client.completions.create(**asked, seed=7).choices for _ in range(2))
    assert [choice.text for choice in first] == [choice.text for choice in again]
    assert len({choice.text for choice in first}) > 1
    asked["prompt"] = ["x = 1\n", PREFIX]
    beside = client.completions.create(**asked, seed=7).choices
    assert [choice.text for choice in beside[4:]] == [choice.text for choice in first]
    narrow = client.completions.create(**{**asked, "prompt": PREFIX}, extra_body={"top_k": 1}).choices
    greedy = client.completions.create(model="tiny", prompt=PREFIX, suffix=SUFFIX, max_tokens=16).choices
    assert {choice.text for choice in narrow} == {greedy[0].text}


def test_200_clients_at_once_get_what_infill_writes(url, model, tokenizer):
    sources = [
        (f"def f{number}(x):\n" + "    x += 1\n" * (number % 7), f"\n    return {number}\n") for number in range(200)
    ]
    lengths = [4 + number % 13 for number in range(200)]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as many:
            asked = [
                many.completions.create(model="tiny", prompt=prefix, suffix=suffix, max_tokens=length)
                for (prefix, suffix), length in zip(sources, lengths, strict=True)
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    written = asyncio.run(ask_all())
    expected = [""] * 200
    for length in set(lengths):
        rows = [row for row in range(200) if lengths[row] == length]
        texts = [[sources[row][side] for row in rows] for side in (0, 1)]
        for row, result in zip(rows, infill(model, tokenizer, *texts, max_new_tokens=length), strict=True):
            expected[row] = result.spans[0]
    assert written == expected


def test_infill_answers_as_llama_cpp_does(post, model, tokenizer):
    expected = infill(model, tokenizer, PREFIX, SUFFIX, max_new_tokens=20)
    asked = {
        "input_prefix": PREFIX,
        "input_suffix": SUFFIX,
        "n_predict": 20,
        "cache_prompt": True,
        "samplers": ["infill"],
    }
    answer = post("/infill", **asked).json()
    assert answer["content"] == expected.spans[0] and answer["stop"] and answer["tokens"] == []
    assert answer["stop_type"] == ("eos" if expected.finished[0] else "limit")
    assert answer["tokens_predicted"] == answer["timings"]["predicted_n"] > 0
    *parts, last = events(post("/infill", **asked, stream=True).text)
    assert "".join(part["content"] for part in parts) == expected.spans[0]
    assert not any(part["stop"] for part in parts) and last["stop"] and last["content"] == ""
    assert sum(len(part["tokens"]) for part in parts) == last["tokens_predicted"] == answer["tokens_predicted"]
    fields = ["content", "timings/prompt_n", "no/such"]
    chosen = post("/infill", **asked, response_fields=fields).json()
    assert chosen == {"content": expected.spans[0], "timings/prompt_n": answer["timings"]["prompt_n"]}


def test_several_holes(post, model, tokenizer):
    pieces = ["def f(", "):\n    ", "\n    return x"]
    expected = infill(model, tokenizer, pieces=pieces, max_new_tokens=6)
    answer = post("/infill", pieces=pieces, n_predict=6).json()
    assert answer["text"] == expected.text and answer["spans"] == list(expected.spans)
    *parts, last = events(post("/infill", pieces=pieces, n_predict=6, stream=True).text)
    for hole, span in enumerate(expected.spans):
        assert "".join(part["content"] for part in parts if part["hole"] == hole) == span
    assert last["text"] == expected.text


def test_prompt_begins_the_span(post, model, tokenizer):
    layout = infill_layout(tokenizer)
    ids = [tokenizer.encode(text) for text in (PREFIX, SUFFIX, "total = ")]
    prompt = [*layout.prompt(ids[:2]), *ids[2]]
    (new,) = continue_prompts(model, [prompt], sorted(layout.ends), 12, pad=layout.stops[-1])
    end = next((place for place, token in enumerate(new) if token in layout.ends), 12)
    answer = post("/infill", input_prefix=PREFIX, input_suffix=SUFFIX, prompt="total = ", n_predict=12).json()
    assert answer["content"] == tokenizer.decode(new[:end], clean_up_tokenization_spaces=False)


def test_stop_strings_and_indentation_end_a_span(post, model, tokenizer):
    (text,) = infill(model, tokenizer, PREFIX, SUFFIX, max_new_tokens=24).spans
    middle = len(text) // 2
    word = text[middle : middle + 2]
    asked = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 24, "stop": ["never there", word]}
    answer = post("/v1/completions", **asked).json()["choices"][0]
    assert answer["text"] == text[: text.index(word)] and answer["finish_reason"] == "stop"
    parts = [part["choices"][0]["text"] for part in events(post("/v1/completions", **asked, stream=True).text)]
    assert "".join(parts) == answer["text"]
    stopped = post("/infill", input_prefix=PREFIX, input_suffix=SUFFIX, n_predict=24, stop=[word]).json()
    assert stopped["stop_type"] == "word" and stopped["stopping_word"] == word


def test_a_model_of_another_family_with_other_files():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|file_sep|>", "<|repo_name|>"], special_tokens=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.2)
    )
    add_infill_tokens(tokenizer, model, "qwen2.5-coder")
    files = {"utils.py": "def one():\n    return 1\n"}
    names = {"files": files, "path": "main.py"}
    expected = infill(model.eval(), tokenizer, PREFIX, SUFFIX, max_new_tokens=9, infill_format="auto", **names)
    extra = [{"filename": name, "text": text} for name, text in files.items()]
    asked = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 9, "input_extra": extra, "path": "main.py"}
    with serving(InfillServer(model, tokenizer, "llama")) as url:
        answer = httpx.post(f"{url}/infill", json=asked, timeout=PATIENCE).json()
    assert answer["content"] == expected.spans[0]
    assert "def one" in answer["prompt"]


def test_other_files_go_before_the_prefix_where_the_family_reads_none(post, model, tokenizer):
    extra = [{"filename": "a.py", "text": "x = 1"}, {"text": "y = 2"}]
    answer = post("/infill", input_prefix=PREFIX, input_suffix=SUFFIX, n_predict=5, input_extra=extra).json()
    assert answer["content"] == infill(model, tokenizer, f"x = 1\ny = 2\n{PREFIX}", SUFFIX, max_new_tokens=5).spans[0]


WRONG = [
    ("/v1/completions", {}, 400, "`prompt`"),
    ("/v1/completions", {"prompt": 3}, 400, "`prompt`"),
    ("/v1/completions", {"prompt": [1, 2]}, 400, "`prompt`"),
    ("/v1/completions", {"prompt": "a", "model": "gpt-9"}, 404, "there is no model 'gpt-9'.*'tiny'"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "`max_tokens`"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 65}, 400, "65.*at most"),
    ("/v1/completions", {"prompt": "a", "max_tokens": "9"}, 400, "`max_tokens`"),
    ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "`temperature`"),
    ("/v1/completions", {"prompt": "a", "top_p": 0}, 400, "`top_p`"),
    ("/v1/completions", {"prompt": "a", "stop": [""]}, 400, "`stop`"),
    ("/v1/completions", {"prompt": "a", "n": 9}, 400, "9 spans"),
    ("/v1/completions", {"prompt": ["a"] * 3, "n": 3}, 400, "9 spans"),
    ("/v1/completions", {"prompt": "a", "best_of": 3}, 400, "best_of"),
    ("/v1/completions", {"prompt": "a", "logprobs": 5}, 400, "`logprobs` is 5"),
    ("/v1/completions", {"prompt": "a", "suffixx": "b"}, 400, "is it `suffix`"),
    ("/v1/completions", {"prompt": ""}, 400, "`prompt` is empty"),
    ("/infill", {"n_predict": 0}, 400, "`n_predict` is 0"),
    ("/infill", {"n_predict": 65}, 400, "at most"),
    ("/infill", {"pieces": ["a"]}, 400, "`pieces`"),
    ("/infill", {"pieces": ["a", "b"], "input_prefix": "c"}, 400, "`pieces` and"),
    ("/infill", {"pieces": ["a"] * 10}, 400, "9 spans"),
    ("/infill", {"pieces": ["a", "b" * 900, "c"], "n_predict": 64}, 400, "between the holes"),
    ("/infill", {"grammar": "root ::= x"}, 400, "`grammar`"),
    ("/infill", {"path": "a.py"}, 400, "leave `files`"),
    ("/infill", {"input_extra": [{"filename": "a"}]}, 400, "`input_extra`"),
    ("/infill", {"input_prefix": "a" * 30_000}, 413, "more than 20000 bytes"),
    ("/v1/chat/completions", {}, 404, "Not Found"),
]


@pytest.mark.parametrize("path, body, status, message", WRONG)
def test_a_wrong_request_is_told_what_is_wrong(post, path, body, status, message):
    answer = post(path, **body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert re.search(message, error["message"]) and error["type"] == "invalid_request_error"
    assert post("/infill", n_predict=1, input_prefix="a").status_code == 200


def test_bodies_that_are_no_json_or_too_long(url, client):
    for content in (b"{", b"\xff\xfe", b"[" * 5000):
        answer = httpx.post(f"{url}/infill", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    parts = (b" " * 1000 for _ in range(50))  # in chunks: no length is said
    answer = httpx.post(f"{url}/infill", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="other", prompt="a")


class Gate:
    """Lets a model make so many steps and no more."""

    def __init__(self, model):
        self.steps = threading.Semaphore(0)
        self.hook = model.register_forward_pre_hook(lambda *_: self.steps.acquire(timeout=PATIENCE) and None)

    def open(self):
        self.hook.remove()
        self.steps.release(10_000)


@pytest.fixture
def gated(model, tokenizer):
    server = InfillServer(model, tokenizer, "tiny", limits=Limits(max_waiting=2, max_batch_size=1))
    gate = Gate(model)
    try:
        with serving(server) as address:
            yield server, gate, address
            gate.open()
    finally:
        gate.open()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place(gated, stream):
    server, gate, url = gated
    asked = {"input_prefix": PREFIX, "n_predict": 60, "stream": stream}
    with httpx.Client(timeout=PATIENCE) as client, contextlib.suppress(httpx.ReadTimeout):
        gate.steps.release(2)
        if stream:
            with client.stream("POST", f"{url}/infill", json=asked) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
        else:
            client.post(f"{url}/infill", json=asked, timeout=0.5)
    wait_for(lambda: server.batcher.load == (0, 0))
    gate.open()
    assert httpx.post(f"{url}/infill", json={**asked, "stream": False}, timeout=PATIENCE).status_code == 200


def test_a_full_queue_says_so(gated):
    server, gate, url = gated
    asked, answers = {"input_prefix": PREFIX, "n_predict": 2}, []

    def ask():
        answers.append(httpx.post(f"{url}/infill", json=asked, timeout=PATIENCE).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for number, thread in enumerate(threads):
        thread.start()
        wait_for(lambda number=number: server.batcher.load == (1, number))
    answer = httpx.post(f"{url}/infill", json=asked, timeout=PATIENCE)
    assert answer.status_code == 429 and answer.headers["retry-after"] and "2 spans wait" in answer.text
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "running": 1, "waiting": 2}
    gate.open()
    for thread in threads:
        thread.join()
    assert answers == [200] * 3


def test_a_model_that_fails_does_not_end_the_server(post, model):
    def fail(*_):
        raise RuntimeError("no such kernel")

    hook = model.register_forward_pre_hook(fail)
    answer = post("/infill", input_prefix=PREFIX)
    streamed = post("/infill", input_prefix=PREFIX, stream=True)
    hook.remove()
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert events(streamed.text)[-1]["error"]["code"] == "model_error"
    assert post("/infill", input_prefix=PREFIX, n_predict=2).status_code == 200


def span(model, tokenizer, text, length, listener=lambda news: None, **kwargs):
    ends = frozenset(tokenizer.all_special_ids)
    return Span(tokenizer.encode(text), ends, ends, length, tokenizer.decode, listener=listener, **kwargs)


def test_a_short_span_does_not_wait_for_a_long_one(model, tokenizer):
    gate, ended, over = Gate(model), [], threading.Event()

    def listen(name):
        def tell(news):
            if news.reason is not None:
                ended.append(name)
                over.set() if len(ended) == 2 else None

        return tell

    batcher = Batcher(model, max_batch_size=4, turn=4)
    drawing = Drawing(temperature=1.0, seed=3)
    long = span(model, tokenizer, "a = ", 60, listen("long"), drawing=drawing)
    batcher.submit([long])
    gate.steps.release(1)
    wait_for(lambda: long.written)
    short = span(model, tokenizer, "def add(a", 2, listen("short"))
    batcher.submit([short])
    gate.open()
    assert over.wait(PATIENCE)
    alone = span(model, tokenizer, "a = ", 60, listen("alone"), drawing=drawing)
    batcher.submit([alone])
    wait_for(lambda: alone.is_over)
    batcher.close()
    assert len(long.written) > 10 and ended[:2] == ["short", "long"]
    assert long.written == alone.written  # though it was interrupted


def test_memory_that_ends_halves_the_batch(model, tokenizer):
    def fail(_, args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError

    hook = model.register_forward_pre_hook(fail, with_kwargs=True)
    batcher = Batcher(model, max_batch_size=8)
    spans = [span(model, tokenizer, f"x{number} = ", 3) for number in range(8)]
    batcher.submit(spans)
    wait_for(lambda: all(one.is_over for one in spans))
    hook.remove()
    batcher.close()
    assert batcher.max_batch_size == 2 and not any(one.reason == "error" for one in spans)


texts = st.text(st.sampled_from("ab \n\té"), max_size=30)


@given(texts, st.lists(st.sampled_from(["a", "ab", "b\n", "\n\n", "é"]), max_size=2), st.integers(0, 3))
def test_what_is_sent_is_never_taken_back(text, stop, min_indent):
    rules, sent = TextRules(tuple(stop), min_indent), ""
    for size in range(len(text) + 1):
        part = text[:size]
        if end := rules.end(part):
            assert part[: end[0]].startswith(sent)
            assert not any(word in part[: end[0]] for word in stop)
            return
        assert part[: rules.safe(part)].startswith(sent)
        sent = part[: rules.safe(part)]
    assert text.startswith(sent)


def test_rules_of_indentation():
    rules = TextRules(min_indent=4)
    assert rules.end("x = 1\n    y = 2\n\n    z\n  w = 3") == (len("x = 1\n    y = 2\n\n    z"), "")
    assert rules.end("x = 1\n    y\n\n  ") is None


def test_a_port_that_is_taken(server, url):
    with pytest.raises(OSError, match="in use"):
        serve(server, port=int(url.rsplit(":", 1)[1]))


def test_limits_below_one():
    with pytest.raises(ValueError, match="`max_body` is 0; give 1 or more"):
        Limits(max_body=0)


def test_the_command(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    command = [
        sys.executable,
        "recipes/serve_infilling.py",
        str(tmp_path / "tiny"),
        "--port",
        "0",
        "--num_threads",
        "1",
    ]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
    try:
        line = process.stdout.readline()
        url = re.search(r"http://\S+", line).group()
        answer = httpx.post(f"{url}/infill", json={"input_prefix": PREFIX, "n_predict": 5}, timeout=PATIENCE)
        assert answer.json()["content"] == infill(model, tokenizer, PREFIX, "", max_new_tokens=5).spans[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) in (0, -signal.SIGINT), process.stderr.read()
    finally:
        process.kill()
