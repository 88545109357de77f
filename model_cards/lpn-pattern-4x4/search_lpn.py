# Copyright 2026 The modeling_lpn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Search in a latent space for the latent program that explains a task best (arXiv 2411.08706, section 4.2).

Nothing here knows of grids. A search method sees a [`SearchProblem`]: `log_prob`, which maps latents
`(batch, candidates, latent_dim)` to log-likelihoods `(batch, candidates)`, the latents to start from, noise and a limit.
To add a method, write such a function and its line in `SEARCH_METHODS`, which says what it reads of [`SearchConfig`].
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from transformers.utils import ModelOutput


LogProb = Callable[[torch.Tensor], torch.Tensor]

# What may be chosen, and the settings that only this choice reads.
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {"adam": ("beta1", "beta2"), "sgd": ("momentum",)},
    "lr_schedule": {"constant": (), "cosine": ("lr_schedule_exponent",)},
    "clip": {"task": ("max_grad_norm",), "batch": ("max_grad_norm",), "none": ()},
    "starts": {"mean": (), "pairs": (), "mean+pairs": ()},
    "init": {"encoder": (), "prior": ()},
    "rank_by": {"fit": (), "leave_one_out": ()},
}
LEAST = {"num_steps": 0, "num_samples": 0, "population_size": 2, "max_evaluations": 1, "chunk_size": 1}
POSITIVE = ("std", "lr", "max_grad_norm", "lr_schedule_exponent")
NOT_NEGATIVE = ("prior_weight",)
BELOW_ONE = ("beta1", "beta2", "momentum")
KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a finite number"),
    bool: ((bool,), "True or False"),
    str: ((str,), "a name"),
}


