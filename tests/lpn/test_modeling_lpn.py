"""LPNModel against the naive implementation, and what it promises about batches, masks, precision and saving."""

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases_lpn import draw_zeros
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils.logging import warning_once

from modeling_lpn import LPNConfig, LPNModel, SearchConfig
from modeling_lpn.lpn import modeling_lpn, transformer_lpn
from modeling_lpn.lpn.plan_lpn import GridPlan, group_pairs
from modeling_lpn.lpn.search_lpn import SEARCH_METHODS
from modeling_lpn.lpn.transformer_lpn import GridExtent
from recipes.benchmarks.naive_lpn import NaiveLPN


VARIANTS = {
    "learned": {},
    "scaled": {"encoder_position_embedding_type": "scaled", "decoder_position_embedding_type": "scaled"},
    "rotary": {"encoder_position_embedding_type": "rotary", "decoder_position_embedding_type": "rotary"},
    "separate": {"separate_input_position_embeddings": True},
    "own_position": {"next_position_embeddings": False, "decoder_use_bias": True, "decoder_activation": "relu"},
    "uneven": {"encoder_num_layers": 3, "encoder_head_dim": 4, "decoder_num_layers": 1, "decoder_num_heads": 4},
    "no_encoder_layers": {"encoder_num_layers": 0, "decoder_num_layers": 3},
    "previous_cells": {"num_previous_cells": 2},
    "blind_input": {"latent_visible_to_input": False, "decoder_num_layers": 3},
    "blind_input_rotary": {
        "latent_visible_to_input": False,
        "encoder_position_embedding_type": "rotary",
        "decoder_position_embedding_type": "rotary",
    },
    "blind_input_one_layer": {"latent_visible_to_input": False, "decoder_num_layers": 1, "decoder_use_bias": True},
}


def make_model(variant="learned", **extra):
    torch.manual_seed(0)
    sizes = {"encoder_num_heads": 2, "encoder_head_dim": 8, "decoder_num_heads": 2, "decoder_head_dim": 8}
    config = LPNConfig(max_rows=6, max_cols=5, latent_dim=8, **{**sizes, **VARIANTS[variant], **extra})
    return draw_zeros(LPNModel(config).eval())


def make_tasks(batch=3, num_pairs=4, seed=0, queries=2, canvas=(6, 5)):
    """Random grids of random shapes, garbage in the padding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        grids = torch.randint(0, 10, (batch, count, *canvas), generator=generator)
        rows = torch.randint(1, 7, (batch, count), generator=generator)
        cols = torch.randint(1, 6, (batch, count), generator=generator)
        return grids, torch.stack([rows, cols], -1)

    (inputs, input_shapes), (outputs, output_shapes) = draw(num_pairs), draw(num_pairs)
    return (inputs, outputs, input_shapes, output_shapes), draw(queries)


def close(first, second, tolerance=2e-5):
    return float((first - second).abs().max()) <= tolerance


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.mark.parametrize("in_blocks", [False, True])
def test_equals_the_naive_implementation(variant, in_blocks, monkeypatch):
    """Loss, log-likelihood, gradients and generated grids, for every kind of model, also where attention is cut into blocks."""
    if in_blocks:
        monkeypatch.setattr(transformer_lpn, "CAUSAL_BLOCK", 4)
        monkeypatch.setattr(transformer_lpn, "SHARED_SCORES", {"cpu": 200})
        monkeypatch.setattr(transformer_lpn, "WRITING_COSTS", {"cpu": COSTS})
    model = make_model(variant, prior_kl_weight=0.0)
    naive, (demonstrations, queries) = NaiveLPN(model), make_tasks()
    output = model(*demonstrations)
    expected = naive.loss(*demonstrations)
    assert close(output.loss, expected)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    for name, ours, theirs in zip(
        names, gradients, torch.autograd.grad(expected, parameters, allow_unused=True), strict=True
    ):
        assert (ours is None) == (theirs is None), name
        assert ours is None or close(ours, theirs, 5e-5), name

    latents = torch.randn(3, 2, 8, requires_grad=True)
    value = model.log_prob(latents, *demonstrations)
    (gradient,) = torch.autograd.grad(value.sum(), latents)
    for candidate in range(2):
        expected = naive.task_log_prob(latents[:, candidate], *demonstrations)
        assert close(value[:, candidate], expected)
        assert close(gradient[:, candidate], torch.autograd.grad(expected.sum(), latents)[0][:, candidate], 5e-5)

    output = model.execute(latents[:, :1].detach(), *queries)
    for query in range(2):
        grids, shapes = naive.generate(latents[:, 0].detach(), queries[0][:, query], queries[1][:, query])
        assert torch.equal(output.output_shapes[:, query, 0], shapes)
        assert torch.equal(output.output_grids[:, query, 0], grids)


SHARING = {**VARIANTS, "with_dropout": {"decoder_dropout": 0.2}}


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("name", SHARING)
def test_what_the_latent_does_not_touch_is_shared_exactly(name, uniform, monkeypatch):
    """Values, gradients of latents and weights, and curvature of the shared first layer, against computing it anew."""
    torch.manual_seed(0)
    model = make_model(**{"variant": name} if name in VARIANTS else SHARING[name])
    demonstrations, _ = make_tasks(batch=2)
    if uniform:
        demonstrations = (*demonstrations[:2], torch.full((2, 4, 2), 5), torch.full((2, 4, 2), 4))
    latents = torch.randn(2, 3, 8, requires_grad=True)
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 1] = False
    results = []
    for can_share in (True, False):
        monkeypatch.setattr(type(model.decoder), "_can_share", lambda self, value=can_share: value)
        chunks = model._decoder_chunks(model._demonstrations(*demonstrations, mask).scoring("of_task"), share=True)
        assert all((chunk.shared is not None) == can_share for chunk in chunks)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            value = model._evidence(latents, chunks)
        inputs = [latents, *model.decoder.parameters()]
        gradients = torch.autograd.grad(value.square().sum(), inputs, create_graph=True, allow_unused=True)
        curvature = torch.autograd.grad(gradients[0].square().sum(), inputs, allow_unused=True)
        results.append([value, *gradients, *curvature])
    scale = max(float(t.detach().abs().max()) for t in results[1] if t is not None)
    for ours, plain in zip(*results, strict=True):
        assert (ours is None) == (plain is None)
        assert ours is None or close(ours, plain, 1e-5 * scale)


def test_shared_attention_is_exact_for_extreme_scores():
    """The latent key may take all of a token's attention or nothing of it."""
    model, (demonstrations, _) = make_model(), make_tasks(batch=2)
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(model.decoder.layers[0].attention, name).weight.mul_(30.0)
    latents = torch.randn(2, 4, 8)
    shared = model.log_prob(latents, *demonstrations)
    alone = torch.cat([model.log_prob(latents[:, k : k + 1], *demonstrations) for k in range(4)], 1)
    assert close(shared, alone, 1e-4)


