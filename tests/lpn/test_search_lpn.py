"""What every latent search promises, on a toy log-likelihood, for each line of SEARCH_METHODS."""

import copy
import math
import pickle
from dataclasses import asdict, replace

import pytest
import torch

from modeling_lpn import SearchConfig
from modeling_lpn.lpn.search_lpn import (
    SEARCH_METHODS,
    SearchMethod,
    rank_visited,
    search_latents,
    start_latents,
    starts_only,
)


TARGETS = torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(0))
LATENTS = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)


class Counter:
    """A log-likelihood with a known maximum that counts what it is asked for."""

    def __init__(self, targets=TARGETS):
        self.targets, self.candidates = targets, 0

    def __call__(self, latents):
        self.candidates += latents.shape[1]
        return -(latents - self.targets).square().sum(-1)


def run(config, rows=slice(None), seed=0, log_prob=None):
    log_prob = Counter(TARGETS[rows]) if log_prob is None else log_prob
    return search_latents(log_prob, LATENTS[rows], MASK[rows], config, torch.Generator().manual_seed(seed))


def config_of(method, **extra):
    """A config with those of these settings that the method reads."""
    settings = {"num_steps": 6, "num_samples": 9, "starts": "mean+pairs", **extra}
    return SearchConfig(
        method=method, **{name: value for name, value in settings.items() if SEARCH_METHODS[method].is_read(name)}
    )


@pytest.mark.parametrize("method", SEARCH_METHODS)
class TestEveryMethod:
    def test_ranks_what_it_visited_and_is_never_worse_than_the_start(self, method):
        config = config_of(method)
        found = run(config)
        starts, start_mask = start_latents(LATENTS, MASK, config)
        at_start = torch.where(start_mask, Counter()(starts), -torch.inf).max(1).values
        assert (found.log_probs[:, 0] >= at_start - 1e-6).all()
        assert (found.log_probs.diff(dim=1).nan_to_num(-1.0) <= 0).all()  # nan: between two -inf
        finite = found.log_probs.isfinite()
        assert torch.allclose(Counter()(found.latents)[finite], found.log_probs[finite], atol=1e-5)
        visited = found.trajectory_log_probs.flatten(1)
        assert torch.equal(visited.isfinite().sum(1), found.num_evaluations)
        assert torch.allclose(visited.nan_to_num(-math.inf).max(1).values, found.log_probs[:, 0])

    def test_spends_what_it_is_given(self, method):
        field = SEARCH_METHODS[method].budget
        single = {"starts": "mean", "num_samples": 0, "num_steps": 0}
        if field is None:
            config = config_of(method, **single)
            assert torch.equal(run(config).num_evaluations, start_latents(LATENTS, MASK, config)[1].sum(1))
            return
        assert SEARCH_METHODS[method].is_read(field), "a method reads its own budget"
        for budget in (0, 1, 8):
            log_prob = Counter()
            config = config_of(method, **{**single, field: budget})
            spent = run(config, log_prob=log_prob).num_evaluations
            assert (spent == budget + 1).all() and log_prob.candidates == budget + 1
            assert config.budget == budget and config.at_budget(3).budget == 3
        assert SearchConfig(method=method).budget > 0

    @pytest.mark.parametrize("limit", [1, 2, 5, 6, 7, 13, 40])
    def test_keeps_its_budget(self, method, limit):
        log_prob = Counter()
        found = run(config_of(method, max_evaluations=limit), log_prob=log_prob)
        assert (found.num_evaluations <= limit).all() and (found.num_evaluations >= 1).all()
        free = run(config_of(method))
        assert (found.num_evaluations <= free.num_evaluations).all()

    def test_same_generator_same_result(self, method):
        first, second = run(config_of(method)), run(config_of(method))
        assert torch.equal(first.latents, second.latents) and torch.equal(first.log_probs, second.log_probs)

    @pytest.mark.parametrize(
        "extra", [{}, {"max_evaluations": 11}, {"max_evaluations": 3}, {"starts": "pairs"}, {"starts": "mean"}]
    )
    def test_row_does_not_depend_on_its_batch_mates(self, method, extra):
        config = config_of(method, lr_schedule="cosine", **extra)
        together = run(config)
        for row in range(4):
            pairs = int(MASK[row].sum())
            alone = search_latents(
                Counter(TARGETS[row : row + 1]),
                LATENTS[row : row + 1, :pairs],
                MASK[row : row + 1, :pairs],
                config,
                torch.Generator().manual_seed(0),
            )
            count = int(alone.num_evaluations[0])
            assert count == int(together.num_evaluations[row])
            assert torch.allclose(alone.log_probs[0, :count], together.log_probs[row, :count], atol=1e-5)
            assert torch.allclose(alone.latents[0, :1], together.latents[row, :1], atol=1e-5)

    def test_works_without_gradients_around_it_and_in_chunks(self, method):
        with torch.no_grad():
            found = run(config_of(method))
        chunked = run(config_of(method, chunk_size=8))
        assert torch.allclose(found.latents, chunked.latents, atol=1e-5)
        assert not found.log_probs.requires_grad

    def test_not_finite_never_wins_and_is_reported(self, method):
        def log_prob(latents):
            values = Counter()(latents)
            # The best half of the space is broken: nan above, infinity further up.
            values = torch.where(values > -5, torch.nan, values)
            return torch.where(latents[..., 0] > 1.5, torch.inf, values)

        found = run(config_of(method), log_prob=log_prob)
        has_finite = (found.num_evaluations - found.num_nonfinite) > 0
        assert found.log_probs[has_finite, 0].isfinite().all()
        assert found.num_nonfinite.any() and has_finite.any()
        assert (found.log_probs.isfinite().sum(1) == found.num_evaluations - found.num_nonfinite).all()


