"""The demo, driven in a browser at the size of a desktop and of a phone, and its limits without one."""

import builtins
import http.client
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest
import torch
from cases_codegen2 import tiny_tokenizer, tokenizer_config
from cases_recipes import load_recipe

from modeling_lpn import CodeGen2ForCausalLM, CodeInfillingPipeline, LPNConfig, LPNModel, LPNProcessor
from modeling_lpn import ProgramInductionPipeline as Induction
from modeling_lpn.demo import app
from modeling_lpn.demo.app import HOLE, Programs, build_demo, infill_code, launch_settings, objective_example
from modeling_lpn.demo.limits import MAX_BODY, MAX_CHARACTERS
from modeling_lpn.demo.pictures import answers_html, code_html, problem_html
from modeling_lpn.demo.search import MAX_JSON
from modeling_lpn.tasks.plots import ARC_PALETTE


BROWSERS = ("chromium", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
needs_browser = pytest.mark.skipif(
    BROWSER is None or shutil.which("chromedriver") is None,
    reason="there is no chromium with its chromedriver (Debian: apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def pipelines():
    torch.manual_seed(0)
    plane = LPNModel(LPNConfig(max_rows=4, max_cols=4, latent_dim=2, search={"num_steps": 20, "lr": 0.5})).eval()
    tokenizer = tiny_tokenizer()
    config = tokenizer_config(tokenizer)
    config.n_positions = 512
    return {
        "plane": Induction(plane, processor=LPNProcessor(max_rows=4, max_cols=4)),
        "code": CodeInfillingPipeline(CodeGen2ForCausalLM(config).eval(), tokenizer=tokenizer),
    }


@pytest.fixture(scope="module")
def url(pipelines):
    demo = build_demo(pipelines)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_settings())
    yield address
    demo.close()


@pytest.fixture(params=SIZES)
def page(request, url):
    driver = open_browser(*SIZES[request.param])
    try:
        driver.get(url)
        page = Page(driver, request.param)
        page.wait("#editor canvas")
        yield page
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        driver.quit()


def open_browser(width, height):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS.split(), f"--window-size={width},{height}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if width < 600:
        metrics = {"width": width, "height": height, "pixelRatio": 1.0}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


class Page:
    """The page of the demo by its ids."""

    def __init__(self, driver, size):
        self.driver, self.size, self.searches = driver, size, []

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, css):
        return self.driver.find_element("css selector", css)

    def texts(self, css):
        return self.js("return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", css)

    def text(self, css):
        return " ".join(self.texts(css))

    def until(self, happened, seconds=90):
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, {css: self.text(css) for css in ("#message", "#status", "#program")}
            time.sleep(0.1)

    def wait(self, css, words=""):
        self.until(lambda: any(words in text for text in self.texts(css)))

    def place(self):
        """The point of the map whose program is shown."""
        return [float(number) for number in re.search(r"\((.*)\)", self.text("#program"))[1].split(",")]

    def click(self, css, x=None, y=None):
        """Clicks an element, at offsets from its centre if given."""
        from selenium.webdriver.common.action_chains import ActionChains

        node = self.find(css)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", node)
        if x is None:
            return node.click()
        ActionChains(self.driver).move_to_element_with_offset(node, x, y).click().perform()

    def press_search(self):
        """Presses the button until a search has begun."""
        begun = len(self.searches)
        self.js("document.querySelector('#status [data-ended]')?.setAttribute('data-before', '')")
        # A press is lost in the moment between the last frame of a search and its end, and while a search runs.
        self.until(lambda: self.click("#search") or len(self.searches) > begun)

    def search(self, words=""):
        """Searches until the end, which says this."""
        self.press_search()
        self.wait("#status [data-ended=finished]:not([data-before])", words)

    def has_map(self):
        return self.js(
            "return document.querySelector('canvas.map').getContext('2d').getImageData(9, 9, 1, 1).data[3] > 0"
        )

    def tab(self, name):
        self.js(
            "[...document.querySelectorAll('button[role=tab]')].find(b => b.textContent.includes(arguments[0])).click()",
            name,
        )

    def task(self):
        """What the editor holds, by way of its button that saves it."""
        return json.loads(
            self.driver.execute_async_script(
                "const done = arguments[0], create = URL.createObjectURL;"
                "URL.createObjectURL = (blob) => { blob.text().then(done); URL.createObjectURL = create; return '#'; };"
                "[...document.querySelectorAll('#editor .tools button')].at(-1).click()"
            )
        )

    def grids(self, css):
        return self.js(
            "return [...document.querySelectorAll(arguments[0] + ' table.grid')].map(table => [...table.rows].map("
            "row => [...row.cells].map(cell => Number(cell.dataset.color))))",
            css,
        )


