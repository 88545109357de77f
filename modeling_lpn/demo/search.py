"""A latent search that can be watched step by step and stopped, on the public parts of the model."""

import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..lpn.modeling_lpn import LPNModel
from ..lpn.processing_lpn import LPNProcessor
from ..lpn.search_lpn import SEARCH_METHODS, SearchConfig, SearchOutput, rank_visited, search_latents


MAX_JSON = 2**20  # bytes of a task
MAX_STEPS = 300
MAX_SECONDS = 60.0
SAMPLES = 10  # between two looks at a search that takes no steps
WORKABLE = ("gradient", "random", "evolution")
RANKINGS = ("fit", "leave_one_out")


class SearchStopped(Exception):
    """Raised inside a search that is to end now."""


@dataclass
class SearchTrace:
    """
    What a search has visited so far.

    Args:
        steps (`list[torch.Tensor]`): latents `(candidates, latent_dim)` of each call of the decoder.
        values (`list[torch.Tensor]`): their log-likelihoods `(candidates,)`.
        prior_weight (`float`): pull towards the prior in the ranking.
        ended (`str`): why it ended: `"finished"`, `"stopped"`, `"time"`, or empty while it runs.
        seconds (`float`): it has taken, once it has ended.
        ranking ([`SearchOutput`], *optional*): of [`rank_by_leave_one_out`], instead of that by fit.
    """

    steps: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    prior_weight: float = 0.0
    ended: str = ""
    seconds: float = 0.0
    ranking: SearchOutput | None = None

    @property
    def num_evaluations(self) -> int:
        return sum(map(len, self.values)) if self.ranking is None else int(self.ranking.num_evaluations)

    def curve(self) -> list[tuple[int, float]]:
        """Evaluations spent and the best log-likelihood until then, after each call."""
        best, spent, points = -float("inf"), 0, []
        for values in self.values:
            spent += len(values)
            best = max(best, float(values.nan_to_num(-torch.inf, neginf=-torch.inf).max()))
            points.append((spent, best))
        return points

    def best_of_step(self, number: int) -> tuple[torch.Tensor, float]:
        """The better latent of a call and its log-likelihood."""
        place = int(self.values[number].nan_to_num(-torch.inf).argmax())
        return self.steps[number][place], float(self.values[number][place])

    def ranked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All latents `(1, visited, latent_dim)`, best first, and their scores `(1, visited)`."""
        if self.ranking is not None:
            return self.ranking.latents, self.ranking.log_probs
        latents, values = torch.cat(self.steps)[None, :, None], torch.cat(self.values)[None, :, None]
        scores = values - 0.5 * self.prior_weight * latents.square().sum(-1)
        found = rank_visited(latents, scores, torch.ones_like(scores, dtype=torch.bool))
        return found.latents, found.scores


def read_json_task(text: str, processor: LPNProcessor) -> dict[str, Any]:
    """
    A task from JSON that anybody may have written, checked against the limits of a model.

    Raises `ValueError`: more than 1 MiB, no JSON, no task, or one that the model cannot read.
    """
    if (size := len(text.encode())) > MAX_JSON:
        raise ValueError(f"The task has {size} bytes, more than {MAX_JSON}; give a smaller one.")
    try:
        task = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This is no JSON ({error}); give a task in ARC's JSON form.") from error
    processor.validate_task(task)
    return task


def search_settings(model: LPNModel, method: str, num_steps: int, rank_by: str = "fit") -> SearchConfig:
    """
    The settings saved with the model at another method, budget and ranking.

    Raises `ValueError` for another method or ranking, a budget beyond the limit, and a ranking that the other settings of
    the model do not allow.
    """
    if rank_by not in RANKINGS:
        raise ValueError(f"The ranking is {rank_by!r}; known here: {', '.join(RANKINGS)}.")
    if method not in WORKABLE:
        raise ValueError(f"The method is {method!r}; known here: {', '.join(WORKABLE)}.")
    if not 0 <= num_steps <= MAX_STEPS:
        raise ValueError(f"The budget is {num_steps}; this demo allows 0 to {MAX_STEPS}.")
    saved = SearchConfig.of(model.config.search)
    settings: dict[str, Any] = {"method": method, "rank_by": rank_by}
    spec = SEARCH_METHODS[method]
    settings |= {spec.budget: num_steps, "chunk_size": None if spec.follows_path else SAMPLES}
    return saved.override(**settings)


def watch_search(
    model: LPNModel, processor: LPNProcessor, task: dict, config: SearchConfig, stop: threading.Event, seed: int = 0
) -> Iterator[SearchTrace]:
    """
    Searches in a thread and yields what was visited until now whenever there is more, at last the whole. Ranking by
    leave-one-out compares whole searches and cannot be watched: see [`rank_by_leave_one_out`].

    Args:
        model, processor, task: as for [`ProgramInductionPipeline`].
        config ([`SearchConfig`]): settings; what is watched ranks by fit.
        stop (`threading.Event`): ends the search after its current step; what was visited is kept. It is set at the end.
        seed (`int`): seed of the samples.

    Yields:
        [`SearchTrace`]: the same object each time, fuller.
    """
    inputs = processor(task).to(model.device)
    demonstrations = {name: value for name, value in inputs.items() if not name.startswith("query")}
    latents, config = model.encode(**demonstrations).latents.detach(), config.override(rank_by="fit")
    trace, news = SearchTrace(prior_weight=config.prior_weight), queue.SimpleQueue[None]()
    errors: list[BaseException] = []
    start = time.monotonic()
    deadline = start + MAX_SECONDS

    def log_prob(candidates: torch.Tensor) -> torch.Tensor:
        if trace.steps and (stop.is_set() or time.monotonic() > deadline):
            trace.ended = "stopped" if stop.is_set() else "time"
            raise SearchStopped
        values = model.log_prob(candidates, **demonstrations)
        trace.steps.append(candidates[0].detach())
        trace.values.append(values[0].detach().float())
        news.put(None)
        return values

    def work() -> None:
        generator = torch.Generator(model.device).manual_seed(seed)
        try:
            search_latents(log_prob, latents, demonstrations["pair_mask"], config, generator)
            trace.ended = "finished"
        except SearchStopped:
            pass
        except BaseException as error:  # raised again in the thread that waits
            errors.append(error)
            trace.ended = "failed"
        trace.seconds = time.monotonic() - start
        news.put(None)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while not trace.ended:
            news.get()
            while not news.empty():  # only the newest is shown
                news.get()
            if not trace.ended:
                yield trace
        worker.join()
        if errors:
            raise errors[0]
        yield trace
    finally:
        stop.set()


def rank_by_leave_one_out(
    model: LPNModel, processor: LPNProcessor, task: dict, config: SearchConfig, trace: SearchTrace, seed: int = 0
) -> None:
    """
    Ranks what a finished search has visited by how well searches without one pair explain that pair, in `trace.ranking`.

    Args:
        config ([`SearchConfig`]): settings of the search that was watched, with `rank_by="leave_one_out"`.
        trace ([`SearchTrace`]): of [`watch_search`] with the same task, settings and seed.

    Raises `ValueError` where the searches that this takes, one for each pair and one more, would exceed the time limit.
    """
    inputs = processor(task).to(model.device)
    demonstrations = {name: value for name, value in inputs.items() if not name.startswith("query")}
    expected = trace.seconds * (1 + len(task["train"]))
    if expected > MAX_SECONDS:
        raise ValueError(
            f"Ranking by leave-one-out would take about {expected:.0f} s, this demo allows {MAX_SECONDS:.0f}; give fewer "
            "steps, or rank by fit."
        )
    generator = torch.Generator(model.device).manual_seed(seed)
    trace.ranking = model.search(**demonstrations, search_config=config, generator=generator)


@torch.no_grad()
def execute_program(model: LPNModel, processor: LPNProcessor, task: dict, latents, scores=None, candidates: int = 1):
    """
    Runs latent programs on the test inputs of a task.

    Args:
        latents (`torch.Tensor` of shape `(1, ranked, latent_dim)`): best first.
        scores (`torch.Tensor` of shape `(1, ranked)`, *optional*): those at `-inf` are left aside.
        candidates (`int`): grids for each test input.

    Returns:
        `list[list[grid]]`: for each test input the grids.
    """
    inputs = processor(task).to(model.device)
    query = {name: value for name, value in inputs.items() if name.startswith("query")}
    output = model.execute(latents, **query, num_candidates=candidates, log_probs=scores)
    return processor.post_process(output, query["query_mask"])[0]


@torch.no_grad()
def latent_map(model: LPNModel, processor: LPNProcessor, task: dict, half: float, resolution: int = 41) -> list:
    """
    Log-likelihoods of a task over the square from `-half` to `half` of a 2-dimensional latent space.

    Returns:
        `list[list[float]]`: rows from the bottom (second coordinate `-half`) to the top, `resolution` each.
    """
    inputs = processor(task).to(model.device)
    demonstrations = {name: value for name, value in inputs.items() if not name.startswith("query")}
    line = torch.linspace(-half, half, resolution, device=model.device)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 2)
    parts = [model.log_prob(part.unsqueeze(0), **demonstrations)[0] for part in points.split(resolution)]
    return torch.stack(parts).nan_to_num(-100.0, neginf=-100.0).tolist()


__all__ = [
    "MAX_JSON",
    "MAX_STEPS",
    "RANKINGS",
    "SearchTrace",
    "execute_program",
    "latent_map",
    "rank_by_leave_one_out",
    "read_json_task",
    "search_settings",
    "watch_search",
]