@dataclass
class SearchConfig:
    r"""
    Settings of a latent search. The only notion of cost is the *decoder evaluation*: all demonstration pairs of a task
    decoded once, teacher-forced, with one latent (with or without its gradient).

    A setting that is given although the method does not read it is refused. `LPNConfig.search` keeps such settings with
    a model; a keyword of `model.generate` or `model.search` overrides one of them.

    Args:
        method (`str`, defaults to `"gradient"`): A key of `SEARCH_METHODS`: `"mean"`, `"first"`, `"all"`, `"random"`,
            `"evolution"` or `"gradient"`.
        num_steps (`int`, defaults to 100): Gradient steps from every start.
        num_samples (`int`, defaults to 100 for `"random"` and `"evolution"` and 0 for `"gradient"`):
            Random candidates: all that `"random"` and `"evolution"` try beside the starts; further starts for `"gradient"`
            (always around the mean there).
        std (`float`, defaults to 1.0): Standard deviation of those samples around a start, of `"evolution"` at first.
        population_size (`int`, defaults to 16): Samples of one generation of `"evolution"`, which moves between generations:
            with fewer `num_samples` than that it is a random search.
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
        prior_weight (`float`, defaults to 0.0):
            Pull towards the prior N(0, I): the search maximises, and ranks by, the log-likelihood of the demonstrations
            minus `prior_weight / 2 * |latent| ** 2` (with 1 the posterior; the constant of the log-prior is left out).
        rank_by (`str`, defaults to `"fit"`):
            What decides among the visited latents. `"fit"`: what the search maximised, on all pairs. `"leave_one_out"`:
            how well the same search generalises when it has come as far. For each of the `n` real pairs of a task the
            search is repeated with the other pairs only (their latents, their log-likelihood, the same noise), and every
            latent on its way is scored by the log-likelihood of the pair left out. A latent that the search on all pairs
            visited ranks by the mean of these scores at the same place of the `n` repetitions (same sample, same step),
            which is cross-validated stopping. It needs `starts="mean"`, so that places correspond, and costs `n` further
            decoder evaluations for each visited latent (`n - 1` pairs fitted and one scored, `n` times); they count in
            `num_evaluations` and against `max_evaluations`. A task with one pair, or without budget for `n + 1`
            evaluations, ranks by fit.
        max_evaluations (`int`, *optional*):
            Hard limit on decoder evaluations of one task; lowers steps or samples. A task with more starts than that
            takes the first of them, the mean before the pairs.
        chunk_size (`int`, *optional*):
            Candidates decoded at a time, to bound memory; results stay the same. By default all of them, on a CPU some
            thousand tokens.

    Raises `ValueError` for unknown names, values of the wrong type or out of range, and settings that would have no
    effect; `TypeError` for a misspelt setting.

    Example:

    ```python
    >>> from modeling_lpn import SearchConfig
    >>> SearchConfig(method="gradient", num_steps=20).max_evaluations is None
    True
    >>> SearchConfig(lr=0.3).override(num_steps=5).to_dict()
    {'num_steps': 5, 'lr': 0.3}

    ```
    """

    method: str = "gradient"
    num_steps: int = 100
    num_samples: int = 0
    std: float = 1.0
    population_size: int = 16
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
    prior_weight: float = 0.0
    rank_by: str = "fit"
    max_evaluations: int | None = None
    chunk_size: int | None = None

    def __new__(cls, *args: Any, **settings: Any) -> "SearchConfig":
        """Notes what was given before the defaults fill the rest; see [`~SearchConfig.to_dict`]."""
        names = [setting.name for setting in fields(cls)]
        _check_names(settings, names)
        config = super().__new__(cls)
        is_copy = len(settings) == len(names)  # every field by name: `dataclasses.replace`
        config.__dict__.update(_given={*names[: len(args)], *settings}, _is_copy=is_copy)
        return config

    def __post_init__(self) -> None:
        for setting in fields(self):
            self._check_value(setting.name, setting.type)
        given: set[str] = self.__dict__["_given"]
        for name, value in self.spec.defaults.items():
            if name not in given:
                setattr(self, name, value)
        if self.__dict__["_is_copy"]:
            given.intersection_update(name for name in given.copy() if getattr(self, name) != self._default_of(name))
        for name in sorted(given):
            self._check_read(name)
        if self.rank_by == "leave_one_out" and self.starts != "mean":
            raise ValueError(
                f"search setting `rank_by` is 'leave_one_out' and `starts` is {self.starts!r}: without one pair there are "
                "other starts to compare; set `starts` to 'mean' or `rank_by` to 'fit'."
            )

    def _default_of(self, name: str) -> Any:
        return self.spec.defaults.get(name, type(self).__dataclass_fields__[name].default)

    def _check_value(self, name: str, annotation: Any) -> None:
        value: Any = getattr(self, name)
        kind = annotation
        if annotation == int | None:
            if value is None:
                return
            kind = int
        wrong = f"search setting `{name}` is {value!r}; "
        types, words = KINDS[kind]
        fits = isinstance(value, types) and (kind is bool or not isinstance(value, bool))
        if not fits:
            raise ValueError(f"{wrong}use {words}.")
        known = SEARCH_METHODS if name == "method" else CHOICES.get(name)
        if known is not None and value not in known:
            raise ValueError(f"{wrong}known: {', '.join(known)}.")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{wrong}use {words}.")
        if name in LEAST and value < LEAST[name]:
            raise ValueError(f"{wrong}use {LEAST[name]} or more.")
        if name in POSITIVE and not value > 0:
            raise ValueError(f"{wrong}use a positive number.")
        if name in NOT_NEGATIVE and value < 0:
            raise ValueError(f"{wrong}use 0 or more.")
        if name in BELOW_ONE and not 0 <= value < 1:
            raise ValueError(f"{wrong}use a number in [0, 1).")

    def _check_read(self, name: str) -> None:
        wrong = f"search setting `{name}` is {getattr(self, name)!r}, but "
        if not self.spec.is_read(name):
            reads = ", ".join(sorted(self.spec.reads))
            raise ValueError(f"{wrong}method {self.method!r} does not read it; leave it out (read: {reads}).")
        for choice, options in CHOICES.items():
            readers = [option for option, names in options.items() if name in names]
            if readers and getattr(self, choice) not in readers:
                raise ValueError(
                    f"{wrong}`{choice}` {getattr(self, choice)!r} does not read it; leave it out, or set `{choice}` to "
                    f"{' or '.join(map(repr, readers))}."
                )

    @property
    def spec(self) -> "SearchMethod":
        """The line of `SEARCH_METHODS` that `method` names."""
        return SEARCH_METHODS[self.method]

    @property
    def budget(self) -> int:
        """Steps or samples, whichever the method counts; 0 for a method that costs what it costs."""
        return 0 if self.spec.budget is None else getattr(self, self.spec.budget)

    def at_budget(self, budget: int) -> "SearchConfig":
        """These settings with another number of steps or samples; themselves where the method knows no budget."""
        return self if self.spec.budget is None else self.override(**{self.spec.budget: budget})

    def to_dict(self) -> dict[str, Any]:
        """The settings that were given, for `LPNConfig.search` and JSON; `SearchConfig(**settings)` reads them."""
        given = self.__dict__["_given"]
        return {s.name: getattr(self, s.name) for s in fields(self) if s.name in given}

    def override(self, **settings: Any) -> "SearchConfig":
        """
        These settings with some replaced. What the settings of this call make meaningless is left out: with
        `method="mean"` the learning rate, for instance.

        Raises `TypeError` and `ValueError` as the constructor does.
        """
        if not settings:
            return self
        names = [setting.name for setting in fields(self)]
        _check_names(settings, names)
        kept = self.to_dict()
        method = SEARCH_METHODS.get(settings.get("method", self.method), self.spec)
        for name in [name for name in kept if not method.is_read(name)]:
            kept.pop(name)
        for choice in settings.keys() & CHOICES.keys():
            options = CHOICES[choice]
            for name in {name for names in options.values() for name in names} - {*options.get(settings[choice], ())}:
                kept.pop(name, None)
        return SearchConfig(**{**kept, **settings})

    @classmethod
    def of(cls, settings: "SearchConfig | Mapping[str, Any] | None") -> "SearchConfig":
        """
        A `SearchConfig` of one, of a dict of settings, or of nothing (the defaults).

        Raises `TypeError` for anything else.
        """
        if isinstance(settings, cls):
            return settings
        if type(settings).__name__ == cls.__name__ and hasattr(settings, "to_dict"):
            settings = settings.to_dict()  # of another copy of this file: a model that brings its own code
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(
                f"`search_config` is {settings!r}, a {type(settings).__name__}; give a `SearchConfig` or a dict of its "
                "settings."
            )
        return cls(**(settings or {}))