@needs_browser
def test_in_the_browser(page, pipelines, tmp_path, monkeypatch):
    from selenium.webdriver.common.keys import Keys

    infer, canvas = pipelines["plane"], "#editor canvas"
    search, draw, drawn = Programs.search, Programs.map, threading.Event()
    monkeypatch.setattr(Programs, "search", lambda *args: page.searches.append(args) or search(*args))
    monkeypatch.setattr(Programs, "map", lambda *args: drawn.wait(90) and draw(*args))
    # Draw with the pointer and with the keyboard.
    page.click("#editor .color:nth-child(5)")
    page.click(canvas, 12, 12)
    page.find(canvas).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP * 3, "7")
    task = page.task()
    assert task["train"][0]["input"][0][0] == 7 and task["train"][0]["input"][2][2] == 4
    pixel = page.js("return [...arguments[0].getContext('2d').getImageData(10, 10, 1, 1).data]", page.find(canvas))
    assert pixel[:3] == [int(ARC_PALETTE[7][place : place + 2], 16) for place in (1, 3, 5)]
    assert "output" not in task["test"][0]
    # Search, and read the answers.
    page.search()
    page.wait("#answers figcaption", "Answer 1")
    wanted = infer(task)
    first, second = wanted["grids"][0]
    assert page.grids("#answers") == ([first] if first == second else [first, second])
    assert ("No second answer" in page.text("#answers")) == (first == second)
    assert f"{wanted['num_evaluations']} decoder evaluations" in page.text("#status")
    assert page.js("return document.querySelector('#curve polyline').points.length") == 21
    # Ranking by leave-one-out, while the map is still drawn: what the pipeline finds with it.
    page.click("#rank label:nth-of-type(2)")
    page.search("ranked by leave-one-out")
    page.wait("#answers figcaption", "Answer 1")
    wanted = infer(task, search_config={**infer.model.config.search, "rank_by": "leave_one_out"})
    assert page.grids("#answers")[0] == wanted["grids"][0][0]
    assert f"{wanted['num_evaluations']} decoder evaluations" in page.text("#status")
    # Click the map, once it is there: the program of that place is executed.
    assert not page.has_map()
    drawn.set()
    page.until(page.has_map)
    page.click("canvas.map", 60, -30)
    page.wait("#program", "Program at (")
    place, query = page.place(), {k: v for k, v in infer.processor(task).items() if k.startswith("query")}
    output = infer.model.execute(torch.tensor([[place]]), **query)
    assert page.grids("#program")[0] == infer.processor.post_process(output)[0][0][0]
    page.find("canvas.map").send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.place()[0] > place[0])
    assert page.place()[1] == place[1]
    # The slider between two programs, by keyboard: from B, the best, to a twentieth of the way to A, the start.
    slider = page.find("#between input[type=range]")
    page.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", slider)
    slider.send_keys(Keys.ARROW_LEFT)
    page.wait("#program", "0.02 A + 0.98 B")
    # A broken file is refused in words, and the task stays; a good one replaces it.
    (tmp_path / "broken.json").write_text("<script>alert(1)</script>")
    page.find("#upload input[type=file], input[type=file]").send_keys(str(tmp_path / "broken.json"))
    page.wait("#message .problem", "This is no JSON")
    assert page.task() == task
    (tmp_path / "good.json").write_text(
        json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]})
    )
    page.find("#upload input[type=file], input[type=file]").send_keys(str(tmp_path / "good.json"))
    page.until(lambda: len(page.task()["train"]) == 1)
    assert page.task()["train"] == [{"input": [[1]], "output": [[2]]}]
    # Stop a search on its way: the model computes nothing until it is to stop.
    log_prob, stop, stopped = infer.model.log_prob, Programs.stop, threading.Event()
    monkeypatch.setattr(Programs, "stop", lambda *args: stop(*args) or stopped.set())
    monkeypatch.setattr(
        infer.model, "log_prob", lambda *args, **kwargs: stopped.wait(90) and log_prob(*args, **kwargs)
    )
    page.press_search()
    page.wait("#status [data-ended='']", "Searching")
    page.click("#stop")
    page.wait("#status [data-ended=stopped]")
    monkeypatch.undo()
    # The other tabs.
    page.tab("Infill")
    page.click("#fill")
    page.wait("#infilled .code", "def mean(values):")
    assert page.js("return document.querySelectorAll('#infilled mark.written').length") == 2
    page.tab("Objectives")
    page.click("#show")
    page.wait("#example .control", "<mask_1>")
    assert page.js("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(
    "header, status", [(("Content-Length", str(MAX_BODY + 1)), 413), (("Transfer-Encoding", "chunked"), 411)]
)
def test_a_body_that_is_too_large_is_refused(url, header, status):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=30)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader(*header)
    connection.endheaders()  # refused before a byte of it is sent
    assert connection.getresponse().status == status
    connection.close()


