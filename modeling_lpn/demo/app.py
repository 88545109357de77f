"""The demo in the browser: latent search to watch, code to infill, training examples of the objectives in colours.

Imported only to be shown: it needs gradio, the extra `demo`. Nothing that is typed, drawn or infilled is executed.
"""

import functools
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import torch

from ..code.objectives import OBJECTIVES
from ..codegen2.infilling_codegen2 import encode_source, infill_layout
from ..codegen2.pipeline_codegen2 import CodeInfillingPipeline
from ..lpn.pipeline_lpn import ProgramInductionPipeline
from ..lpn.processing_lpn import StringProcessor
from ..lpn.search_lpn import SearchConfig
from ..pipelines import HOLE, load_pipeline, split_at_holes
from ..tasks.generators import PatternTask
from ..tasks.plots import ARC_PALETTE
from ..tasks.stream import TaskStream, tasks_from_stream
from . import pictures
from .limits import MAX_CHARACTERS, MAX_HOLES, MAX_INFILL_SECONDS, MAX_NEW_TOKENS, BodyLimit
from .search import (
    MAX_JSON,
    MAX_STEPS,
    RANKINGS,
    WORKABLE,
    SearchTrace,
    execute_program,
    latent_map,
    rank_by_leave_one_out,
    read_json_task,
    search_settings,
    watch_search,
)


FOLDER = Path(__file__).parent
FRAME = 0.12  # seconds between two looks at a search
PARALLEL, WAITING = 2, 16  # searches at a time, and requests in the queue
CODE = f'''def mean(values):
    """The arithmetic mean."""
    total = 0
    for value in values:
        {HOLE}
    return {HOLE}
'''
SOURCE = """def add(a, b):
    return a + b


def scale(values, factor):
    return [factor * value for value in values]
"""
LEGEND = (
    ("learned", "learned: has a loss"),
    ("read", "read only"),
    ("both", "read in both directions"),
    ("control", "control token"),
)


def kindly(outputs: int) -> Callable:
    """A handler whose first output is the place for messages: a mistake is shown there and the rest stays as it is."""

    def wrap(handler: Callable) -> Callable:
        @functools.wraps(handler)
        def run(*args, **kwargs):
            try:
                return ("", *handler(*args, **kwargs))
            except (ValueError, TypeError) as error:
                return (pictures.problem_html(error), *[gr.skip()] * outputs)

        return run

    return wrap