def test_evolution_reaches_the_maximum_of_an_uneven_surface():
    """Where dimensions count differently, which random samples around the start never learn."""
    weights = torch.logspace(-1, 1, 6)

    def log_prob(latents):
        return -(weights * (latents - TARGETS).square()).sum(-1)

    found = run(config_of("evolution", num_samples=1200, starts="mean", std=0.5), log_prob=log_prob)
    sampled = run(config_of("random", num_samples=1200, starts="mean", std=0.5), log_prob=log_prob)
    assert (found.log_probs[:, 0] > -1e-3).all() and (sampled.log_probs[:, 0] < -0.1).all()
    origin = run(config_of("evolution", num_samples=0)).latents[:, 0]
    assert torch.equal(origin, run(config_of("random", num_samples=0)).latents[:, 0])


def test_what_evolution_finds_moves_with_its_start():
    latents = LATENTS.clone().requires_grad_()
    config = config_of("evolution", num_samples=40, starts="mean")
    found = search_latents(Counter(), latents, MASK, config, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(found.latents[:, 0].sum(), latents)
    expected = MASK / MASK.sum(1, keepdim=True)
    assert torch.allclose(gradient, expected.unsqueeze(-1).expand_as(gradient))
    assert torch.allclose(found.latents.detach(), run(config).latents, atol=1e-5)


def test_gradient_search_reaches_the_maximum_and_random_search_improves():
    found = run(config_of("gradient", num_steps=300, lr=0.05, starts="mean"))
    assert (found.log_probs[:, 0] > -0.05).all()
    few, many = (run(config_of("random", num_samples=n)).log_probs[:, 0] for n in (4, 400))
    assert many.mean() > few.mean() + 0.1


def test_shorter_searches_are_the_beginning_of_longer_ones():
    long = run(config_of("gradient", num_steps=9))
    for steps in (0, 1, 4):
        short = run(config_of("gradient", num_steps=steps))
        assert torch.allclose(
            short.trajectory_latents, long.trajectory_latents[:, :, : steps + 1], equal_nan=True, atol=1e-6
        )


def test_clip_over_the_batch_couples_tasks_and_over_a_task_does_not():
    def first_row(clip, rows):
        config = config_of("gradient", num_samples=0, clip=clip, optimizer="sgd", starts="mean", num_steps=3)
        return run(config, rows=rows).latents[0]

    assert torch.allclose(first_row("task", slice(0, 1)), first_row("task", slice(0, 4)), atol=1e-6)
    assert not torch.allclose(first_row("batch", slice(0, 1)), first_row("batch", slice(0, 4)), atol=1e-3)


def test_adam_and_momentum_against_a_plain_loop():
    for optimizer, momentum in (("adam", 0.0), ("sgd", 0.7)):
        own = {"momentum": momentum} if optimizer == "sgd" else {"beta2": 0.99}
        config = SearchConfig(num_steps=5, optimizer=optimizer, clip="none", lr=0.3, **own)
        found = run(config)
        latent, first, second = LATENTS[0].mean(0), torch.zeros(6), torch.zeros(6)
        for step in range(1, 6):
            gradient = 2 * (TARGETS[0, 0] - latent)
            if optimizer == "sgd":
                first = gradient + momentum * first
                latent = latent + 0.3 * first
            else:
                first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
                variance = second / (1 - 0.99**step)
                latent = latent + 0.3 * first / (1 - 0.9**step) / ((variance + 1e-8).sqrt() + 1e-8)
            assert torch.allclose(found.trajectory_latents[0, 0, step], latent, atol=1e-5)


def test_gradient_reaches_the_start_with_and_without_second_order():
    latents = LATENTS.clone().requires_grad_()
    for second_order, expected_identity in ((False, True), (True, False)):
        config = SearchConfig(num_steps=2, clip="none", optimizer="sgd", lr=0.1, second_order=second_order)
        found = search_latents(Counter(), latents, MASK, config)
        (gradient,) = torch.autograd.grad(found.trajectory_latents[0, 0, 2].sum(), latents)
        # sgd on a quadratic multiplies the distance by 1 - 0.2 a step; as a constant it keeps the whole gradient.
        factor = 1.0 if expected_identity else 0.8**2
        assert torch.allclose(gradient[0], torch.full((5, 6), factor / 5), atol=1e-5)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"method": "annealing"}, f"known: {', '.join(SEARCH_METHODS)}"),
        ({"num_steps": -1}, "`num_steps` is -1; use 0 or more"),
        ({"lr": 0.0}, "`lr` is 0.0; use a positive number"),
        ({"beta1": 1.0}, r"`beta1` is 1.0; use a number in \[0, 1\)"),
        ({"clip": "norm"}, "known: task, batch, none"),
        ({"num_steps": 2.5}, "`num_steps` is 2.5; use a whole number"),
        ({"num_steps": True}, "`num_steps` is True; use a whole number"),
        ({"num_steps": "3"}, "`num_steps` is '3'; use a whole number"),
        ({"num_steps": None}, "`num_steps` is None; use a whole number"),
        ({"max_evaluations": 0}, "`max_evaluations` is 0; use 1 or more"),
        ({"lr": math.inf}, "`lr` is inf; use a finite number"),
        ({"lr": False}, "`lr` is False; use a finite number"),
        ({"momentum": math.nan}, "`momentum` is nan; use a finite number"),
        ({"second_order": "no"}, "`second_order` is 'no'; use True or False"),
        ({"starts": ["mean"]}, r"`starts` is \['mean'\]; use a name"),
    ],
)
def test_wrong_settings_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**settings)