@pytest.mark.parametrize("search", [{"num_steps": 1}, {"num_steps": 2, "starts": "mean+pairs"}, {"method": "random"}])
@pytest.mark.parametrize("num_pairs", [(4, 4, 4), (2, 4, 3)])
def test_leave_one_out_embeds_a_pair_once_for_all_its_rows(search, num_pairs):
    """Programs of the training loss equal those of separate searches without each pair."""
    model, (demonstrations, _) = make_model(), make_tasks(batch=3)
    search = SearchConfig(**search, **({"num_samples": 3} if "method" in search else {}))
    noise = torch.randn(3, 4, 3, 8)
    mask = torch.arange(4) < torch.tensor(num_pairs).unsqueeze(1)
    programs = model(
        *demonstrations, mask, search_config=search, search_noise=noise[:, :, : search.num_samples]
    ).programs
    for task, count in enumerate(num_pairs):
        for pair in range(count):
            kept = [k for k in range(count) if k != pair]
            alone = model._demonstrations(*(tensor[task : task + 1, kept] for tensor in demonstrations), None)
            latents = model._encode(alone, False, None).latents
            own = noise[task, pair, : search.num_samples].unsqueeze(0)
            found = model._search(latents, alone.pair_mask, alone.scoring("of_task"), search, own)
            assert close(programs[task, pair], found.latents[0, 0], 1e-4)


def test_a_search_keeps_no_graph_of_the_weights():
    """Of an MLP autograd saves what the activation needs for the latent, once; not the input of a product for its weight."""
    model, (demonstrations, _), kept = make_model(decoder_mlp_factor=8.0), make_tasks(), []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.search(*demonstrations, num_steps=1)
    inner = model.config.decoder_stack.intermediate_size
    chunks = model._decoder_chunks(model._demonstrations(*demonstrations, None).scoring("of_task"), share=True)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    activations = [t for t in kept if t.dim() > 2 and t.shape[-1] == inner and t.data_ptr() not in weights]
    assert len(activations) == model.config.decoder_num_layers * len(chunks)
    assert all(parameter.requires_grad for parameter in model.parameters())


HOST_READS = ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "cpu", "masked_select")


@pytest.mark.parametrize(
    "uniform,planned,most", [(True, True, 0), (False, True, 0), (False, False, 3)], ids=["fixed", "mixed", "unplanned"]
)
@pytest.mark.parametrize("name", ["learned", "blind_input"])
@pytest.mark.parametrize("search", [None, {"num_steps": 2}, {"method": "random", "num_samples": 3}, {"method": "all"}])
def test_a_training_step_does_not_wait_for_the_device(search, uniform, planned, most, name, monkeypatch):
    """
    Reads of a tensor by the host, each of which waits on a GPU: none with a plan; without one the transfer of shapes and
    mask, and a look at the colours of either side.
    """
    model, (demonstrations, _) = make_model(name).train(), make_tasks()
    if uniform:
        demonstrations = (*demonstrations[:2], torch.full((3, 4, 2), 5), torch.full((3, 4, 2), 4))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 3] = uniform
    plan = GridPlan(*(t.numpy() for t in (*demonstrations[2:], mask)), num_colors=10) if planned else None
    reads = []
    for name in HOST_READS:
        original = getattr(torch.Tensor, name)

        def counted(tensor, *args, _original=original, _name=name, **kwargs):
            reads.append(_name)
            return _original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    loss = model(*demonstrations, mask, search_config=search, plan=plan).loss
    loss.backward()
    assert len(reads) <= most, reads


def test_plans_are_checked():
    model, (demonstrations, _) = make_model(), make_tasks()
    plan = GridPlan.of(*demonstrations[2:], torch.ones(3, 4, dtype=torch.bool))
    assert close(model(*demonstrations, plan=plan).loss, model(*demonstrations).loss, 0.0)
    with pytest.raises(
        ValueError, match=r"`plan` is of 3 tasks with 4 pairs, but `input_grids` has shape \(2, 4, 6, 5\)"
    ):
        model(*(tensor[:2] for tensor in demonstrations), plan=plan)
    bright = demonstrations[0].clone()
    bright[0, 0, 0, 0] = 10
    with pytest.raises(ValueError, match="colours from 0 to 10"):  # nobody said that the colours are known
        model(bright, *demonstrations[1:], plan=plan)


def test_generation_writes_shapes_of_every_size():
    """The random model above must not have been tested on trivial outputs only."""
    model, (_, queries) = make_model(), make_tasks(batch=16)
    shapes = model.execute(3 * torch.randn(16, 1, 8), *queries).output_shapes
    assert len({tuple(shape) for shape in shapes.flatten(0, 2).tolist()}) > 8


# Of the small grids here too, passes are tried.
COSTS = transformer_lpn.WRITING_COSTS["cpu"]._replace(least=2)


def count_passes(monkeypatch):
    passes, predict = [], transformer_lpn.LPNDecoder._predict
    monkeypatch.setattr(
        transformer_lpn.LPNDecoder, "_predict", lambda self, *args: passes.append(args[-1]) or predict(self, *args)
    )
    return passes