class Programs:
    """The LPN models of a demo, and what its tab about latent search does."""

    def __init__(self, pipelines: dict[str, ProgramInductionPipeline]):
        self.pipelines = pipelines
        self.stops: dict[str, threading.Event] = {}
        for pipeline in pipelines.values():
            pipeline.model.requires_grad_(False)  # a search differentiates with respect to latents alone

    def parts(self, name: str):
        pipeline = self.pipelines[name]
        return pipeline.model, pipeline.processor

    def pattern_size(self, name: str) -> int:
        """That of the published models: 2 for the 2-dimensional latent space, 3 for the quickstart."""
        config = self.pipelines[name].model.config
        return min(2 if config.latent_dim == 2 else 3, config.max_rows, config.max_cols)

    def has_map(self, name: str) -> bool:
        return self.pipelines[name].model.config.latent_dim == 2

    def saved_search(self, name: str) -> dict[str, Any]:
        """Budget and ranking that are saved with a model, within the limits."""
        saved = SearchConfig.of(self.pipelines[name].model.config.search)
        return {"steps": min(saved.budget or 100, MAX_STEPS), "rank_by": saved.rank_by}

    def new_task(self, name: str, size: int) -> str:
        """A pattern task that the model can read, as JSON."""
        config = self.pipelines[name].model.config
        rows, cols = min(config.max_rows, 10), min(config.max_cols, 10)
        generator = PatternTask(num_pairs=4, num_rows=rows, num_cols=cols, pattern_size=int(size))
        seed = int(np.random.default_rng().integers(2**31))
        (task,) = tasks_from_stream(TaskStream(generator, 1, seed), 1)
        return json.dumps({"task_id": f"pattern {seed}", "train": task["train"], "test": task["test"]})

    def read_file(self, name: str, path: str) -> str:
        """The task of an uploaded file, checked, as JSON."""
        if Path(path).stat().st_size > MAX_JSON:
            raise ValueError(f"The file has more than {MAX_JSON} bytes; give a smaller one.")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("The file is no text; give a task in ARC's JSON form.") from error
        return json.dumps(read_json_task(text, self.pipelines[name].processor))

    def search(self, name: str, text: str, method: str, num_steps: int, rank_by: str, session: str):
        """Yields status, curve, program, answers, number of the last step, map and state while a search runs."""
        model, processor = self.parts(name)
        task = read_json_task(text, processor)
        stop = self.stops[session] = threading.Event()
        try:
            yield from self._frames(name, task, search_settings(model, method, int(num_steps), rank_by), stop)
        finally:
            if self.stops.get(session) is stop:
                del self.stops[session]

    def _frames(self, name: str, task: dict, settings: SearchConfig, stop: threading.Event):
        # Answers and map of the search before go; [`draw`] brings the new map.
        yield status_html("Searching"), gr.skip(), gr.skip(), "", gr.skip(), None, gr.skip()
        shown, wait, problem = 0.0, FRAME, ""
        for trace in watch_search(*self.parts(name), task, settings, stop):
            if trace.ended or time.monotonic() - shown < wait:
                continue
            start = time.monotonic()
            program = self.show(name, task, *trace.best_of_step(-1), f"step {len(trace.steps) - 1}")
            shown = time.monotonic()
            wait = max(FRAME, 2 * (shown - start))  # a third of the time at most goes into looking
            yield describe_trace(trace), pictures.curve_svg(trace.curve()), program, *[gr.skip()] * 4
        if settings.rank_by == "leave_one_out" and trace.ended == "finished":
            yield status_html("Searching without each pair, to rank the programs"), *[gr.skip()] * 6
            try:
                rank_by_leave_one_out(*self.parts(name), task, settings, trace)
            except ValueError as error:  # what was found is shown, ranked by fit
                problem = pictures.problem_html(error)
        steps, last = [trace.best_of_step(step) for step in range(len(trace.steps))], len(trace.steps) - 1
        state = {"name": name, "task": task, "steps": steps, "a": steps[0][0], "b": trace.ranked()[0][0, 0]}
        yield (
            describe_trace(trace),
            pictures.curve_svg(trace.curve()),
            self.show(name, task, *steps[-1], f"step {last}"),
            problem + self.answers(name, task, trace),
            gr.update(maximum=max(1, last), value=last, interactive=last > 0),
            gr.skip(),
            state,
        )

    def draw(self, state: dict | None) -> str | None:
        """The map of the task that was searched, of which drawing takes longer than many a search."""
        return self.map(state["name"], state["task"], state["steps"]) if state else None

    def stop(self, session: str) -> None:
        if event := self.stops.get(session):
            event.set()

    def answers(self, name: str, task: dict, trace: SearchTrace) -> str:
        """The two answers to each test input; one where no program was found that writes another."""
        grids = execute_program(*self.parts(name), task, *trace.ranked(), candidates=2)
        titles, flat, truths, alone = [], [], [], []
        for number, candidates in enumerate(grids):
            of = f" to test input {number + 1}" if len(grids) > 1 else ""
            distinct = [grid for place, grid in enumerate(candidates) if grid not in candidates[:place]]
            titles += [f"Answer {place}{of}" for place in range(1, len(distinct) + 1)]
            flat += distinct
            truths += [task["test"][number].get("output")] * len(distinct)
            alone += [f"No second answer{of}: the other programs of the search write the same."] * (len(distinct) == 1)
        return pictures.answers_html(titles, flat, truths) + "".join(f"<p>{text}</p>" for text in alone)

    def map(self, name: str, task: dict, steps: list) -> str | None:
        model, processor = self.parts(name)
        if not self.has_map(name):
            return None
        path = [latent.tolist() for latent, _ in steps]
        half = max(3.0, 1.1 * max(abs(value) for place in path for value in place))
        log_probs = latent_map(model, processor, task, half)
        rounded = [[round(value, 2) for value in row] for row in log_probs]
        return json.dumps({"log_probs": rounded, "half": half, "path": path})

    def show(self, name: str, task: dict, latent: torch.Tensor, value: float | None, what: str) -> str:
        """What a program writes for the test inputs."""
        model, processor = self.parts(name)
        grids = execute_program(model, processor, task, latent[None, None])
        if value is None:
            inputs = processor(task).to(model.device)
            demonstrations = {key: tensor for key, tensor in inputs.items() if not key.startswith("query")}
            value = float(model.log_prob(latent[None, None], **demonstrations).detach())
        titles = [f"Program at {what}: log-likelihood {value:.3g}"] + [""] * (len(grids) - 1)
        truths = [pair.get("output") for pair in task["test"]]
        return pictures.answers_html(titles, [candidates[0] for candidates in grids], truths)

    def show_step(self, state: dict | None, step: int) -> tuple[str, dict]:
        state = searched(state)
        step = min(int(step), len(state["steps"]) - 1)
        return self.show_latent({**state, "value": state["steps"][step][1]}, state["steps"][step][0], f"step {step}")

    def show_latent(self, state: dict, latent: torch.Tensor, what: str) -> tuple[str, dict]:
        value = state.pop("value", None)
        return self.show(state["name"], state["task"], latent, value, what), {**state, "now": latent}

    def show_point(self, state: dict | None, x: float, y: float) -> tuple[str, dict]:
        state = searched(state)
        return self.show_latent(state, torch.tensor([x, y]).to(state["a"]), f"({x:.2f}, {y:.2f})")

    def show_between(self, state: dict | None, share: float) -> tuple[str, dict]:
        state = searched(state)
        latent = torch.lerp(state["a"], state["b"], float(share))
        return self.show_latent(state, latent, f"{1 - share:.2f} A + {share:.2f} B")

    def keep(self, state: dict | None, which: str) -> tuple[str, dict]:
        state = searched(state)
        kept = state.get("now", state["b"])
        return f"The program shown is now {which.upper()}; move the slider between A and B.", {**state, which: kept}