def test_a_misspelt_setting_names_the_nearest():
    for call in (lambda: SearchConfig(num_step=3), lambda: SearchConfig().override(num_step=3)):
        with pytest.raises(TypeError, match="`num_step` is no search setting; did you mean `num_steps`"):
            call()
    with pytest.raises(TypeError, match="`search_config` is 3, a int; give a `SearchConfig` or a dict"):
        SearchConfig.of(3)


@pytest.mark.parametrize("method", SEARCH_METHODS)
def test_a_setting_that_the_method_does_not_read_is_refused(method):
    for name, value in asdict(SearchConfig(max_evaluations=9, chunk_size=2)).items():
        if SEARCH_METHODS[method].is_read(name):
            allowed = {"momentum": {"optimizer": "sgd"}, "lr_schedule_exponent": {"lr_schedule": "cosine"}}
            SearchConfig(**{"method": method, name: value if name != "method" else method, **allowed.get(name, {})})
        else:
            with pytest.raises(ValueError, match=f"`{name}` is .* method '{method}' does not read it; leave it out"):
                SearchConfig(method=method, **{name: value})


def test_a_setting_that_a_choice_does_not_read_is_refused():
    with pytest.raises(ValueError, match="`momentum` is 0.5, but `optimizer` 'adam' does not read it.*'sgd'"):
        SearchConfig(momentum=0.5)
    with pytest.raises(ValueError, match="`max_grad_norm` is 1.0, but `clip` 'none' does not read it"):
        SearchConfig(clip="none", max_grad_norm=1.0)


def test_what_was_given_survives_copies_and_overrides():
    config = SearchConfig(lr=0.3, num_steps=100, optimizer="sgd", momentum=0.5)
    assert config.to_dict() == {"num_steps": 100, "lr": 0.3, "optimizer": "sgd", "momentum": 0.5}
    for same in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), SearchConfig(**config.to_dict())):
        assert same == config and same.to_dict() == config.to_dict()
    assert replace(config, lr=0.2).to_dict() == {"lr": 0.2, "optimizer": "sgd", "momentum": 0.5}
    assert replace(SearchConfig(method="mean"), chunk_size=3).to_dict() == {"method": "mean", "chunk_size": 3}
    assert config.override(method="mean").to_dict() == {"method": "mean"}
    assert config.override(optimizer="adam").to_dict() == {"num_steps": 100, "lr": 0.3, "optimizer": "adam"}
    assert SearchConfig.of(None) == SearchConfig() and SearchConfig.of({"lr": 0.2}).lr == 0.2
    with pytest.raises(ValueError, match="method 'mean' does not read it"):
        config.override(method="mean", lr=0.2)