@pytest.mark.parametrize("patience", [1e9, 0.1, 0.0], ids=["free", "some", "dear"])
def test_drafted_cells_become_what_steps_write(variant, patience, monkeypatch):
    """Exactly the greedy grids, of thousands of random tasks, whatever the draft is and wherever drafting is given up."""
    passes = count_passes(monkeypatch)
    monkeypatch.setattr(transformer_lpn, "PATIENCE", patience)
    monkeypatch.setattr(transformer_lpn, "WRITING_COSTS", {"cpu": COSTS})
    for seed in range(3):
        torch.manual_seed(seed)
        model = make_model(variant, copy_inputs=seed == 2).double()
        for parameter in model.parameters():
            parameter.data *= 1 + torch.rand(()).double()
        _, (queries, shapes) = make_tasks(batch=16, seed=seed, queries=8)
        queries, shapes = queries.flatten(0, 1), shapes.flatten(0, 1)
        latents, drafts = 3 * torch.randn(len(queries), 8), torch.randint(0, 10, (len(queries), 6, 5))
        extent = GridExtent(30, True, None)
        with torch.no_grad():
            expected = model.decoder.generate(latents, queries, shapes, extent, queries, speculate=False)
            assert not passes
            for draft in (queries, drafts, expected[0], drafts[:, :2, :3] - 3, F.pad(drafts, (0, 4, 0, 1), value=99)):
                written = model.decoder.generate(latents, queries, shapes, extent, draft)
                assert torch.equal(written[0], expected[0]) and torch.equal(written[1], expected[1])
        assert passes
        passes.clear()


def test_steps_cost_what_they_are_said_to():
    """The rest of grids of 5 and 9 cells, of which 2 and 4 are known, by a naive walk in lockstep; one that is finished has none."""
    counts = torch.tensor([[2, 4, 3], [5, 9, 3]])
    walk = sum(1 + COSTS.row * (sum(cell < size for size in (5, 9)) - 1) for cell in range(2, 9))
    assert COSTS.steps(counts) == pytest.approx(walk)
    assert COSTS.steps(counts[:, 2:]) == 0.0


def test_no_queries_give_no_grids():
    model, (demonstrations, queries) = make_model(), make_tasks()
    output = model.generate(*demonstrations, *queries, query_mask=torch.zeros(3, 2, dtype=torch.bool), num_steps=1)
    assert output.output_grids.shape == (3, 2, 1, 6, 5) and not output.output_grids.any()


def test_few_passes_where_drafts_are_right_or_cells_do_not_need_each_other(monkeypatch):
    """One pass confirms a right draft; two are enough for a model that reads its cells off the input and the latent."""
    monkeypatch.setattr(transformer_lpn, "LEAST_WINDOW", 30)
    monkeypatch.setattr(transformer_lpn, "PATIENCE", 1e9)
    monkeypatch.setattr(transformer_lpn, "WRITING_COSTS", {"cpu": COSTS})
    passes, model = count_passes(monkeypatch), make_model("rotary", logits_projection_bias=True)
    with torch.no_grad():
        model.decoder.row_head.bias[5] = model.decoder.col_head.bias[4] = 100.0
    _, (queries, shapes) = make_tasks(16, queries=1)
    queries, shapes, latents = queries[:, 0], shapes[:, 0], 3 * torch.randn(16, 8)

    def count(change):
        extent = GridExtent(30, True, None)
        right = model.decoder.generate(latents, queries, shapes, extent, queries, speculate=False)[0]
        passes.clear()
        assert torch.equal(model.decoder.generate(latents, queries, shapes, extent, (right + change) % 10)[0], right)
        return len(passes)

    assert count(0) == 1 < count(1)
    with torch.no_grad():
        model.decoder.color_embedding.weight[:] = model.decoder.color_embedding.weight[0]
    assert count(1) == 2


class CountOperators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant,most", [("learned", 42), ("rotary", 48)])
def test_a_written_cell_takes_few_operators(variant, most):
    """Beside the products of a layer little is left to save; it was 70 and 98 when every cell was embedded anew."""
    counts = []
    for cols in (2, 4):
        model = make_model(variant, logits_projection_bias=True)
        with torch.no_grad():
            model.decoder.row_head.bias[5] = model.decoder.col_head.bias[cols - 1] = 100.0
        with CountOperators() as operators:
            output = model.execute(torch.zeros(1, 1, 8), *(tensor[:1, :1] for tensor in make_tasks()[1]))
        assert output.output_shapes.flatten().tolist() == [6, cols]
        counts.append(operators.count)
    assert counts[1] - counts[0] <= 12 * model.config.decoder_num_layers * most


SEARCHES = {
    "mean": SearchConfig(method="mean"),
    "first": SearchConfig(method="first"),
    "all": SearchConfig(method="all"),
    "random": SearchConfig(method="random", num_samples=7, starts="mean+pairs"),
    "evolution": SearchConfig(method="evolution", num_samples=10, population_size=4, starts="mean+pairs"),
    "gradient": SearchConfig(num_steps=3, starts="mean+pairs", num_samples=2),
    "gradient_pairs": SearchConfig(num_steps=4, starts="pairs", max_evaluations=7, lr_schedule="cosine"),
    "prior": SearchConfig(num_steps=2, starts="pairs", init="prior"),
    "leave_one_out": SearchConfig(num_steps=3, num_samples=2, rank_by="leave_one_out", max_evaluations=17),
    "leave_one_out_random": SearchConfig(method="random", num_samples=5, rank_by="leave_one_out"),
}


