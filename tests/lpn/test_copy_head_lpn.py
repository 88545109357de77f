"""The copy head and the cells before a cell: against loops, in cached decoding, beside batch mates, what they are for."""

import pytest
import torch
from cases_lpn import draw_zeros

from modeling_lpn import LPNConfig, LPNModel, StringProcessor
from modeling_lpn.lpn.modeling_lpn import Scoring
from modeling_lpn.lpn.plan_lpn import grouping_of
from modeling_lpn.lpn.transformer_lpn import CopiedCells, GridPairs, LPNCopyHead


POSITIONS = ("learned", "scaled", "rotary")


def make_model(positions="rotary", attention="sdpa", **settings):
    torch.manual_seed(0)
    sizes = {"max_rows": 1, "max_cols": 12, "vocab_size": 96, "encoder_num_heads": 2, "decoder_num_heads": 2}
    config = LPNConfig(**{**sizes, "decoder_position_embedding_type": positions, "copy_inputs": True, **settings})
    return draw_zeros(LPNModel._from_config(config, attn_implementation=attention).eval())


def make_batch(words):
    """One task a word, with inputs of different lengths."""
    tasks = [
        {
            "train": [{"input": word, "output": word[::-1]}, {"input": word * 2, "output": word}],
            "test": [{"input": "x" + word}],
        }
        for word in words
    ]
    return StringProcessor(12)(tasks)


def test_against_loops():
    model = make_model("learned")
    head, size = model.decoder.copy_head, model.config.decoder_stack.hidden_size
    states, cells = torch.randn(2, 3, size), torch.randn(2, 4, size)
    colors, mask = torch.randint(0, 96, (2, 4)), torch.tensor([[True] * 4, [True, True, False, False]])
    logits = head(states, None, head.keys(cells, None), CopiedCells(colors, mask))
    expected = torch.zeros(2, 3, 96)
    for row in range(2):
        for token in range(3):
            query, scale = head.q_proj(head.norm(states[row, token])), head.scale_proj(head.norm(states[row, token]))
            real = [cell for cell in range(4) if mask[row, cell]]
            scores = torch.stack([query @ head.k_proj(head.norm(cells[row, cell])) * head.scaling for cell in real])
            for cell, weight in zip(real, scores.softmax(0), strict=True):
                expected[row, token, colors[row, cell]] += LPNCopyHead.MAX_SCALE * scale.sigmoid()[0] * weight
    torch.testing.assert_close(logits, expected)


def test_a_cell_carries_those_before_it_on_its_row():
    model = make_model(num_previous_cells=2, max_rows=3)
    colors, cols = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 2, 0, 1]])  # rows of three and of two cells
    table, none, width = model.encoder.previous_embedding.weight, 96, 97
    expected = [(none, none), (5, none), (6, 5), (none, none), (8, none)]
    indices = model.encoder.previous_cells(colors, cols)
    assert indices[0].tolist() == [[near, width + far] for near, far in expected]
    positions = torch.stack([torch.tensor([[0, 0, 0, 1, 1]]), cols], -1)
    added = model.encoder.embed_cells(colors, positions, 0, indices) - model.encoder.embed_cells(
        colors, positions, 0, None
    )
    torch.testing.assert_close(
        added[0], torch.stack([table[near] + table[width + far] for near, far in expected]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"latent_visible_to_input": False}, {"num_previous_cells": 2, "max_rows": 3}],
    ids=["", "blind_input", "previous_cells"],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cached_decoding_writes_what_one_pass_scores_best(positions, attention, settings):
    model, batch = make_model(positions, attention, **settings), make_batch(["abc", "de", "fghij"])
    output = model.generate(**batch, num_steps=1)
    extra = (0, 12 - batch["query_grids"].shape[-1], 0, settings.get("max_rows", 1) - 1)
    pairs = GridPairs(
        torch.nn.functional.pad(batch["query_grids"][:, 0], extra),
        output.output_grids[:, 0, 0],
        batch["query_shapes"][:, 0],
        output.output_shapes[:, 0, 0],
    )
    sizes = torch.stack([pairs.input_shapes, pairs.output_shapes], 1).numpy()
    for chunk in model._decoder_chunks(Scoring(pairs, grouping_of(sizes, torch.device("cpu"))), share=False):
        assert model._reproduces(output.latents[chunk.rows[:, 0], 0, :1], chunk).all()


