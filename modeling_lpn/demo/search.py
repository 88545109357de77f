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
from ..lpn.search_lpn import SearchConfig, rank_visited, search_latents


MAX_JSON = 2**20  # bytes of a task
MAX_STEPS = 300
MAX_SECONDS = 60.0
RANDOM_CHUNK = 10  # samples between two looks at a random search
WORKABLE = ("gradient", "random")


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
    """

    steps: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    prior_weight: float = 0.0
    ended: str = ""

    @property
    def num_evaluations(self) -> int:
        return sum(map(len, self.values))

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


def search_settings(model: LPNModel, method: str, num_steps: int) -> SearchConfig:
    """
    The settings saved with the model at another method and budget. Ranking by leave-one-out, which compares whole
    searches, cannot be watched and becomes ranking by fit.

    Raises `ValueError` for another method and a budget beyond the limit.
    """
    if method not in WORKABLE:
        raise ValueError(f"The method is {method!r}; known here: {', '.join(WORKABLE)}.")
    if not 0 <= num_steps <= MAX_STEPS:
        raise ValueError(f"The budget is {num_steps}; this demo allows 0 to {MAX_STEPS}.")
    saved = SearchConfig.of(model.config.search)
    if saved.rank_by != "fit":
        saved = saved.override(rank_by="fit")
    settings: dict[str, Any] = {"method": method, "num_samples" if method == "random" else "num_steps": num_steps}
    return saved.override(**settings, chunk_size=RANDOM_CHUNK if method == "random" else None)


def watch_search(
    model: LPNModel, processor: LPNProcessor, task: dict, config: SearchConfig, stop: threading.Event, seed: int = 0
) -> Iterator[SearchTrace]:
    """
    Searches in a thread and yields what was visited until now whenever there is more, at last the whole.

    Args:
        model, processor, task: as for [`ProgramInductionPipeline`].
        config ([`SearchConfig`]): settings that rank by fit.
        stop (`threading.Event`): ends the search after its current step; what was visited is kept. It is set at the end.
        seed (`int`): seed of the samples.

    Yields:
        [`SearchTrace`]: the same object each time, fuller.
    """
    inputs = processor(task).to(model.device)
    demonstrations = {name: value for name, value in inputs.items() if not name.startswith("query")}
    latents = model.encode(**demonstrations).latents.detach()
    trace, news = SearchTrace(prior_weight=config.prior_weight), queue.SimpleQueue[None]()
    errors: list[BaseException] = []
    deadline = time.monotonic() + MAX_SECONDS

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
    "SearchTrace",
    "execute_program",
    "latent_map",
    "read_json_task",
    "search_settings",
    "watch_search",
]