def searched(state: dict | None) -> dict:
    if not state:
        raise ValueError("There is no program yet: search first.")
    return state


def describe_trace(trace: SearchTrace) -> str:
    words = {"": "Searching", "finished": "Finished", "stopped": "Stopped", "time": "Stopped at the time limit"}
    best = trace.curve()[-1][1]
    ranked = "" if trace.ranking is None else ", programs ranked by leave-one-out"
    return status_html(
        f"{words.get(trace.ended, 'Failed')}: {trace.num_evaluations} decoder evaluations, log-likelihood {best:.3g} "
        f"nats{ranked}",
        trace.ended,
    )


def status_html(text: str, ended: str = "") -> str:
    return f'<div role="status" data-ended="{ended}">{text}</div>'


def infill_code(pipeline: CodeInfillingPipeline, text: str, max_new_tokens: int) -> str:
    """The infilled code, what was written marked, as HTML. Raises `ValueError` beyond the limits of the demo."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The code has {len(text)} characters; this demo reads {MAX_CHARACTERS}.")
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"{max_new_tokens} tokens for each hole; this demo writes 1 to {MAX_NEW_TOKENS}.")
    pieces = split_at_holes(text)
    if len(pieces) - 1 > MAX_HOLES:
        raise ValueError(f"The code has {len(pieces) - 1} holes; this demo fills {MAX_HOLES}.")
    result = pipeline({"pieces": pieces}, max_new_tokens=int(max_new_tokens), max_time=MAX_INFILL_SECONDS)
    parts = [(pieces[0], "")]
    for span, piece in zip(result["spans"], pieces[1:], strict=True):
        parts += [(span, "written"), (piece, "")]
    notes = [
        f"Hole {number} was cut off after {int(max_new_tokens)} tokens."
        for number, ended in enumerate(result["finished"], 1)
        if not ended
    ]
    notes += ["Text far from the holes was not read: the model's context is shorter."] * result["truncated"]
    return pictures.code_html(parts) + "".join(f"<p>{note}</p>" for note in notes)


def objective_example(pipeline: CodeInfillingPipeline, name: str, text: str, seed: int) -> str:
    """The training sequence that an objective makes of a text, in colours, as HTML."""
    if not text or len(text) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(text)} characters; give 1 to {MAX_CHARACTERS}.")
    tokenizer = pipeline.tokenizer
    layout = infill_layout(tokenizer)
    unit = OBJECTIVES[name]()(encode_source(tokenizer, text), np.random.default_rng(abs(int(seed))), layout)
    parts: list[tuple[list[int], str]] = []
    for place, (token, label) in enumerate(
        zip(*(unit[part].tolist() for part in ("input_ids", "labels")), strict=True)
    ):
        kind = "both" if place < unit["plan"].prefix_length else "learned" if label >= 0 else "read"
        kind = "control" if token in layout.control_ids else kind
        if kind == "control" or not parts or parts[-1][1] != kind:
            parts.append(([], kind))
        parts[-1][0].append(token)
    code = [(tokenizer.decode(ids, clean_up_tokenization_spaces=False), kind) for ids, kind in parts]
    legend = pictures.code_html([part for kind, words in LEGEND for part in ((words, kind), ("  ", ""))])
    return f"{pictures.code_html(code)}<p>{len(unit['input_ids'])} tokens</p>{legend}"


def build_demo(pipelines: dict[str, Any]) -> gr.Blocks:
    """
    The pages of the demo.

    Args:
        pipelines (`dict[str, Pipeline]`): by name; a tab appears for each kind of model that is there.

    Raises:
        ValueError: there is no model, or one of strings.
    """
    programs = {name: one for name, one in pipelines.items() if isinstance(one, ProgramInductionPipeline)}
    codes = {name: one for name, one in pipelines.items() if isinstance(one, CodeInfillingPipeline)}
    if not pipelines:
        raise ValueError("The demo has no model; give folders of trained models or their names on the Hub.")
    for name, pipeline in programs.items():
        if isinstance(pipeline.processor, StringProcessor):
            raise ValueError(f"{name!r} is a model of strings, and this demo draws grids; leave it out.")
    with gr.Blocks(title="Latent programs", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown("# Latent programs\nSearch in latent space for the program behind examples, and infill code.")
        if programs:
            with gr.Tab("Search"):
                search_tab(Programs(programs))
        if codes:
            with gr.Tab("Infill"):
                infill_tab(codes)
            with gr.Tab("Objectives"):
                objective_tab(next(iter(codes.values())))
    return demo.queue(max_size=WAITING, default_concurrency_limit=PARALLEL)


def search_tab(programs: Programs) -> None:
    """The tab about latent search: what is on it, then what happens."""
    with gr.Row():
        with gr.Column(min_width=320):
            task = task_parts(programs)
        with gr.Column(min_width=320):
            search = search_parts(programs)
            walk = walk_parts(programs)
    state = gr.State(None)
    connect_task(programs, task, search, walk, state)
    connect_search(programs, task, search, walk, state)
    connect_walk(programs, task, search, walk, state)


def task_parts(programs: Programs) -> SimpleNamespace:
    """Model and task."""
    names = list(programs.pipelines)
    side = programs.pattern_size(names[0])
    model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
    with gr.Row():
        size = gr.Slider(2, 4, side, step=1, label="Side of a pattern", min_width=140)
        new = gr.Button("New pattern task", elem_id="new", min_width=140)
    upload = gr.UploadButton("Upload a task (ARC JSON, 1 MB at most)", file_types=[".json"], elem_id="upload")
    message = gr.HTML(elem_id="message")
    editor = gr.HTML(
        programs.new_task(names[0], side),
        html_template='<div class="editor"></div>',
        js_on_load=(FOLDER / "editor.js").read_text(),
        elem_id="editor",
        colors=list(ARC_PALETTE),
    )
    return SimpleNamespace(model=model, size=size, new=new, upload=upload, message=message, editor=editor)


def search_parts(programs: Programs) -> SimpleNamespace:
    """Settings of a search, and what it finds."""
    saved = programs.saved_search(next(iter(programs.pipelines)))
    with gr.Row():
        method = gr.Radio(list(WORKABLE), value="gradient", label="Search", min_width=140)
        steps = gr.Slider(0, MAX_STEPS, saved["steps"], step=1, label="Steps or samples", min_width=140)
    rank_by = gr.Radio(
        [("fit to all pairs", RANKINGS[0]), ("leaving out each pair (takes longer)", RANKINGS[1])],
        value=saved["rank_by"],
        label="Rank the programs by",
        elem_id="rank",
    )
    with gr.Row():
        start = gr.Button("Search", variant="primary", elem_id="search", min_width=100)
        stop = gr.Button("Stop", elem_id="stop", min_width=100)
    status, answers = gr.HTML(elem_id="status"), gr.HTML(elem_id="answers")
    curve, program = gr.HTML(elem_id="curve"), gr.HTML(elem_id="program")
    settings = {"method": method, "steps": steps, "rank_by": rank_by, "start": start, "stop": stop}
    return SimpleNamespace(**settings, status=status, answers=answers, curve=curve, program=program)


def walk_parts(programs: Programs) -> SimpleNamespace:
    """Ways to look at other programs than the best."""
    step = gr.Slider(0, 1, 0, step=1, label="Look at the program of a step", interactive=False, elem_id="step")
    plane = gr.HTML(
        html_template='<canvas class="map" width="328" height="328" tabindex="0" role="application" '
        'aria-label="Log-likelihood over the latent space; arrows move the point that is executed"></canvas>',
        js_on_load=(FOLDER / "map.js").read_text(),
        elem_id="map",
        visible=programs.has_map(next(iter(programs.pipelines))),
    )
    with gr.Row():
        keep_a = gr.Button("Keep as A", size="sm", min_width=80)
        keep_b = gr.Button("Keep as B", size="sm", min_width=80)
    label = "Between two programs: A (at first the start) and B (the best)"
    between = gr.Slider(0, 1, 1, step=0.02, label=label, elem_id="between")
    return SimpleNamespace(step=step, plane=plane, keep_a=keep_a, keep_b=keep_b, between=between)


LOOKS = {"show_progress": "hidden", "concurrency_id": "look", "concurrency_limit": PARALLEL}


def connect_task(programs: Programs, task, search, walk, state) -> None:
    def choose(name: str):
        side, saved = programs.pattern_size(name), programs.saved_search(name)
        shown = gr.update(visible=programs.has_map(name))
        return programs.new_task(name, side), side, shown, saved["steps"], saved["rank_by"]

    task.model.change(choose, task.model, [task.editor, task.size, walk.plane, search.steps, search.rank_by])
    renew = kindly(1)(lambda name, side: (programs.new_task(name, side),))
    task.new.click(renew, [task.model, task.size], [task.message, task.editor])
    read = kindly(1)(lambda name, path: (programs.read_file(name, path),))
    task.upload.upload(read, [task.model, task.upload], [task.message, task.editor], **LOOKS)
    # What was found for a task goes when the task goes; not when a cell of it is edited, to see what that changes.
    found = [search.status, search.curve, search.program, search.answers, walk.plane, state]
    for event in (task.model.change, task.new.click):
        event(lambda: ("", "", "", "", None, None), None, found, **LOOKS)


def connect_search(programs: Programs, task, search, walk, state) -> None:
    def run(name: str, text: str, how: str, budget: float, rank_by: str, request: gr.Request):
        status = gr.skip()  # a task that cannot be searched leaves what is there
        try:
            for frame in programs.search(name, text, how, budget, rank_by, request.session_hash):
                yield "", *frame
                status = status_html("Ended without an answer", "failed")
        except (ValueError, TypeError) as error:
            yield pictures.problem_html(error), status, *[gr.skip()] * 6

    def end(request: gr.Request):
        programs.stop(request.session_hash)

    ended = search.start.click(
        run,
        [task.model, task.editor, search.method, search.steps, search.rank_by],
        [task.message, search.status, search.curve, search.program, search.answers, walk.step, walk.plane, state],
        show_progress="hidden",
        concurrency_id="search",
        concurrency_limit=PARALLEL,
    )
    # Apart from the search, whose button would do nothing while the map is drawn.
    ended.then(programs.draw, state, walk.plane, trigger_mode="always_last", **LOOKS)
    search.stop.click(end, None, None, queue=False)


def connect_walk(programs: Programs, task, search, walk, state) -> None:
    def execute(kept: dict | None, event: gr.EventData):
        return programs.show_point(kept, float(event.x), float(event.y))

    shown = [task.message, search.program, state]
    # `input`, not `release`, which keys do not raise; while one is answered, only the newest waits.
    walk.step.input(kindly(2)(programs.show_step), [state, walk.step], shown, trigger_mode="always_last", **LOOKS)
    walk.plane.execute(kindly(2)(execute), state, shown, **LOOKS)
    between = kindly(2)(programs.show_between)
    walk.between.input(between, [state, walk.between], shown, trigger_mode="always_last", **LOOKS)
    for button, which in ((walk.keep_a, "a"), (walk.keep_b, "b")):
        keep = kindly(2)(functools.partial(programs.keep, which=which))
        button.click(keep, state, [task.message, search.status, state], **LOOKS)


def infill_tab(codes: dict[str, CodeInfillingPipeline]) -> None:
    gr.Markdown(f"Write `{HOLE}` where code is missing. What the model writes is shown and never run.")
    model = gr.Dropdown(list(codes), value=next(iter(codes)), label="Model", visible=len(codes) > 1)
    text = gr.Textbox(CODE, lines=10, max_lines=24, max_length=MAX_CHARACTERS, label="Code with holes", elem_id="code")
    tokens = gr.Slider(1, MAX_NEW_TOKENS, 32, step=1, label="Tokens for each hole, at most")
    fill = gr.Button("Fill the holes", variant="primary", elem_id="fill")
    message, result = gr.HTML(elem_id="infill-message"), gr.HTML(elem_id="infilled")
    handler = kindly(1)(lambda name, source, most: (infill_code(codes[name], source, most),))
    fill.click(handler, [model, text, tokens], [message, result], concurrency_id="infill", concurrency_limit=1)


def objective_tab(pipeline: CodeInfillingPipeline) -> None:
    gr.Markdown("One file as each objective trains on it.")
    name = gr.Radio(list(OBJECTIVES), value="span_corruption", label="Objective", elem_id="objective")
    text = gr.Textbox(SOURCE, lines=7, max_lines=20, max_length=MAX_CHARACTERS, label="File", elem_id="file")
    seed = gr.Slider(0, 99, 0, step=1, label="Seed")
    show = gr.Button("Show", variant="primary", elem_id="show")
    message, result = gr.HTML(elem_id="objective-message"), gr.HTML(elem_id="example")
    handler = kindly(1)(lambda kind, source, number: (objective_example(pipeline, kind, source, number),))
    for event in (show.click, name.change, seed.input):
        event(handler, [name, text, seed], [message, result], show_progress="hidden", trigger_mode="always_last")


def launch_settings() -> dict[str, Any]:
    """How the demo is served: nothing is fetched from elsewhere, uploads and bodies are limited."""
    font = ["system-ui", "sans-serif"]
    return {
        "theme": gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
        "css_paths": FOLDER / "style.css",
        "max_file_size": MAX_JSON,
        "app_kwargs": {"middleware": BodyLimit.middleware()},
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
    }


def serve(models: Sequence[str], host: str | None = None, port: int | None = None) -> None:
    """
    Loads models and serves the demo until it is interrupted.

    Raises:
        ValueError: there is no model, or one cannot be loaded.
        OSError: the port is taken.
    """
    pipelines = {Path(name).name: load_pipeline(name) for name in models}
    build_demo(pipelines).launch(server_name=host, server_port=port, **launch_settings())


__all__ = ["build_demo", "launch_settings", "serve"]
