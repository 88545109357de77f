"""Search in a latent space for the latent program that explains a task best (arXiv 2411.08706, section 4.2).

Nothing here knows of grids. A search method sees `log_prob`, which maps latents `(batch, candidates, latent_dim)` to
log-likelihoods `(batch, candidates)`, the latents to start from, its settings and a source of noise.
To add a method, write such a function and put it into `SEARCH_METHODS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


LogProb = Callable[[torch.Tensor], torch.Tensor]

STARTS = ("mean", "pairs", "mean+pairs")
OPTIMIZERS = ("adam", "sgd")
LR_SCHEDULES = ("constant", "cosine")
CLIPS = ("task", "batch", "none")
INITS = ("encoder", "prior")


@dataclass
class SearchConfig:
    r"""
    Settings of a latent search. The only notion of cost is the *decoder evaluation*: all demonstration pairs of a task
    decoded once, teacher-forced, with one latent (with or without its gradient).

    Args:
        method (`str`, defaults to `"gradient"`): A key of `SEARCH_METHODS`: `"mean"`, `"first"`, `"all"`, `"random"` or
            `"gradient"`.
        num_steps (`int`, defaults to 100): Gradient steps from every start.
        num_samples (`int`, defaults to 0):
            Random candidates `start + std * noise`: all that `"random"` tries beside the starts; further starts for
            `"gradient"` (always around the mean there).
        std (`float`, defaults to 1.0): Standard deviation of those samples.
        lr (`float`, defaults to 0.1): Step size of the gradient ascent.
        optimizer (`str`, defaults to `"adam"`):
            `"adam"` or `"sgd"`. Adam adds 1e-8 both inside the square root and outside, as the published code does.
        beta1, beta2 (`float`, default to 0.9): Decay rates of Adam (the paper's configurations use 0.9 for both).
        momentum (`float`, defaults to 0.0): Momentum of SGD.
        lr_schedule (`str`, defaults to `"constant"`):
            `"constant"`, or `"cosine"`: `lr * (0.5 * (1 + cos(pi * step / num_steps))) ** lr_schedule_exponent`.
        lr_schedule_exponent (`float`, defaults to 0.5): See `lr_schedule`.
        clip (`str`, defaults to `"task"`):
            Over what the gradient norm is limited to `max_grad_norm`: `"task"` (all starts of one task together),
            `"batch"` (the published code: a task's search then depends on what shares its batch), or `"none"`.
        max_grad_norm (`float`, defaults to 1.0): See `clip`.
        starts (`str`, defaults to `"mean"`):
            Where the search begins: the `"mean"` of the pairs' latents, every one of the `"pairs"`, or `"mean+pairs"`.
        init (`str`, defaults to `"encoder"`):
            Whether the pairs' latents come from the `"encoder"` or, as noise, from the `"prior"` N(0, I).
        second_order (`bool`, defaults to `False`):
            Whether the gradient of the result flows through the search steps (training only). If not, it flows to the
            start as if the search had added a constant.
        max_evaluations (`int`, *optional*): Hard limit on decoder evaluations of one task; lowers steps or samples.
        chunk_size (`int`, *optional*): Candidates decoded at a time, to bound memory; results stay the same.

    Raises `ValueError` for unknown names and values out of range.

    Example:

    ```python
    >>> from modeling_lpn import SearchConfig
    >>> SearchConfig(method="gradient", num_steps=20).max_evaluations is None
    True

    ```
    """

    method: str = "gradient"
    num_steps: int = 100
    num_samples: int = 0
    std: float = 1.0
    lr: float = 0.1
    optimizer: str = "adam"
    beta1: float = 0.9
    beta2: float = 0.9
    momentum: float = 0.0
    lr_schedule: str = "constant"
    lr_schedule_exponent: float = 0.5
    clip: str = "task"
    max_grad_norm: float = 1.0
    starts: str = "mean"
    init: str = "encoder"
    second_order: bool = False
    max_evaluations: int | None = None
    chunk_size: int | None = None

    def __post_init__(self):
        choices = {
            "method": tuple(SEARCH_METHODS),
            "optimizer": OPTIMIZERS,
            "lr_schedule": LR_SCHEDULES,
            "clip": CLIPS,
            "starts": STARTS,
            "init": INITS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"search setting `{name}` is {getattr(self, name)!r}; known: {', '.join(known)}.")
        for name, least in (("num_steps", 0), ("num_samples", 0), ("max_evaluations", 1), ("chunk_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"search setting `{name}` is {value}; use {least} or more.")
        for name in ("std", "lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"search setting `{name}` is {getattr(self, name)}; use a positive number.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"search setting `{name}` is {getattr(self, name)}; use a number in [0, 1).")


@dataclass
class SearchOutput(ModelOutput):
    r"""
    Result of a latent search. Latents are ranked best first; ties keep the order of the search (start by start, step by
    step), and a non-finite log-likelihood ranks last.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, ranked, latent_dim)`): All visited latents, best first.
        log_probs (`torch.FloatTensor` of shape `(batch, ranked)`): Their log-likelihoods; `-inf` where not finite.
        trajectory_latents (`torch.FloatTensor` of shape `(batch, starts, steps + 1, latent_dim)`): In search order.
        trajectory_log_probs (`torch.FloatTensor` of shape `(batch, starts, steps + 1)`):
            As evaluated, not-finite values included; `nan` for starts that a task does not have.
        num_evaluations (`torch.LongTensor` of shape `(batch,)`): Decoder evaluations spent on each task.
        num_nonfinite (`torch.LongTensor` of shape `(batch,)`): How many of them gave `nan` or an infinity.
    """

    latents: torch.FloatTensor | None = None
    log_probs: torch.FloatTensor | None = None
    trajectory_latents: torch.FloatTensor | None = None
    trajectory_log_probs: torch.FloatTensor | None = None
    num_evaluations: torch.LongTensor | None = None
    num_nonfinite: torch.LongTensor | None = None


def masked_mean(latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real pairs: latents `(..., pairs, latent_dim)`, mask `(..., pairs)` -> `(..., latent_dim)`."""
    weights = mask.to(latents.dtype).unsqueeze(-1)
    return (latents * weights).sum(-2) / weights.sum(-2).clamp(min=1)


def start_latents(latents: torch.Tensor, pair_mask: torch.Tensor, config: SearchConfig):
    """
    The latents a search begins with.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): One latent for each demonstration pair.
        pair_mask (`torch.BoolTensor` of shape `(batch, pairs)`): Which pairs are real.
        config ([`SearchConfig`]): `method` and `starts` decide.

    Returns:
        `tuple`: starts `(batch, starts, latent_dim)` and which of them are real `(batch, starts)`.
    """
    mean = masked_mean(latents, pair_mask).unsqueeze(-2)
    if config.method == "first":
        first = pair_mask.int().argmax(-1)[:, None, None].expand(-1, 1, latents.shape[-1])
        return latents.gather(1, first), pair_mask.any(-1, keepdim=True)
    if config.method == "mean" or config.starts == "mean":
        return mean, torch.ones_like(pair_mask[:, :1])
    # A start of a pair that does not exist is computed like the others (its place in the batch costs the same) and
    # never counted, averaged or chosen; the mean keeps it finite.
    pairs = torch.where(pair_mask.unsqueeze(-1), latents, mean)
    if config.starts == "pairs" or config.method == "all":
        return pairs, pair_mask
    return torch.cat([mean, pairs], 1), torch.cat([torch.ones_like(pair_mask[:, :1]), pair_mask], 1)


def _draw_noise(starts: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
    """
    Standard normal noise `(1, num_samples, latent_dim)`: every task of the batch gets the same draws, so that its
    result depends on the generator alone and not on its place in the batch.
    """
    device = generator.device if generator is not None else starts.device
    return torch.randn(1, num_samples, starts.shape[-1], generator=generator, device=device).to(starts)


def _evaluate(log_prob: LogProb, latents: torch.Tensor, chunk_size: int | None) -> torch.Tensor:
    """log_prob of `(batch, candidates, latent_dim)`, a few candidates at a time if asked."""
    if chunk_size is None:
        return log_prob(latents).float()
    width = max(1, chunk_size // latents.shape[0])
    return torch.cat([log_prob(part).float() for part in latents.split(width, 1)], 1)


def _value_and_grad(log_prob: LogProb, latents: torch.Tensor, config: SearchConfig):
    """Log-likelihoods `(batch, candidates)` and their gradients with respect to the latents."""
    width = latents.shape[1] if config.chunk_size is None else max(1, config.chunk_size // latents.shape[0])
    values, grads = [], []
    for part in latents.split(width, 1):
        if not (config.second_order and part.requires_grad):
            part = part.detach().requires_grad_()
        value = log_prob(part).float()
        (grad,) = torch.autograd.grad(value.sum(), part, create_graph=config.second_order)
        values.append(value)
        grads.append(grad)
    return torch.cat(values, 1), torch.cat(grads, 1)


def _clip(grads: torch.Tensor, start_mask: torch.Tensor, config: SearchConfig) -> torch.Tensor:
    """Limits the norm of the gradients `(batch, starts, latent_dim)` over a task or the batch."""
    # A start whose log-likelihood is not finite stays where it is instead of spoiling what is clipped with it.
    grads = torch.where((start_mask.unsqueeze(-1) & grads.isfinite().all(-1, keepdim=True)), grads, 0.0)
    if config.clip == "none":
        return grads
    dims = (-2, -1) if config.clip == "task" else tuple(range(grads.dim()))
    square = grads.square().sum(dims, keepdim=True)
    norm = torch.where(square > 0, square, 1.0).sqrt()  # the square root has no derivative at 0
    return torch.where(norm < config.max_grad_norm, grads, grads / norm * config.max_grad_norm)


class _Ascent:
    """Updates of latents, one optimiser step a call. Adam has its epsilon inside and outside the root, as in optax."""

    def __init__(self, config: SearchConfig, num_steps: torch.Tensor):
        self.config, self.num_steps, self.step = config, num_steps.clamp(min=1)[:, None, None], 0
        self.first_moment = self.second_moment = 0.0

    def __call__(self, grads: torch.Tensor) -> torch.Tensor:
        config, lr = self.config, self.config.lr
        if config.lr_schedule == "cosine":
            progress = (self.step / self.num_steps).clamp(max=1)
            lr = lr * (0.5 * (1 + torch.cos(math.pi * progress))) ** config.lr_schedule_exponent
        self.step += 1
        if config.optimizer == "sgd":
            self.first_moment = grads + config.momentum * self.first_moment
            return lr * self.first_moment
        self.first_moment = config.beta1 * self.first_moment + (1 - config.beta1) * grads
        self.second_moment = config.beta2 * self.second_moment + (1 - config.beta2) * grads.square()
        mean = self.first_moment / (1 - config.beta1**self.step)
        variance = self.second_moment / (1 - config.beta2**self.step)
        return lr * mean / ((variance + 1e-8).sqrt() + 1e-8)


def _rank(latents: torch.Tensor, log_probs: torch.Tensor, counted: torch.Tensor) -> SearchOutput:
    """
    Sorts what was visited: latents `(batch, starts, steps + 1, latent_dim)`, log_probs and counted (which of them the
    task really has) `(batch, starts, steps + 1)`.
    """
    finite = log_probs.isfinite()
    scores = torch.where(counted & finite, log_probs, -torch.inf).flatten(1)
    ranked_scores, order = scores.sort(dim=1, descending=True, stable=True)
    ranked = latents.flatten(1, 2).gather(1, order.unsqueeze(-1).expand(-1, -1, latents.shape[-1]))
    return SearchOutput(
        latents=ranked,
        log_probs=ranked_scores,
        trajectory_latents=latents,
        trajectory_log_probs=torch.where(counted, log_probs, torch.nan),
        num_evaluations=counted.flatten(1).sum(1),
        num_nonfinite=(counted & ~finite).flatten(1).sum(1),
    )


def starts_only(log_prob, starts, start_mask, config, noise) -> SearchOutput:
    """No search: scores the start latents themselves (`"mean"`, `"first"`, and `"all"`, which ranks every pair's latent)."""
    with torch.no_grad():
        log_probs = _evaluate(log_prob, starts, config.chunk_size)
    return _rank(starts.unsqueeze(2), log_probs.unsqueeze(2), start_mask.unsqueeze(2))


def random_search(log_prob, starts, start_mask, config, noise) -> SearchOutput:
    """
    Scores the starts and `num_samples` random neighbours of them (paper, section 4.2, random search). Samples are dealt
    to the real starts in equal blocks; the last block may be shorter.
    """
    num_starts = start_mask.sum(1, keepdim=True)
    num_samples = _affordable(num_starts, noise.shape[1], config)
    samples = torch.arange(noise.shape[1], device=starts.device).unsqueeze(0)
    sampled = samples < num_samples
    per_start = ((num_samples + num_starts - 1) // num_starts).clamp(min=1)
    real_first = (~start_mask).long().argsort(dim=1, stable=True)  # the k-th real start need not be the k-th start
    origin = real_first.gather(1, torch.where(sampled, samples // per_start, 0))
    moved = starts.gather(1, origin.unsqueeze(-1).expand(-1, -1, starts.shape[-1])) + config.std * noise
    candidates = torch.cat([starts, moved], 1)
    with torch.no_grad():
        log_probs = _evaluate(log_prob, candidates, config.chunk_size)
    counted = torch.cat([start_mask, sampled], 1)
    return _rank(candidates.unsqueeze(2), log_probs.unsqueeze(2), counted.unsqueeze(2))


def gradient_search(log_prob, starts, start_mask, config, noise) -> SearchOutput:
    """
    Gradient ascent on the log-likelihood from every start (paper, algorithm 2). The best of *all* visited latents is
    returned, the starts included. Samples, if any, are further starts around the mean of the real ones.
    """
    if noise.shape[1]:
        sampled = torch.arange(noise.shape[1], device=starts.device) < _affordable(
            start_mask.sum(1, keepdim=True), noise.shape[1], config
        )
        mean = starts[:, :1] if config.starts != "pairs" else masked_mean(starts, start_mask).unsqueeze(1)
        starts = torch.cat([starts, mean + config.std * noise], 1)
        start_mask = torch.cat([start_mask, sampled], 1)
    num_steps = torch.full_like(start_mask[:, 0], config.num_steps, dtype=torch.long)
    if config.max_evaluations is not None:
        num_steps = num_steps.clamp(max=config.max_evaluations // start_mask.sum(1) - 1)
    ascent, latents = _Ascent(config, num_steps), starts if config.second_order else starts.detach()
    visited, log_probs = [latents], []
    with torch.enable_grad():
        for _ in range(int(num_steps.max())):
            value, grads = _value_and_grad(log_prob, latents, config)
            latents = latents + ascent(_clip(grads, start_mask, config))
            visited.append(latents)
            log_probs.append(value.detach())
    with torch.no_grad():
        log_probs.append(_evaluate(log_prob, latents, config.chunk_size))
    visited = torch.stack(visited, 2)
    if starts.requires_grad and not config.second_order:
        visited = starts.unsqueeze(2) + (visited - starts.detach().unsqueeze(2))
    in_budget = torch.arange(visited.shape[2], device=starts.device) <= num_steps[:, None, None]
    return _rank(visited, torch.stack(log_probs, 2), start_mask.unsqueeze(-1) & in_budget)


def _affordable(num_starts: torch.Tensor, num_samples: int, config: SearchConfig) -> torch.Tensor:
    """How many samples each task can pay beside its starts `(batch, 1)`."""
    limit = num_samples if config.max_evaluations is None else config.max_evaluations - num_starts
    return torch.full_like(num_starts, num_samples).clamp(max=limit)


SEARCH_METHODS = {
    "mean": starts_only,
    "first": starts_only,
    "all": starts_only,
    "random": random_search,
    "gradient": gradient_search,
}


def search_latents(
    log_prob: LogProb,
    latents: torch.Tensor,
    pair_mask: torch.Tensor,
    config: SearchConfig,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
) -> SearchOutput:
    """
    Runs the search method that `config` names.

    Args:
        log_prob (`Callable`): Maps latents `(batch, candidates, latent_dim)` to log-likelihoods `(batch, candidates)`.
        latents (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): Encoded demonstration pairs.
        pair_mask (`torch.BoolTensor` of shape `(batch, pairs)`): Which pairs are real.
        config ([`SearchConfig`]): Method and settings.
        generator (`torch.Generator`, *optional*): Source of the samples' noise, the same for every task of the batch.
        noise (`torch.FloatTensor` of shape `(batch or 1, num_samples, latent_dim)`, *optional*):
            Given instead of drawn, for instance to draw it for each task of a training batch.

    Returns:
        [`SearchOutput`]

    Raises `ValueError` if `max_evaluations` does not even pay for the starts.
    """
    starts, start_mask = start_latents(latents, pair_mask, config)
    num_samples = config.num_samples if config.method in ("random", "gradient") else 0
    if config.max_evaluations is not None:
        most_starts = int(start_mask.sum(1).max())
        if most_starts > config.max_evaluations:
            raise ValueError(
                f"search setting `max_evaluations` is {config.max_evaluations}, but there are {most_starts} latents to "
                f"start from (`starts` is {config.starts!r}) and each costs one evaluation; raise it to {most_starts} "
                "or start from fewer."
            )
        num_samples = min(num_samples, config.max_evaluations - 1)
    if noise is None:
        noise = _draw_noise(starts, num_samples, generator)
    return SEARCH_METHODS[config.method](log_prob, starts, start_mask, config, noise[:, :num_samples])


def concatenate_searches(outputs: list[SearchOutput]) -> SearchOutput:
    """Results of parts of a batch as one; shorter ones are filled up at the end with what was never visited."""

    def join(name):
        tensors = [output[name] for output in outputs]
        sizes = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors))]
        fill = {"log_probs": -torch.inf, "trajectory_log_probs": torch.nan}.get(name, 0)
        joined = tensors[0].new_full((sum(map(len, tensors)), *sizes), fill)
        for part, tensor in zip(joined.split([len(tensor) for tensor in tensors]), tensors):
            part[tuple(slice(length) for length in tensor.shape)] = tensor
        return joined

    return SearchOutput(**{name: join(name) for name in outputs[0]})


__all__ = [
    "SEARCH_METHODS",
    "SearchConfig",
    "SearchOutput",
    "concatenate_searches",
    "search_latents",
    "start_latents",
]