@pytest.mark.parametrize("name,kind", [*((name, "learned") for name in SEARCHES), ("gradient", "blind_input")])
def test_task_does_not_depend_on_batch_mates_or_padding(name, kind):
    """Latents, search path, evaluations and output of a task alone, with fewer pairs than its batch mates."""
    model, (demonstrations, queries) = make_model(kind), make_tasks(batch=4, num_pairs=5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = mask[2, 1:] = mask[3, 4:] = False

    def generate(tasks, pairs, pair_mask):
        return model.generate(
            *(tensor[tasks, :pairs] for tensor in demonstrations),
            *(tensor[tasks] for tensor in queries),
            pair_mask,
            search_config=SEARCHES[name],
            num_candidates=2,
            sample_latents=True,
            generator=torch.Generator().manual_seed(3),
        )

    together = generate(slice(None), 5, mask)
    for task in range(4):
        single = generate(slice(task, task + 1), int(mask[task].sum()), None)
        assert single.search_output.num_evaluations[0] == together.search_output.num_evaluations[task]
        count = int(single.search_output.log_probs[0].isfinite().sum())
        assert close(single.search_output.log_probs[0, :count], together.search_output.log_probs[task, :count], 1e-4)
        assert together.search_output.log_probs[task, count:].isneginf().all()
        assert close(single.search_output.latents[0, 0], together.search_output.latents[task, 0], 1e-4)
        assert torch.equal(single.output_grids[0, :, 0], together.output_grids[task, :, 0])


@pytest.mark.parametrize("method", [name for name in SEARCH_METHODS if SEARCH_METHODS[name].budget])
def test_a_search_without_budget_scores_its_start(method):
    model, (demonstrations, _) = make_model(), make_tasks(batch=2)
    found = model.search(*demonstrations, search_config=SearchConfig(method=method).at_budget(0))
    start = model.search(*demonstrations, search_config=SearchConfig(method="mean"))
    assert close(found.log_probs, start.log_probs) and found.num_evaluations.tolist() == [1, 1]


def test_loss_does_not_depend_on_padding_or_canvas():
    model, (demonstrations, _) = make_model(), make_tasks(batch=3, num_pairs=4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    losses = []
    for task in range(3):
        count = int(mask[task].sum())
        losses.append(model(*(tensor[task : task + 1, :count] for tensor in demonstrations)).loss)
    together = model(*demonstrations, mask)
    assert close(together.loss, torch.stack(losses).mean())
    flipped = [tensor.flip(1) for tensor in demonstrations]  # the real pairs need not come first
    assert close(model(*flipped, mask.flip(1)).loss, together.loss)
    inputs, outputs, input_shapes, output_shapes = demonstrations
    bigger = torch.nn.functional.pad(inputs, (0, 3, 0, 9), value=7)
    assert close(model(bigger, outputs, input_shapes, output_shapes, mask).loss, together.loss)


@pytest.mark.parametrize("method", ["mean", "all", "random", "evolution", "gradient"])
def test_accumulation_equals_batch(method):
    """Four micro-batches of one task, each divided by four, give the gradient of the batch of four."""
    model, (demonstrations, _) = make_model(pairwise_kl_weight=0.1), make_tasks(batch=4)
    noise = torch.randn(4, 4, 8)
    settings = {
        "random": {"num_samples": 3},
        "evolution": {"num_samples": 3, "population_size": 2},
        "gradient": {"num_steps": 2, "num_samples": 3},
    }
    search = SearchConfig(method=method, **settings.get(method, {}))
    search_noise = torch.randn(4, 4, 3, 8)
    arguments = {"search_config": search, "sample_latents": True}
    loss = model(*demonstrations, latent_noise=noise, search_noise=search_noise, **arguments).loss
    whole = torch.autograd.grad(loss, list(model.parameters()))
    parts = 0.0
    for task in range(4):
        one = slice(task, task + 1)
        loss = model(
            *(tensor[one] for tensor in demonstrations),
            latent_noise=noise[one],
            search_noise=search_noise[one],
            **arguments,
        ).loss
        parts = [
            a + b / 4
            for a, b in zip(parts or [0.0] * len(whole), torch.autograd.grad(loss, model.parameters()), strict=True)
        ]
    assert all(close(a, b, 1e-4) for a, b in zip(whole, parts, strict=True))


def test_second_candidate_is_another_output_where_there_is_one():
    model, (demonstrations, queries) = make_model(), make_tasks(batch=8)
    search = SearchConfig(method="random", num_samples=40, std=3.0)
    output = model.generate(
        *demonstrations, *queries, search_config=search, num_candidates=2, generator=torch.Generator().manual_seed(0)
    )
    flat = output.output_grids.flatten(3)
    same = (flat[:, :, 0] == flat[:, :, 1]).all(-1) & (
        output.output_shapes[:, :, 0] == output.output_shapes[:, :, 1]
    ).all(-1)
    every = model.execute(
        output.search_output.latents.flatten(0, 1).unsqueeze(1),
        *(tensor.repeat_interleave(41, 0) for tensor in queries),
    )
    distinct = (every.output_grids.view(8, 41, 2, -1) != flat[:, :, 0].unsqueeze(1)).any(-1).sum(1)
    assert not (same & (distinct > 20)).any()  # half of the visited programs write something else: one must be found
    assert not same.all()
    # A single latent can only be executed twice.
    single = model.execute(output.search_output.latents[:, :1], *queries, num_candidates=2)
    assert torch.equal(single.output_grids[:, :, 0], single.output_grids[:, :, 1])


def test_query_mask_and_chunks_leave_the_rest_alone():
    model, (demonstrations, queries) = make_model(), make_tasks(batch=5)
    mask = torch.tensor([[True, True], [True, False], [True, True], [False, True], [True, False]])
    search = SearchConfig(num_steps=3, starts="mean+pairs")
    whole = model.generate(*demonstrations, *queries, search_config=search)
    chunked = SearchConfig(num_steps=3, starts="mean+pairs", chunk_size=2)
    part = model.generate(*demonstrations, *queries, query_mask=mask, search_config=chunked)
    assert close(whole.search_output.latents, part.search_output.latents, 1e-4)
    assert torch.equal(whole.output_grids[mask], part.output_grids[mask])
    assert not part.output_grids[~mask].any()


@pytest.mark.parametrize("rank_by", ["fit", "leave_one_out"])
def test_few_candidates_at_a_time_on_a_cpu_change_nothing(rank_by, monkeypatch):
    model, (demonstrations, _) = make_model(), make_tasks()
    found, widths, log_prob_terms = [], [], model._log_prob_terms
    monkeypatch.setattr(
        model,
        "_log_prob_terms",
        lambda latents, chunk: widths.append(latents.shape[1]) or log_prob_terms(latents, chunk),
    )
    for tokens in (2**20, 2**9):
        monkeypatch.setattr(modeling_lpn, "CHUNK_TOKENS", tokens)
        generator = torch.Generator().manual_seed(0)
        settings = {"num_steps": 2, "num_samples": 4, "rank_by": rank_by}
        found.append(model.search(*demonstrations, generator=generator, **settings))
        widths.append(0)
    assert max(widths) > max(widths[widths.index(0) :]) > 0
    assert close(found[0].trajectory_latents, found[1].trajectory_latents, 1e-4)
    assert close(found[0].scores, found[1].scores, 1e-4)


@pytest.mark.parametrize("search", [{"num_steps": 3}, {"method": "random", "num_samples": 7}])
def test_an_input_that_does_not_see_the_latent_is_computed_once(search, monkeypatch):
    """For all steps, candidates and left-out rows: the layers are given the tokens of an input as often as there are pairs."""
    given = {}

    def count(layer, arguments, key):
        batch, tokens, _ = arguments[0].shape
        given[key] = given.get(key, 0) + batch * tokens

    (demonstrations, _), counts = make_tasks(batch=1, num_pairs=3), {}
    demonstrations = (*demonstrations[:2], torch.full((1, 3, 2), 5), torch.full((1, 3, 2), 4))
    for visible in (True, False):
        model = make_model(latent_visible_to_input=visible, decoder_num_layers=3)
        given.clear()
        for index, layer in enumerate(model.decoder.layers):
            layer.register_forward_pre_hook(lambda layer, arguments, key=index: count(layer, arguments, key))
        model(*demonstrations, search_config=search)
        counts[visible] = dict(given)
    # Three pairs with 27 tokens of the input and 18 of latent and output, two rows each. The first layer is shared anyway.
    evaluations = 4 if "num_steps" in search else 8
    assert counts[True] == {0: 3 * 45, 1: 3 * 45 * (1 + 2 * evaluations), 2: 3 * 45 * (1 + 2 * evaluations)}
    once = 2 * 3 * 27  # in the search and, with gradients of the weights, in the loss
    assert counts[False] == {0: once + 3 * 18, 1: once + 3 * 18 * (1 + 2 * evaluations), 2: counts[False][1]}


def eager_model(implementation="eager", **settings):
    model = make_model(encoder_head_dim=16, decoder_head_dim=16, **settings)
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.slow  # most of a minute of compiling
@torch.no_grad()
def test_flex_attention_encodes_on_cpu():
    """More than this compiles to faulty C++ in torch 2.13; the whole model is compared on a GPU."""
    demonstrations, _ = make_tasks()
    encoded = [eager_model(name).encode(*demonstrations).latents for name in ("eager", "flex_attention")]
    assert close(*encoded)


@pytest.mark.parametrize(
    "implementation,device",
    [
        ("sdpa", "cpu"),
        pytest.param("sdpa", "cuda", marks=pytest.mark.gpu),
        pytest.param("flex_attention", "cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("visible", [True, False])
def test_attention_implementations_agree(visible, implementation, device):
    demonstrations, queries = ([tensor.to(device) for tensor in tensors] for tensors in make_tasks())
    reference, model = (
        eager_model(name, latent_visible_to_input=visible).to(device) for name in ("eager", implementation)
    )
    search = SearchConfig(method="random", num_samples=3)
    assert close(model(*demonstrations).loss, reference(*demonstrations).loss)
    outputs = [
        m.generate(*demonstrations, *queries, search_config=search, generator=torch.Generator().manual_seed(0))
        for m in (model, reference)
    ]
    assert close(outputs[0].search_output.log_probs, outputs[1].search_output.log_probs, 1e-4)
    assert torch.equal(outputs[0].output_grids, outputs[1].output_grids)


@pytest.mark.parametrize("visible", [True, False])
def test_second_order_gradient_agrees_between_implementations_and_refuses_flex(visible):
    demonstrations, _ = make_tasks()
    search, noise = SearchConfig(num_steps=2, second_order=True, lr=0.5), torch.randn(3, 4, 8)
    gradients = []
    for implementation in ("eager", "sdpa"):
        model = make_model(latent_visible_to_input=visible)
        model.set_attn_implementation(implementation)
        model(*demonstrations, search_config=search, sample_latents=True, latent_noise=noise).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    first_order = make_model(latent_visible_to_input=visible)
    search = SearchConfig(num_steps=2, lr=0.5)
    first_order(*demonstrations, search_config=search, sample_latents=True, latent_noise=noise).loss.backward()
    assert close(*gradients, 1e-4)
    assert not close(gradients[0], torch.cat([p.grad.flatten() for p in first_order.parameters()]), 1e-3)
    model = eager_model("flex_attention")
    with pytest.raises(ValueError, match="no second derivative"):
        model(*demonstrations, search_config=SearchConfig(num_steps=1, second_order=True))


def test_bfloat16_is_close():
    (demonstrations, queries) = make_tasks()
    model, half = make_model(), make_model().to(torch.bfloat16)
    exact, rough = model(*demonstrations), half(*demonstrations)
    assert rough.loss.dtype == torch.float32
    assert abs(float(exact.loss - rough.loss)) < 0.05 * float(exact.loss)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(*demonstrations, search_config=SearchConfig(num_steps=2))
    mixed.loss.backward()
    assert mixed.loss.dtype == torch.float32 and abs(float(exact.loss - mixed.loss)) < 0.3 * float(exact.loss)
    assert half.generate(*demonstrations, *queries, search_config=SearchConfig(num_steps=2)).output_grids.any()


def test_save_load_dropout_and_checkpointing(tmp_path):
    from transformers import AutoConfig, AutoModel

    model, (demonstrations, _) = make_model("rotary"), make_tasks()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is LPNModel and isinstance(AutoConfig.from_pretrained(tmp_path), LPNConfig)
    assert close(loaded(*demonstrations).loss, model(*demonstrations).loss)
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "search_lpn.py").exists()

    dropped = make_model(encoder_dropout=0.2, decoder_dropout=0.2, decoder_attention_dropout=0.2).train()
    search = SearchConfig(num_steps=2)
    paths = [dropped.search(*demonstrations, search_config=search).trajectory_latents for _ in range(2)]
    losses = [dropped(*demonstrations, sample_latents=False).loss for _ in range(2)]
    assert dropped.decoder.training and not close(*losses, 1e-6)
    dropped.encoder.eval()
    paths = [dropped.search(*demonstrations, search_config=search).trajectory_latents for _ in range(2)]
    assert torch.equal(*paths)  # the search itself never drops anything

    noise, gradients = torch.randn(3, 4, 8), []
    for checkpointing in (False, True):
        model.train().zero_grad()
        (model.activation_checkpointing_enable if checkpointing else model.activation_checkpointing_disable)()
        model(*demonstrations, search_config=search, latent_noise=noise).loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        gradients.append(gradient)
    assert close(*gradients)


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_gradients_and_grids():
    (demonstrations, queries), model = make_tasks(), make_model("rotary")
    search, noise, gradients, grids = SearchConfig(num_steps=1), torch.randn(3, 4, 8), [], []
    for _ in range(2):
        model.zero_grad()
        model(*demonstrations, search_config=search, latent_noise=noise, sample_latents=True).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        grids.append(model.generate(*demonstrations, *queries, search_config=search, num_candidates=2).output_grids)
        model.compile_layers()
    assert close(*gradients, 1e-4) and torch.equal(*grids)
    model(*demonstrations, search_config=SearchConfig(num_steps=1, second_order=True)).loss.backward()
    assert set(model.state_dict()) == set(make_model("rotary").state_dict())


@pytest.mark.parametrize(
    "backend,search,variant",
    [
        ("aot_eager", {"method": "mean"}, "uneven"),
        pytest.param("aot_eager", {"num_steps": 1}, "uneven", marks=pytest.mark.slow),
        pytest.param("inductor", {"method": "mean"}, "learned", marks=pytest.mark.slow),
        pytest.param("inductor", {"num_steps": 1}, "blind_input_rotary", marks=pytest.mark.slow),
    ],
)
def test_a_planned_training_step_compiles_as_a_whole(backend, search, variant):
    """Without a break in the graph, search included; once for all batches of the same plan, and again for another."""
    torch.compiler.reset()
    settings = {"encoder_num_layers": 0} if backend == "aot_eager" else {}
    model, search = make_model(variant, **settings).train(), SearchConfig(**search)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    shapes = [torch.full((2, 3, 2), size) for size in (5, 4)]
    for batch, (mask, frames) in enumerate(((None, 1), (None, 1), (torch.arange(3) < 2, 2))):
        (inputs, outputs, *_), _ = make_tasks(batch=2, num_pairs=3, seed=batch)
        if backend == "aot_eager" and frames > 1:
            break  # a minute of compiling would tell no more than the plan's key does
        mask = torch.ones(2, 3, dtype=torch.bool) if mask is None else mask.expand(2, 3)
        noise = torch.randn(2, 3, search.num_samples, 8)
        results = []
        for called in (model, compiled):
            plan = GridPlan(*(tensor.numpy() for tensor in (*shapes, mask)), num_colors=10)
            model.zero_grad()
            loss = called(
                inputs,
                outputs,
                *shapes,
                mask,
                search_config=search,
                sample_latents=False,
                search_noise=noise,
                plan=plan,
            ).loss
            loss.backward()
            results.append((loss, torch.cat([p.grad.flatten() for p in model.parameters()])))
        assert close(results[0][0], results[1][0]) and close(results[0][1], results[1][1], 1e-4)
        assert counter.frame_count == frames


def test_a_compiled_search_is_the_same_and_compiles_once():
    """The steps of the first shape behind the first step; other shapes and what has no gradient stay as they are."""
    torch.compiler.reset()
    model, counter = make_model("uneven", encoder_num_layers=0), CompileCounterWithBackend("aot_eager")
    compiled = copy.deepcopy(model)
    compiled.compile_search(backend=lambda *graph: counter(*graph))
    compiled = copy.deepcopy(compiled)
    for changed in (compiled, model):  # a copy searches with its own weights
        changed.decoder.latent_proj.weight.data.mul_(1.5)
    for seed, batch, frames in ((0, 2, 1), (1, 2, 1), (2, 3, 1)):
        (inputs, outputs, *_), _ = make_tasks(batch=batch, num_pairs=3, seed=seed)
        shapes = [torch.full((batch, 3, 2), size) for size in (5, 4)]
        for search in (SearchConfig(num_steps=3), SearchConfig(method="random", num_samples=3)):
            generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
            found, wanted = (
                searched.search(inputs, outputs, *shapes, search_config=search, generator=generator)
                for searched, generator in zip((compiled, model), generators, strict=True)
            )
            assert close(found.trajectory_latents, wanted.trajectory_latents, 1e-5)
            assert close(found.trajectory_log_probs, wanted.trajectory_log_probs, 1e-4)
        assert counter.frame_count == frames


def test_many_compiled_models_reach_no_limit():
    """Of the compiler's variants of a function, which all models share; options need not be hashable."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        for batch in (1, 2, 3, 4):
            model, (demonstrations, _) = (
                make_model(encoder_num_layers=0, decoder_num_layers=1),
                make_tasks(batch=batch),
            )
            wanted = model.search(*demonstrations, num_steps=3)
            model.compile_search(backend="aot_eager", options={})
            assert close(model.search(*demonstrations, num_steps=3).latents, wanted.latents, 1e-5)


def test_a_plan_is_known_by_its_content():
    """Compiled steps are kept by this key."""
    shapes, mask = np.full((2, 3, 2), 4), np.ones((2, 3), dtype=bool)
    plan = GridPlan(shapes, shapes, mask)
    assert GridPlan(shapes.copy(), shapes[::-1], mask.copy(), num_colors=7).key == plan.key
    other = shapes.copy()
    other[1, 2, 0] = 3
    changed = [(other, shapes, mask), (shapes, other, mask), (shapes, shapes, np.eye(2, 3) > 0)]
    changed.append((shapes.reshape(3, 2, 2), shapes.reshape(3, 2, 2), mask.reshape(3, 2)))
    assert len({plan.key, *(GridPlan(*parts).key for parts in changed)}) == 5


def test_wrong_arguments_are_explained():
    model, (demonstrations, queries) = make_model(), make_tasks()
    inputs, outputs, input_shapes, output_shapes = demonstrations
    with pytest.raises(ValueError, match="single demonstration pair"):
        model(*(tensor[:, :1] for tensor in demonstrations))
    with pytest.raises(ValueError, match=r"`output_shapes` has shape \(3, 2, 2\)"):
        model(inputs, outputs, input_shapes, output_shapes[:, :2])
    with pytest.raises(ValueError, match="no demonstration pair"):
        model.encode(*demonstrations, torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="`num_candidates` is 0"):
        model.generate(*demonstrations, *queries, num_candidates=0)
    with pytest.raises(ValueError, match="do not fit"):
        model.execute(torch.zeros(2, 1, 8), *queries)
    for field, message in (
        ({"latent_dim": 0}, "`latent_dim` is 0"),
        ({"decoder_position_embedding_type": "alibi"}, "known: learned, scaled, rotary"),
        ({"encoder_head_dim": 6, "encoder_position_embedding_type": "rotary"}, "multiple of 4"),
        ({"decoder_num_layers": 0}, "`decoder_num_layers` is 0; use 1 to 1024"),
        ({"encoder_num_layers": 10**9}, "use 0 to 1024"),
        ({"num_previous_cells": -1}, "use 0 to 900, the cells of a grid"),
    ):
        with pytest.raises(Exception, match=message):
            LPNConfig(**field)


def test_search_settings_live_with_the_model(tmp_path):
    demonstrations, queries = make_tasks()
    make_model(search={"num_steps": 2, "lr": 0.3}).save_pretrained(tmp_path)
    model = LPNModel.from_pretrained(tmp_path).eval()
    assert model.config.search == {"num_steps": 2, "lr": 0.3}

    def found(*args, **kwargs):
        return model.generate(*demonstrations, *queries, *args, **kwargs).search_output

    saved = model.search(*demonstrations)
    assert (saved.num_evaluations == 3).all() and torch.equal(saved.latents, found().latents)
    expected = model.search(*demonstrations, num_steps=4)
    assert torch.equal(found(num_steps=4).latents, expected.latents)
    explicit = found(search_config=SearchConfig(num_steps=4, lr=0.3))
    assert torch.equal(explicit.latents, expected.latents)
    assert torch.equal(found(search_config={"num_steps": 4, "lr": 0.3}).latents, expected.latents)
    assert (found(search_config={}).num_evaluations == 101).all()  # all of them given: none
    assert (found(method="mean").num_evaluations == 1).all()  # what it does not read of the saved ones is left out
    with pytest.raises(TypeError, match="did you mean `num_steps`"):
        found(num_step=4)
    with pytest.raises(TypeError, match="give the settings as `search_config`"):
        found(search=SearchConfig())
    with pytest.raises(ValueError, match="method 'mean' does not read it"):
        found(method="mean", num_steps=4)
    assert make_model().config.search is None
    assert (make_model().search(*demonstrations).num_evaluations == 101).all()
    for wrong, message in (({"num_step": 3}, "did you mean `num_steps`"), ({"lr": -1.0}, "use a positive number")):
        with pytest.raises(Exception, match=message):
            LPNConfig(search=wrong)
    # The training loss has its own search: without one the mean of the other pairs is decoded.
    assert torch.equal(model(*demonstrations).loss, model(*demonstrations, search_config={"method": "mean"}).loss)


def test_a_type_without_arithmetic_is_told_before_a_search(caplog, monkeypatch):
    demonstrations, _ = make_tasks()
    monkeypatch.setattr(logging.getLogger("modeling_lpn"), "propagate", True)
    warning_once.cache_clear()  # another test may have seen it
    for capability, dtype, told in (
        ("AVX2", torch.float32, False),
        ("AVX512", torch.bfloat16, False),
        ("AVX2", torch.bfloat16, True),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        make_model().to(dtype).search(*demonstrations, num_steps=1)
        assert ("the weights are torch.bfloat16, and this CPU (AVX2) has no such arithmetic" in caplog.text) == told


def test_weights_that_give_no_numbers_are_reported(caplog, monkeypatch):
    model, (demonstrations, queries) = make_model(), make_tasks()
    monkeypatch.setattr(logging.getLogger("modeling_lpn"), "propagate", True)
    with torch.no_grad():
        model.decoder.grid_head.weight.fill_(torch.nan)
    output = model.generate(*demonstrations, *queries, num_steps=1)
    assert output.search_output.num_nonfinite.tolist() == output.search_output.num_evaluations.tolist() == [2, 2, 2]
    assert "6 of 6 log-likelihoods of the search are no finite number" in caplog.text
    assert "for 3 of 3 tasks none is" in caplog.text


def test_leave_one_out_ranks_by_what_searches_without_a_pair_reach_on_it():
    model, (demonstrations, _) = make_model(), make_tasks(batch=2, num_pairs=3)
    config = SearchConfig(num_steps=4, lr=0.5, num_samples=2, prior_weight=0.1)
    noise = {"generator": torch.Generator().manual_seed(0)}
    plain = model.search(*demonstrations, search_config=config, **noise)
    found = model.search(
        *demonstrations, search_config=config, rank_by="leave_one_out", generator=noise["generator"].manual_seed(0)
    )
    expected = torch.zeros(2, 3, 5)
    for pair in range(3):
        kept, held_out = [0, 1, 2][:pair] + [0, 1, 2][pair + 1 :], slice(pair, pair + 1)
        fold = model.search(
            *(tensor[:, kept] for tensor in demonstrations),
            search_config=config,
            generator=noise["generator"].manual_seed(0),
        )
        visited = fold.trajectory_latents.flatten(1, 2)
        values = model.log_prob(visited, *(tensor[:, held_out] for tensor in demonstrations))
        expected += values.detach().view(2, 3, 5) / 3
    assert close(found.trajectory_scores, expected, 1e-4)
    assert close(found.trajectory_latents, plain.trajectory_latents, 1e-5)
    best = expected.flatten(1).argmax(1)
    assert close(found.latents[:, 0], plain.trajectory_latents.flatten(1, 2)[[0, 1], best], 1e-5)
    assert close(found.log_probs[:, 0], plain.trajectory_log_probs.flatten(1)[[0, 1], best], 1e-4)
    assert found.num_evaluations.tolist() == (4 * plain.num_evaluations).tolist() == [60, 60]
    # Budget: 23 pays for 5 visited latents four times; a task with one pair has nothing to leave out.
    limited = SearchConfig(num_steps=9, rank_by="leave_one_out", max_evaluations=23)
    assert model.search(*demonstrations, search_config=limited).num_evaluations.tolist() == [20, 20]
    assert model.search(*demonstrations, search_config=limited, max_evaluations=3).num_evaluations.tolist() == [3, 3]
    single = [tensor[:, :1] for tensor in demonstrations]
    assert torch.equal(
        model.search(*single, search_config=limited).latents,
        model.search(*single, search_config=limited, rank_by="fit").latents,
    )
    with pytest.raises(ValueError, match="leaves pairs out itself"):
        model(*demonstrations, search_config=limited)


def test_grids_that_the_model_cannot_read_are_explained():
    model, (demonstrations, (queries, query_shapes)) = make_model(), make_tasks()
    inputs, outputs, input_shapes, output_shapes = demonstrations
    bright, dark = inputs.clone(), outputs.clone()
    bright[0, 0, 0, 0], dark[0, 0, 0, 0] = 10, -1
    with pytest.raises(ValueError, match="`input_grids` holds colours from 0 to 10; the model knows 0 to 9"):
        model(bright, outputs, input_shapes, output_shapes)
    with pytest.raises(ValueError, match="`output_grids` holds colours from -1 to 9"):
        model.encode(inputs, dark, input_shapes, output_shapes)
    large = torch.nn.functional.pad(queries, (0, 4))
    for shapes, grids in ((query_shapes + torch.tensor([0, 4]), large), (query_shapes + 4, queries)):
        with pytest.raises(ValueError, match="`query_shapes` reach from .* the model reads 1 x 1 to 6 x 5"):
            model.generate(*demonstrations, grids, shapes, method="mean")
    with pytest.raises(ValueError, match="`output_shapes` reach from 0 "):
        model.log_prob(torch.zeros(3, 1, 8), inputs, outputs, input_shapes, output_shapes * 0)


def test_demonstrations_are_made_and_checked_once(monkeypatch):
    model, (demonstrations, queries) = make_model(), make_tasks()
    calls, original = [], model._demonstrations
    monkeypatch.setattr(model, "_demonstrations", lambda *args: calls.append(1) or original(*args))
    model.generate(*demonstrations, *queries, num_steps=1)
    model(*demonstrations)
    assert len(calls) == 2


@pytest.mark.parametrize("variant", ["learned", "scaled"])
@pytest.mark.parametrize("device_map", [{"encoder": "cpu", "decoder": "disk"}, {"encoder": "disk", "decoder": "cpu"}])
def test_offloads_to_disk(variant, device_map, tmp_path):
    model, (demonstrations, queries) = make_model(variant), make_tasks()
    model.save_pretrained(tmp_path / "model")
    offloaded = LPNModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()
    outputs = [m.generate(*demonstrations, *queries, num_steps=2) for m in (model, offloaded)]
    assert close(outputs[0].search_output.log_probs, outputs[1].search_output.log_probs)
    assert torch.equal(outputs[0].output_grids, outputs[1].output_grids)


def test_input_embeddings_are_the_colours_of_the_encoder():
    model = make_model()
    table = torch.nn.Embedding(10, 16)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table is model.encoder.color_embedding


@pytest.mark.parametrize("config_says,visible", [(True, True), (False, True), (False, False)])
def test_hidden_states_and_tuples(config_says, visible):
    model = make_model(encoder_num_layers=3, latent_visible_to_input=visible)
    demonstrations, _ = make_tasks()
    plain = model(*demonstrations)
    assert plain.encoder_hidden_states is None and plain.decoder_hidden_states is None
    asked = {} if config_says else {"output_hidden_states": True}
    model.config.output_hidden_states = config_says
    output = model(*demonstrations, **asked)
    assert close(output.loss, plain.loss)
    encoder, decoder, width = output.encoder_hidden_states, output.decoder_hidden_states, 16
    longest = int(demonstrations[2].prod(-1).max() + demonstrations[3].prod(-1).max())
    assert [states.shape for states in encoder] == [(3, 4, 5 + longest, width)] * 3 + [(3, 4, 1, width)]
    assert len(decoder) == 3 and decoder[0].shape[:2] == decoder[2].shape[:2] == (3, 4)
    prefix, after = 2 + int(demonstrations[2].prod(-1).max()), 2 + int(demonstrations[3].prod(-1).max())
    assert [states.shape[2] for states in decoder] == [prefix + after, prefix + after, after]
    logits = model.decoder.row_head(model.decoder.row_norm(decoder[-1][:, :, 0]))
    assert close(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), demonstrations[3][..., 0].flatten() - 1),
        output.row_loss,
    )
    # The last states are what the heads read: the latent of a pair follows from that of its first token.
    read = model.encoder.norm(encoder[-1][:, :, 0])
    assert close(model.encoder.mean_proj(read), output.latent_mean)
    for task, pair in ((0, 0), (2, 3)):  # a pair alone, without padding
        alone = model.encode(*(tensor[task : task + 1, pair : pair + 1] for tensor in demonstrations), **asked)
        count = 5 + int(demonstrations[2][task, pair].prod())
        assert close(alone.hidden_states[1][0, 0, :count], encoder[1][task, pair, :count]), (task, pair)
    fields = model(*demonstrations, return_dict=False, **asked)
    assert isinstance(fields, tuple) and close(fields[0], plain.loss)
    assert isinstance(model.encode(*demonstrations, return_dict=False), tuple)
    with pytest.raises(ValueError, match="decodes a pair with several latents"):
        model(*demonstrations, search_config={"method": "all"}, **asked)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_a_plan_holds_no_numbers_of_numpy(count):
    """torch.compile makes tensors of them: a slice with one could not be traced by torch 2.11."""
    groups = group_pairs(np.full((count, 2, 2), 30), 256, 2**13, np.ones(count, dtype=np.int64))
    assert sum(part.stop - part.start for part in groups) == count
    assert {type(number) for part in groups for number in (part.start, part.stop)} == {int}