class Visitor:
    """A session of the running demo, without a browser."""

    def __init__(self, url, session):
        self.url, self.session = url.rstrip("/") + "/gradio_api", session
        with urllib.request.urlopen(url.rstrip("/") + "/config", timeout=30) as page:
            config = json.load(page)
        self.ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.functions = {tuple(target): one["id"] for one in config["dependencies"] for target in one["targets"]}

    def press(self, button, *data):
        """Status and answer of the server."""
        body = {"data": data, "fn_index": self.functions[self.ids[button], "click"], "session_hash": self.session}
        return self.post("/queue/join", json.dumps(body).encode(), "application/json")

    def post(self, place, body, kind):
        request = urllib.request.Request(self.url + place, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def shown(self):
        """Everything that the session is told until its event is done."""
        with urllib.request.urlopen(f"{self.url}/queue/data?session_hash={self.session}", timeout=90) as lines:
            told = []
            for line in lines:
                told.append(line.decode())
                if "process_completed" in told[-1]:
                    return "".join(told)


def test_json_above_the_limit_is_refused_by_the_running_demo(url):
    visitor, task = Visitor(url, "large"), json.dumps({"train": [], "note": "x" * MAX_JSON})
    part = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="t.json"\r\n\r\n'
        + task.encode()
        + b"\r\n--b--\r\n"
    )
    assert visitor.post("/upload", part, "multipart/form-data; boundary=b")[0] == 413
    status, _ = visitor.press("search", "plane", task, "gradient", 2, "fit")  # as if it stood in the editor
    assert status == 200
    assert f"The task has {len(task)} bytes, more than {MAX_JSON}" in visitor.shown()


def test_more_requests_than_the_queue_holds_are_refused(pipelines, monkeypatch):
    busy, most, free, lock = 0, 0, threading.Event(), threading.Lock()

    def infill(*args):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        assert free.wait(60)
        with lock:
            busy -= 1
        return "done"

    monkeypatch.setattr(app, "infill_code", infill)
    demo = build_demo({"code": pipelines["code"]})
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_settings())
    try:
        visitors = [Visitor(address, f"visitor {number}".replace(" ", "")) for number in range(app.WAITING + 3)]
        answers = [visitor.press("fill", "code", HOLE, 4) for visitor in visitors]
        statuses = [status for status, _ in answers]
        assert statuses[: app.WAITING] == [200] * app.WAITING and statuses[-1] == 503
        assert "Queue is full" in answers[-1][1]
        free.set()
        assert "done" in visitors[0].shown() and "done" in visitors[app.WAITING - 1].shown()
        assert most == 1  # and one at a time
        assert visitors[-1].press("fill", "code", HOLE, 4)[0] == 200  # there is room again
    finally:
        free.set()
        demo.close()