def _check_names(settings: Mapping[str, Any], names: list[str]) -> None:
    for name in settings:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
            cure = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names)}."
            raise TypeError(f"`{name}` is no search setting; {cure}")


@dataclass
class SearchOutput(ModelOutput):
    r"""
    Result of a latent search. Latents are ranked best first by their score; ties keep the order of the search (start by
    start, step by step), and what is not finite ranks last. The score is the log-likelihood unless
    `SearchConfig.prior_weight` or `rank_by` say otherwise.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, ranked, latent_dim)`): All visited latents, best first.
        log_probs (`torch.FloatTensor` of shape `(batch, ranked)`): Their log-likelihoods; `-inf` where not finite.
        scores (`torch.FloatTensor` of shape `(batch, ranked)`): What they are ranked by; `-inf` where not finite.
        trajectory_latents (`torch.FloatTensor` of shape `(batch, starts, steps + 1, latent_dim)`): In search order.
        trajectory_log_probs (`torch.FloatTensor` of shape `(batch, starts, steps + 1)`):
            As evaluated, not-finite values included; `nan` for starts that a task does not have.
        trajectory_scores (`torch.FloatTensor` of shape `(batch, starts, steps + 1)`): The same of the scores.
        num_evaluations (`torch.LongTensor` of shape `(batch,)`): Decoder evaluations spent on each task.
        num_nonfinite (`torch.LongTensor` of shape `(batch,)`): How many of them gave `nan` or an infinity.
    """

    latents: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    trajectory_latents: torch.Tensor | None = None
    trajectory_log_probs: torch.Tensor | None = None
    trajectory_scores: torch.Tensor | None = None
    num_evaluations: torch.Tensor | None = None
    num_nonfinite: torch.Tensor | None = None


class SearchProblem(NamedTuple):
    """
    What a search method is given.

    Args:
        log_prob (`Callable`): Maps latents `(batch, candidates, latent_dim)` to what to maximise `(batch, candidates)`.
        starts (`torch.FloatTensor` of shape `(batch, starts, latent_dim)`): Latents to start from.
        start_mask (`torch.BoolTensor` of shape `(batch, starts)`): Which starts a task really has and can pay for.
        noise (`torch.FloatTensor` of shape `(batch or 1, num_samples, latent_dim)`): Standard normal.
        limit (`torch.LongTensor` of shape `(batch,)`, *optional*): Decoder evaluations that each task may spend.
    """

    log_prob: LogProb
    starts: torch.Tensor
    start_mask: torch.Tensor
    noise: torch.Tensor
    limit: torch.Tensor | None = None