def test_each_task_pays_for_the_starts_it_can():
    found = run(config_of("gradient", max_evaluations=5, num_samples=0))
    assert found.num_evaluations.tolist() == [5, 3, 4, 5]  # 5 of 6 starts; 3 starts, no step; 2 starts, 1 step; 5 of 5
    starts, _ = start_latents(LATENTS, MASK, SearchConfig(starts="mean+pairs"))
    only = run(config_of("gradient", max_evaluations=1, num_samples=0))
    assert torch.equal(only.latents[:, 0], starts[:, 0])  # the mean comes first


@pytest.mark.parametrize("method", [name for name in SEARCH_METHODS if SEARCH_METHODS[name].is_read("prior_weight")])
def test_a_pull_towards_the_prior(method):
    config = config_of(method, prior_weight=0.5)
    found = run(config)

    def objective(latents):
        return Counter()(latents) - 0.25 * latents.square().sum(-1)

    finite = found.scores.isfinite()
    assert torch.allclose(found.scores[finite], objective(found.latents)[finite], atol=1e-4)
    assert torch.allclose(found.log_probs[finite], Counter()(found.latents)[finite], atol=1e-4)
    assert (found.scores.diff(dim=1).nan_to_num(-1.0) <= 0).all()
    by_hand = run(config_of(method), log_prob=objective)
    assert torch.allclose(found.latents, by_hand.latents) and torch.allclose(found.scores, by_hand.log_probs)
    if SEARCH_METHODS[method].follows_path:  # the maximum of the sum: 4 of 5 parts of the way
        found = run(SearchConfig(num_steps=300, lr=0.05, prior_weight=0.5))
        assert torch.allclose(found.latents[:, 0], 0.8 * TARGETS[:, 0], atol=0.02)


def test_leave_one_out_is_the_models_business_and_starts_at_the_mean():
    with pytest.raises(ValueError, match="needs the pairs one by one"):
        run(SearchConfig(rank_by="leave_one_out"))
    with pytest.raises(ValueError, match="`starts` is 'pairs': without one pair"):
        SearchConfig(rank_by="leave_one_out", starts="pairs")


def hill_climb(problem, config):
    """A toy method: a random walk from the mean."""
    place = torch.where(problem.start_mask[..., :1].unsqueeze(-1), problem.starts[:, :1], 0)
    path, values = [place], [problem.log_prob(place)]
    for step in range(problem.noise.shape[1]):
        tried = path[-1] + config.std * problem.noise[:, step : step + 1]
        path.append(tried.expand_as(place))
        values.append(problem.log_prob(path[-1]))
    visited = torch.stack(path, 2)
    counted = torch.arange(visited.shape[2]).expand(len(place), 1, -1)
    limit = len(path) if problem.limit is None else problem.limit[:, None, None]
    return rank_visited(visited, torch.stack(values, 2), counted < limit)


READS = frozenset({"num_samples", "std", "max_evaluations", "chunk_size", "init", "prior_weight"})


def properties(method):
    suite = TestEveryMethod()
    suite.test_ranks_what_it_visited_and_is_never_worse_than_the_start(method)
    suite.test_spends_what_it_is_given(method)
    for limit in (1, 5, 40):
        suite.test_keeps_its_budget(method, limit)
    suite.test_same_generator_same_result(method)
    for extra in ({}, {"max_evaluations": 3}):
        suite.test_row_does_not_depend_on_its_batch_mates(method, extra)


def test_a_new_method_needs_one_line(monkeypatch):
    line = SearchMethod(hill_climb, READS, budget="num_samples", starts="mean", defaults={"num_samples": 5})
    monkeypatch.setitem(SEARCH_METHODS, "climb", line)
    properties("climb")
    assert SearchConfig(method="climb").num_samples == 5
    test_a_setting_that_the_method_does_not_read_is_refused("climb")


@pytest.mark.parametrize(
    "function,reads,budget",
    [
        (hill_climb, READS - {"num_samples"}, "num_samples"),  # gets no noise
        (starts_only, READS, "num_samples"),  # ignores its budget
        (
            lambda problem, config: hill_climb(
                problem._replace(limit=None, noise=problem.noise.repeat(1, 2, 1)), config
            ),
            READS,
            "num_samples",
        ),
        (
            lambda problem, config: hill_climb(problem._replace(noise=torch.randn(1, 99, 6)), config),
            READS,
            "num_samples",
        ),
        (
            lambda problem, config: hill_climb(
                problem._replace(starts=problem.starts.mean(0, True).expand_as(problem.starts)), config
            ),
            READS,
            "num_samples",
        ),
    ],
    ids=["undeclared", "spends_nothing", "overspends", "own_noise", "mixes_rows"],
)
def test_a_wrong_method_is_caught(function, reads, budget, monkeypatch):
    line = SearchMethod(function, reads, budget=budget, starts="mean", defaults={"num_samples": 5})
    monkeypatch.setitem(SEARCH_METHODS, "wrong", line)
    with pytest.raises((AssertionError, RuntimeError)):
        properties("wrong")