def test_what_is_infilled_is_not_executed(pipelines, monkeypatch, tmp_path):
    seen = []
    for name in ("exec", "eval", "compile"):
        real = getattr(builtins, name)
        monkeypatch.setattr(
            builtins, name, lambda code, *args, _real=real, **kw: seen.append(code) or _real(code, *args, **kw)
        )
    for module, name in ((subprocess, "Popen"), (os, "system")):
        monkeypatch.setattr(module, name, lambda *args, **kw: pytest.fail("a process was started"))
    source = f"open({str(tmp_path / 'ran')!r}, 'w')\n{HOLE}\n"
    assert "ran" in infill_code(pipelines["code"], source, 4)
    objective_example(pipelines["code"], "infill", source, 0)
    assert not any("ran" in str(code) for code in seen) and not list(tmp_path.iterdir())


def test_limits_of_infilling(pipelines):
    fill = pipelines["code"]
    page = infill_code(fill, f"<b>{HOLE}</b>{HOLE}", 2)
    assert page.startswith('<pre class="code">&lt;b&gt;<mark class="written">') and page.count("<mark") == 2
    for text, tokens, message in (
        ("a", 4, f"has no hole; write {HOLE}"),
        (HOLE * 6, 4, "has 6 holes; this demo fills 5"),
        ("a" * (MAX_CHARACTERS + 1), 4, "has 20001 characters"),
        (HOLE, 0, "0 tokens for each hole"),
        (HOLE, 65, "65 tokens for each hole"),
    ):
        with pytest.raises(ValueError, match=message):
            infill_code(fill, text, tokens)


@pytest.mark.parametrize("name", ["causal", "span_corruption", "infill", "prefix_lm"])
def test_an_example_of_each_objective(pipelines, name):
    text = "def add(a, b):\n    return a + b\n"
    page = objective_example(pipelines["code"], name, text, seed=3)
    assert page.count('class="learned"') > 1  # beside the legend
    assert ('class="both">def' in page) == (name == "prefix_lm")
    assert ("&lt;mask_1&gt;" in page) == (name in ("span_corruption", "infill"))
    with pytest.raises(ValueError, match="The text has 0 characters"):
        objective_example(pipelines["code"], name, "", seed=0)


def test_files_and_demos_that_are_refused(pipelines, tmp_path):
    programs = Programs({"plane": pipelines["plane"]})
    for content, message in (
        (b"\xff", "is no text"),
        (b" " * (2**20 + 1), "more than 1048576 bytes"),
        (b"3", "is a int"),
    ):
        (tmp_path / "task.json").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            programs.read_file("plane", str(tmp_path / "task.json"))
    with pytest.raises(ValueError, match="There is no program yet: search first"):
        programs.show_point(None, 0.0, 0.0)
    with pytest.raises(ValueError, match="The demo has no model"):
        build_demo({})


@torch.no_grad()
def test_an_answer_is_not_shown_twice(pipelines):
    programs = Programs({"plane": pipelines["plane"]})
    task = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}, {"input": [[4]]}]}
    latents = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    page = programs.answers("plane", task, SimpleNamespace(ranked=lambda: (latents, torch.zeros(1, 2))))
    assert page.count("<table") == 2 and "Answer 2" not in page
    assert "No second answer to test input 2: the other programs of the search write the same." in page


def test_a_ranking_that_would_take_too_long_loses_no_search(pipelines, monkeypatch):
    programs = Programs({"plane": pipelines["plane"]})
    rank = app.rank_by_leave_one_out
    monkeypatch.setattr(app, "rank_by_leave_one_out", lambda *args: setattr(args[-1], "seconds", 1e9) or rank(*args))
    *_, last = programs.search("plane", programs.new_task("plane", 2), "gradient", 2, "leave_one_out", "session")
    assert "Finished: 3 decoder evaluations" in last[0] and "leave-one-out" not in last[0]
    assert "Ranking by leave-one-out would take about" in last[3] and "Answer 1" in last[3]


def test_the_default_models_are_those_that_can_be_drawn():
    names = {folder.rsplit("/", 1)[-1] for folder in load_recipe("demo").released_models()}
    assert {"lpn-pattern-4x4", "lpn-pattern-2d", "codegen2-python-1m"} <= names and "lpn-strings" not in names


def test_texts_from_outside_are_escaped():
    assert "<script>" not in problem_html("<script>") + code_html([("<script>", "written")]) + answers_html(
        ["<script>"], [[[1]]], [[[1]]]
    )
    assert len(problem_html("x" * 10_000)) < 600