def test_the_cells_before_a_cell_say_nothing_in_a_new_model():
    torch.manual_seed(0)
    model = LPNModel(LPNConfig(num_previous_cells=2))
    tables = [side.previous_embedding.weight for side in (model.encoder, model.decoder)]
    assert not any(table.any() for table in tables) and model.encoder.color_embedding.weight.std() > 0.05
    model(
        torch.ones(1, 2, 3, 3, dtype=int), torch.ones(1, 2, 3, 3, dtype=int), *2 * [torch.full((1, 2, 2), 3)]
    ).loss.backward()
    assert all(table.grad.any() for table in tables)


@pytest.mark.parametrize("num_previous_cells", [0, 2])
def test_batch_mates_change_nothing(num_previous_cells):
    model, words = make_model(num_previous_cells=num_previous_cells), ["abc", "de", "fghij"]
    together = model.search(**{n: t for n, t in make_batch(words).items() if "query" not in n}, num_steps=2)
    for index, word in enumerate(words):
        alone = model.search(**{n: t for n, t in make_batch([word]).items() if "query" not in n}, num_steps=2)
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[index], atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter_through_a_searched_loss():
    model = make_model(attention="eager").train()
    batch = {name: tensor for name, tensor in make_batch(["abc", "de"]).items() if "query" not in name}
    model(**batch, search_config={"method": "gradient", "num_steps": 1, "second_order": True}).loss.backward()
    for name, parameter in model.decoder.copy_head.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_without_it_a_model_is_what_it_was():
    plain, copying = make_model(copy_inputs=False), make_model()
    names = set(copying.state_dict()) - set(plain.state_dict())
    assert names == {f"decoder.copy_head.{name}.weight" for name in ("q_proj", "k_proj", "scale_proj")}
    copying.load_state_dict(plain.state_dict(), strict=False)
    batch = {name: tensor for name, tensor in make_batch(["abc"]).items() if "query" not in name}
    with torch.no_grad():
        copying.decoder.copy_head.MAX_SCALE = 0.0
        torch.testing.assert_close(copying(**batch).loss, plain(**batch).loss)


def test_it_learns_to_copy():
    """Reversed random strings, each character new: without copying there is nothing to learn but the frequencies."""
    losses = {}
    for copies in (False, True):
        model = make_model(copy_inputs=copies, decoder_num_layers=2, encoder_num_layers=1).train()
        optimizer, generator = torch.optim.AdamW(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
        for _ in range(60):
            grids = torch.randint(1, 96, (32, 2, 1, 4), generator=generator)
            shapes = torch.tensor([1, 4]).expand(32, 2, 2)
            loss = model(grids, grids.flip(-1), shapes, shapes).grid_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[copies] = float(loss.detach())
    assert losses[True] < losses[False] - 1.0


@pytest.mark.slow
def test_the_cells_before_a_cell_help_to_go_on_copying():
    """Eight characters from some place of the input, of eight letters: where to read next follows from the last two written."""
    losses: dict[int, list] = {0: [], 2: []}
    for count in (0, 2):
        sizes = {"max_cols": 16, "encoder_num_layers": 1, "decoder_num_layers": 2, "rope_max_frequency": 16.0}
        model = make_model(num_previous_cells=count, **sizes).train()
        if count:  # as a new model begins
            for side in (model.encoder, model.decoder):
                torch.nn.init.zeros_(side.previous_embedding.weight)
        optimizer, generator = torch.optim.AdamW(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
        for _ in range(250):
            inputs = torch.randint(1, 9, (32, 2, 1, 16), generator=generator)
            places = torch.randint(0, 9, (32, 2, 1, 1), generator=generator) + torch.arange(8)
            shapes = torch.tensor([1, 16]).expand(32, 2, 2), torch.tensor([1, 8]).expand(32, 2, 2)
            loss = model(inputs, inputs.gather(3, places), *shapes).grid_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[count].append(float(loss.detach()))
    assert losses[2][-1] < 0.8  # nats; what is left is mostly the first two characters
    assert sum(losses[2][-100:]) / 100 < sum(losses[0][-100:]) / 100 - 0.1