def masked_mean(latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real pairs: latents `(..., pairs, latent_dim)`, mask `(..., pairs)` -> `(..., latent_dim)`."""
    weights = mask.to(latents.dtype).unsqueeze(-1)
    return (latents * weights).sum(-2) / weights.sum(-2).clamp(min=1)


def start_latents(
    latents: torch.Tensor, pair_mask: torch.Tensor, config: SearchConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The latents a search begins with.

    Args:
        latents (`torch.FloatTensor` of shape `(batch, pairs, latent_dim)`): One latent for each demonstration pair.
        pair_mask (`torch.BoolTensor` of shape `(batch, pairs)`): Which pairs are real.
        config ([`SearchConfig`]): The starts of its method decide, where there are none its `starts`.

    Returns:
        `tuple`: starts `(batch, starts, latent_dim)` and which of them are real `(batch, starts)`.
    """
    kind = config.spec.starts or config.starts
    mean, one = masked_mean(latents, pair_mask).unsqueeze(-2), torch.ones_like(pair_mask[:, :1])
    if kind == "first":
        first = pair_mask.int().argmax(-1)[:, None, None].expand(-1, 1, latents.shape[-1])
        return latents.gather(1, first), pair_mask.any(-1, keepdim=True)
    if kind == "mean":
        return mean, one
    # A start of a pair that does not exist is computed like the others (its place in the batch costs the same) and
    # never counted, averaged or chosen; the mean keeps it finite.
    pairs = torch.where(pair_mask.unsqueeze(-1), latents, mean)
    if kind == "pairs":
        return pairs, pair_mask
    return torch.cat([mean, pairs], 1), torch.cat([one, pair_mask], 1)


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


def _value_and_grad(
    log_prob: LogProb, latents: torch.Tensor, config: SearchConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihoods `(batch, candidates)` and their gradients with respect to the latents."""
    width = latents.shape[1] if config.chunk_size is None else max(1, config.chunk_size // latents.shape[0])
    values, grads = [], []
    for part in latents.split(width, 1):
        if torch.compiler.is_compiling() and not config.second_order:
            value, grad = _compiled_value_and_grad(log_prob, part)
        else:
            if not (config.second_order and part.requires_grad):
                part = part.detach().requires_grad_()
            value = log_prob(part).float()
            (grad,) = torch.autograd.grad(value.sum(), part, create_graph=config.second_order)
        values.append(value)
        grads.append(grad)
    return torch.cat(values, 1), torch.cat(grads, 1)


@torch.no_grad()  # of what is outside; the gradient is taken
def _compiled_value_and_grad(log_prob: LogProb, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in a form that `torch.compile` traces."""

    def total(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = log_prob(part).float()
        return value.sum(), value

    grad, (_, value) = torch.func.grad_and_value(total, has_aux=True)(latents.detach())
    return value, grad


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
        self.first_moment: torch.Tensor | float = 0.0
        self.second_moment: torch.Tensor | float = 0.0

    def __call__(self, grads: torch.Tensor) -> torch.Tensor:
        config = self.config
        lr: torch.Tensor | float = config.lr
        if config.lr_schedule == "cosine":
            progress = (self.step / self.num_steps).clamp(max=1)
            lr = lr * (0.5 * (1 + torch.cos(math.pi * progress))) ** config.lr_schedule_exponent
        self.step += 1
        if config.optimizer == "sgd":
            momentum = self.first_moment = grads + config.momentum * self.first_moment
            return lr * momentum
        self.first_moment = config.beta1 * self.first_moment + (1 - config.beta1) * grads
        self.second_moment = config.beta2 * self.second_moment + (1 - config.beta2) * grads.square()
        mean = self.first_moment / (1 - config.beta1**self.step)
        variance = self.second_moment / (1 - config.beta2**self.step)
        return lr * mean / ((variance + 1e-8).sqrt() + 1e-8)


def rank_visited(latents: torch.Tensor, log_probs: torch.Tensor, counted: torch.Tensor) -> SearchOutput:
    """
    The result of a search method, sorted: latents `(batch, starts, steps + 1, latent_dim)`, log_probs and counted (which
    of them the task really has and paid for) `(batch, starts, steps + 1)`.
    """
    visited = SearchOutput(
        trajectory_latents=latents,
        trajectory_log_probs=torch.where(counted, log_probs, torch.nan),
        num_evaluations=counted.flatten(1).sum(1),
        num_nonfinite=(counted & ~log_probs.isfinite()).flatten(1).sum(1),
    )
    return rank_by_scores(visited, visited.trajectory_log_probs)


def rank_by_scores(found: SearchOutput, scores: torch.Tensor) -> SearchOutput:
    """`found`, ranked by scores `(batch, starts, steps + 1)` of its trajectory instead."""
    log_probs, latents = found.trajectory_log_probs, found.trajectory_latents
    scores = torch.where(log_probs.isnan(), torch.nan, scores)
    log_probs = torch.where(log_probs.isfinite(), log_probs, -torch.inf).flatten(1)
    usable = torch.where(scores.isfinite() & found.trajectory_log_probs.isfinite(), scores, -torch.inf)
    ranked, order = usable.flatten(1).sort(dim=1, descending=True, stable=True)
    return SearchOutput(
        latents=latents.flatten(1, 2).gather(1, order.unsqueeze(-1).expand(-1, -1, latents.shape[-1])),
        log_probs=log_probs.gather(1, order),
        scores=ranked,
        trajectory_latents=latents,
        trajectory_log_probs=found.trajectory_log_probs,
        trajectory_scores=scores,
        num_evaluations=found.num_evaluations,
        num_nonfinite=found.num_nonfinite,
    )


def starts_only(problem: SearchProblem, config: SearchConfig) -> SearchOutput:
    """No search: scores the start latents themselves (`"mean"`, `"first"`, and `"all"`, which ranks every pair's latent)."""
    with torch.no_grad():
        log_probs = _evaluate(problem.log_prob, problem.starts, config.chunk_size)
    return rank_visited(problem.starts.unsqueeze(2), log_probs.unsqueeze(2), problem.start_mask.unsqueeze(2))


def random_search(problem: SearchProblem, config: SearchConfig) -> SearchOutput:
    """
    Scores the starts and `num_samples` random neighbours of them (paper, section 4.2, random search). Samples are dealt
    to the real starts in equal blocks; the last block may be shorter.
    """
    starts, start_mask, noise = problem.starts, problem.start_mask, problem.noise
    num_starts = start_mask.sum(1, keepdim=True)
    num_samples = _affordable(problem)
    samples = torch.arange(noise.shape[1], device=starts.device).unsqueeze(0)
    sampled = samples < num_samples
    per_start = ((num_samples + num_starts - 1) // num_starts).clamp(min=1)
    real_first = (~start_mask).long().argsort(dim=1, stable=True)  # the k-th real start need not be the k-th start
    origin = real_first.gather(1, torch.where(sampled, samples // per_start, 0))
    moved = starts.gather(1, origin.unsqueeze(-1).expand(-1, -1, starts.shape[-1])) + config.std * noise
    candidates = torch.cat([starts, moved], 1)
    with torch.no_grad():
        log_probs = _evaluate(problem.log_prob, candidates, config.chunk_size)
    counted = torch.cat([start_mask, sampled], 1)
    return rank_visited(candidates.unsqueeze(2), log_probs.unsqueeze(2), counted.unsqueeze(2))


class _Population:
    """
    The normal distribution that each task's generation is drawn from, as separable CMA-ES (Ros and Hansen, 2008) adapts it,
    with the constants of the first version of Hansen's tutorial (arXiv 1604.00772, table 1), without its negative weights and
    without its correction of the variances where the path stalls: mean `(batch, 1, latent_dim)`, step size `(batch, 1, 1)`, and
    variances of each dimension, so that a step costs nothing beside the decoder.
    """

    def __init__(self, mean: torch.Tensor, std: float, size: int):
        dim, parents = mean.shape[-1], size // 2
        weights = [math.log((size + 1) / 2) - math.log(rank) for rank in range(1, parents + 1)]
        self.weights = (mean.new_tensor(weights) / sum(weights)).view(1, -1, 1)  # of the parents, best first
        self.mass = mass = sum(weights) ** 2 / sum(
            weight**2 for weight in weights
        )  # parents, if they had equal weights
        self.step_decay = (mass + 2) / (dim + mass + 5)
        self.damping = 1 + 2 * max(0.0, math.sqrt(max(0.0, mass - 1) / (dim + 1)) - 1) + self.step_decay
        self.path_decay = (4 + mass / dim) / (dim + 4 + 2 * mass / dim)
        rate_of_path = 2 / ((dim + 1.3) ** 2 + mass)
        rate_of_parents = min(1 - rate_of_path, 2 * (mass - 2 + 1 / mass) / ((dim + 2) ** 2 + mass))
        faster = (dim + 2) / 3  # than with all covariances: there are fewer variances to learn
        self.rate_of_path = min(1.0, faster * rate_of_path)
        self.rate_of_parents = min(1 - self.rate_of_path, faster * rate_of_parents)
        self.expected_norm = math.sqrt(dim) * (1 - 1 / (4 * dim) + 1 / (21 * dim**2))  # of a standard normal vector
        self.mean, self.step = mean, torch.full_like(mean[..., :1], std)
        self.variance = torch.ones_like(mean)
        self.step_path, self.path, self.generation = torch.zeros_like(mean), torch.zeros_like(mean), 0

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        return self.mean + self.step * self.variance.sqrt() * noise

    def select(self, noise: torch.Tensor, values: torch.Tensor) -> None:
        """Moves to the better half: noise `(batch or 1, size, latent_dim)` of samples with the values `(batch, size)`."""
        values = torch.where(values.isfinite(), values, -torch.inf)
        best = values.argsort(dim=1, descending=True, stable=True)[:, : self.weights.shape[1], None]
        parents = noise.expand(len(values), -1, -1).gather(1, best.expand(-1, -1, noise.shape[-1]))
        moved, scale = (self.weights * parents).sum(1, keepdim=True), self.variance.sqrt()
        self.generation += 1
        self.mean = self.mean + self.step * scale * moved
        share = self.step_decay
        self.step_path = (1 - share) * self.step_path + math.sqrt(share * (2 - share) * self.mass) * moved
        length = self.step_path.norm(dim=-1, keepdim=True) / self.expected_norm
        # A path that the step size is far too small for says nothing about the variances.
        usual = math.sqrt(1 - (1 - share) ** (2 * self.generation)) * (1.4 + 2 / (moved.shape[-1] + 1))
        share = self.path_decay
        along = torch.where(length < usual, math.sqrt(share * (2 - share) * self.mass), 0.0) * scale * moved
        self.path = (1 - share) * self.path + along
        of_parents = self.variance * (self.weights * parents.square()).sum(1, keepdim=True)
        kept = 1 - self.rate_of_path - self.rate_of_parents
        self.variance = (
            kept * self.variance + self.rate_of_path * self.path.square() + self.rate_of_parents * of_parents
        )
        self.step = self.step * (self.step_decay / self.damping * (length - 1)).exp()


def evolution_search(problem: SearchProblem, config: SearchConfig) -> SearchOutput:
    """
    Evolution strategy from the best start, without gradients: generations of `population_size` samples, each from a normal
    distribution that moved towards the better half of those before, see [`_Population`]. The last generation may be smaller.
    """
    starts, start_mask, noise = problem.starts, problem.start_mask, problem.noise
    with torch.no_grad():
        values = [_evaluate(problem.log_prob, starts, config.chunk_size)]
        usable = torch.where(start_mask & values[0].isfinite(), values[0], -torch.inf)
        best = usable.argmax(1)[:, None, None].expand(-1, 1, starts.shape[-1])
        origin = starts.detach().gather(1, best)
        population, visited = _Population(origin.float(), config.std, config.population_size), [starts.detach()]
        for first in range(0, noise.shape[1], config.population_size):
            part = noise[:, first : first + config.population_size].float()
            visited.append(population.sample(part).to(starts))
            values.append(_evaluate(problem.log_prob, visited[-1], config.chunk_size))
            if part.shape[1] == config.population_size:
                population.select(part, values[-1])
    latents = torch.cat(visited, 1)
    if starts.requires_grad:  # what is found moves with its start, as if the search had added a constant
        moved = latents[:, starts.shape[1] :] - origin
        latents = torch.cat([starts, starts.gather(1, best) + moved], 1)
    sampled = torch.arange(noise.shape[1], device=starts.device) < _affordable(problem)
    counted = torch.cat([start_mask, sampled], 1)
    return rank_visited(latents.unsqueeze(2), torch.cat(values, 1).unsqueeze(2), counted.unsqueeze(2))


def gradient_search(problem: SearchProblem, config: SearchConfig) -> SearchOutput:
    """
    Gradient ascent on the log-likelihood from every start (paper, algorithm 2). The best of *all* visited latents is
    returned, the starts included. Samples, if any, are further starts around the mean of the real ones.
    """
    starts, start_mask = _with_samples(problem, config)
    num_steps, most_steps = torch.full_like(start_mask[:, 0], config.num_steps, dtype=torch.long), config.num_steps
    if problem.limit is not None:
        num_steps = num_steps.clamp(max=problem.limit // start_mask.sum(1) - 1)
        most_steps = int(num_steps.max())
    ascent, latents = _Ascent(config, num_steps), starts if config.second_order else starts.detach()
    path, values = [latents], []
    with torch.enable_grad():
        for _ in range(most_steps):
            value, grads = _value_and_grad(problem.log_prob, latents, config)
            latents = latents + ascent(_clip(grads, start_mask, config))
            path.append(latents)
            values.append(value.detach())
    with torch.no_grad():
        values.append(_evaluate(problem.log_prob, latents, config.chunk_size))
    visited = torch.stack(path, 2)
    if starts.requires_grad and not config.second_order:
        visited = starts.unsqueeze(2) + (visited - starts.detach().unsqueeze(2))
    in_budget = torch.arange(visited.shape[2], device=starts.device) <= num_steps[:, None, None]
    return rank_visited(visited, torch.stack(values, 2), start_mask.unsqueeze(-1) & in_budget)


def _with_samples(problem: SearchProblem, config: SearchConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The starts of a gradient search and which of them are real, samples around the mean included."""
    starts, start_mask, noise = problem.starts, problem.start_mask, problem.noise
    if not noise.shape[1]:
        return starts, start_mask
    sampled = torch.arange(noise.shape[1], device=starts.device) < _affordable(problem)
    mean = starts[:, :1] if config.starts != "pairs" else masked_mean(starts, start_mask).unsqueeze(1)
    return torch.cat([starts, mean + config.std * noise], 1), torch.cat([start_mask, sampled], 1)


def _affordable(problem: SearchProblem) -> torch.Tensor:
    """How many samples each task can pay beside its starts `(batch, 1)`."""
    num_starts, num_samples = problem.start_mask.sum(1, keepdim=True), problem.noise.shape[1]
    samples = torch.full_like(num_starts, num_samples)
    return samples if problem.limit is None else samples.clamp(max=problem.limit.unsqueeze(1) - num_starts)


@dataclass(frozen=True)
class SearchMethod:
    """
    A search method and what it reads of [`SearchConfig`]; whatever else is given with it is refused.

    Args:
        function (`Callable`): Maps a [`SearchProblem`] and a [`SearchConfig`] to a [`SearchOutput`]
            (by [`rank_visited`]).
        reads (`frozenset[str]`): The settings it reads.
        budget (`str`, *optional*):
            The setting among them that counts its steps or samples: from one start, `n` of them cost at least `n`
            decoder evaluations. `None` for a method that costs what it costs.
        starts (`str`, *optional*):
            `"mean"`, `"first"` or `"pairs"`: where it always starts. `None` leaves it to the setting `starts`.
        defaults (`dict`): Defaults of this method that differ from those of [`SearchConfig`].
        follows_path (`bool`): Whether a step of its trajectory follows from those before it, so that a shorter search is
            the beginning of a longer one.
        in_training (`str`): How the training loss uses it: `"best"` decodes the best latent, `"start"` the start without
            scoring it, `"every"` each of the starts, and averages the losses.
    """

    function: Callable[[SearchProblem, SearchConfig], SearchOutput]
    reads: frozenset[str]
    budget: str | None = None
    starts: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    follows_path: bool = False
    in_training: str = "best"

    def is_read(self, name: str) -> bool:
        return name == "method" or name in self.reads


_ALWAYS_READ = frozenset({"init", "chunk_size"})
_READ_BY_SEARCH = _ALWAYS_READ | {"starts", "num_samples", "std", "max_evaluations", "prior_weight", "rank_by"}
_READ_BY_ASCENT = {"num_steps", "lr", "lr_schedule", "lr_schedule_exponent", "clip", "max_grad_norm", "second_order"}

SEARCH_METHODS: dict[str, SearchMethod] = {
    "mean": SearchMethod(starts_only, _ALWAYS_READ, starts="mean", in_training="start"),
    "first": SearchMethod(starts_only, _ALWAYS_READ, starts="first", in_training="start"),
    "all": SearchMethod(
        starts_only, _ALWAYS_READ | {"max_evaluations", "prior_weight"}, starts="pairs", in_training="every"
    ),
    "random": SearchMethod(random_search, _READ_BY_SEARCH, budget="num_samples", defaults={"num_samples": 100}),
    "evolution": SearchMethod(
        evolution_search,
        _READ_BY_SEARCH | {"population_size"},
        budget="num_samples",
        defaults={"num_samples": 100},
    ),
    "gradient": SearchMethod(
        gradient_search,
        _READ_BY_SEARCH | _READ_BY_ASCENT | {"optimizer", "beta1", "beta2", "momentum"},
        budget="num_steps",
        follows_path=True,
    ),
}


def search_latents(
    log_prob: LogProb,
    latents: torch.Tensor,
    pair_mask: torch.Tensor,
    config: SearchConfig,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
    limit: torch.Tensor | None = None,
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
        limit (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Decoder evaluations that each task may spend; `config.max_evaluations` for all of them if not given.

    Returns:
        [`SearchOutput`]

    Raises `ValueError` if `config.rank_by` is not `"fit"`.
    """
    if config.rank_by != "fit":
        raise ValueError(
            f"search setting `rank_by` is {config.rank_by!r}, which needs the pairs one by one; `LPNModel.search` does it."
        )
    starts, start_mask = start_latents(latents, pair_mask, config)
    if limit is None and config.max_evaluations is not None:
        limit = torch.full_like(start_mask[:, 0], config.max_evaluations, dtype=torch.long)
    if limit is not None:  # each task takes the starts that it can pay for, whatever its batch mates have
        start_mask = start_mask & (start_mask.cumsum(1) <= limit.unsqueeze(1))
    num_samples = config.num_samples if config.spec.is_read("num_samples") else 0
    if limit is not None:
        num_samples = min(num_samples, int(limit.max()) - 1)
    if noise is None:
        noise = _draw_noise(starts, num_samples, generator)
    objective = _with_prior(log_prob, config.prior_weight)
    problem = SearchProblem(objective, starts, start_mask, noise[:, :num_samples], limit)
    return _without_prior(config.spec.function(problem, config), config.prior_weight)


def _with_prior(log_prob: LogProb, weight: float) -> LogProb:
    """The log-likelihood and `weight` times the log-density of N(0, I), up to a constant."""
    if not weight:
        return log_prob
    return lambda latents: log_prob(latents) - 0.5 * weight * latents.float().square().sum(-1)


def _without_prior(found: SearchOutput, weight: float) -> SearchOutput:
    """What a method maximised stays as scores, and the log-likelihoods are those of the data alone again."""
    if weight:
        found.log_probs = found.scores + 0.5 * weight * found.latents.float().square().sum(-1)
        prior = 0.5 * weight * found.trajectory_latents.float().square().sum(-1)
        found.trajectory_log_probs = found.trajectory_scores + prior
    return found


def concatenate_searches(outputs: list[SearchOutput]) -> SearchOutput:
    """Results of parts of a batch as one; shorter ones are filled up at the end with what was never visited."""

    def join(name: str) -> torch.Tensor:
        tensors = [output[name] for output in outputs]
        sizes = [max(lengths) for lengths in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        fill = {
            "log_probs": -torch.inf,
            "scores": -torch.inf,
            "trajectory_log_probs": torch.nan,
            "trajectory_scores": torch.nan,
        }.get(name, 0)
        joined = tensors[0].new_full((sum(map(len, tensors)), *sizes), fill)
        for part, tensor in zip(joined.split([len(tensor) for tensor in tensors]), tensors, strict=True):
            part[tuple(slice(length) for length in tensor.shape)] = tensor
        return joined

    return SearchOutput(**{name: join(name) for name in outputs[0]})


__all__ = [
    "SEARCH_METHODS",
    "SearchConfig",
    "SearchMethod",
    "SearchOutput",
    "SearchProblem",
    "concatenate_searches",
    "rank_by_scores",
    "rank_visited",
    "search_latents",
    "start_latents",
]
