"""
LPN on an accelerator against float64 on the CPU. The tests that need no GPU for what they ask run on the CPU too, so that
the first run on a GPU meets no trivial mistake.
"""

import contextlib
import functools

import pytest
import torch

from modeling_lpn import (
    DataCollatorForGridTasks,
    LPNConfig,
    LPNModel,
    LPNProcessor,
    PatternTask,
    SearchConfig,
    TaskStream,
)
from modeling_lpn.runs import prepare_compilation


GPU = pytest.param("cuda", marks=pytest.mark.gpu)
SEARCHES = {
    "mean": None,
    "gradient": SearchConfig(num_steps=2, lr=0.5),
    "second_order": SearchConfig(num_steps=1, lr=0.5, second_order=True),
    "random": SearchConfig(method="random", num_samples=3),
    "evolution": SearchConfig(method="evolution", num_samples=3, population_size=2),
    "all": SearchConfig(method="all"),
}


def make_model():
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("num_layers", "num_heads")}
    sizes |= {f"{side}_head_dim": 16 for side in ("encoder", "decoder")}
    return LPNModel(LPNConfig(max_rows=4, max_cols=4, latent_dim=8, **sizes)).eval()


def make_batch(device="cpu"):
    """A collated batch, with its plan, and queries."""
    stream = TaskStream(PatternTask(num_pairs=3, num_rows=4, num_cols=4, pattern_size=2), 2, 0)
    batch = DataCollatorForGridTasks(LPNProcessor(4, 4))([stream[0], stream[1]])
    batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    return batch, {"query_grids": batch["input_grids"][:, :1], "query_shapes": batch["input_shapes"][:, :1]}


def train(model, batch, search, dtype=torch.float32):
    """Loss and gradients of a step whose noise is given, on the CPU in float64."""
    noise = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).to(model.device, model.dtype)
    samples = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(2)).to(noise)
    more = {"search_noise": samples} if search is not None and search.spec.budget == "num_samples" else {}
    model.zero_grad()
    loss = model(**batch, search_config=search, sample_latents=True, latent_noise=noise, **more).loss
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return loss.detach().double().cpu(), gradients.double().cpu()


@functools.cache
def train_in_float64(name):
    return train(make_model().double(), make_batch()[0], SEARCHES[name])


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_training_step_is_that_of_float64(name, device):
    loss, gradients = train(make_model().to(device), make_batch(device)[0], SEARCHES[name])
    wanted_loss, wanted_gradients = train_in_float64(name)
    assert relative_error(loss, wanted_loss) < 1e-5
    assert relative_error(gradients, wanted_gradients) < 1e-3


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", ["gradient", "random", "evolution"])
def test_a_search_and_its_grids_are_those_of_float64(name, device):
    found = []
    for model, where in ((make_model().to(device), device), (make_model().double(), "cpu")):
        batch, queries = make_batch(where)
        generator = torch.Generator().manual_seed(0)
        found.append(
            model.generate(**batch, **queries, search_config=SEARCHES[name], generator=generator, num_candidates=2)
        )
    for field, tolerance in (("trajectory_log_probs", 1e-5), ("latents", 1e-3)):
        ours, wanted = (getattr(output.search_output, field).double().cpu() for output in found)
        assert relative_error(ours, wanted) < tolerance, field
    assert torch.equal(found[0].output_grids.cpu(), found[1].output_grids)
    assert found[0].output_grids.any()


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", ["mean", "gradient"])
def test_bfloat16_autocast_has_the_direction_of_float64(name, device):
    with torch.autocast(device, torch.bfloat16):
        loss, gradients = train(make_model().to(device), make_batch(device)[0], SEARCHES[name])
    wanted_loss, wanted_gradients = train_in_float64(name)
    assert relative_error(loss, wanted_loss) < 0.01
    assert float(torch.nn.functional.cosine_similarity(gradients, wanted_gradients, 0)) > 0.99


@contextlib.contextmanager
def waiting_is_an_error():
    """CUDA only: an operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", SEARCHES)
def test_a_planned_training_step_never_waits_for_the_gpu(name):
    """The whole step: forward with search, backward, clipping, fused optimiser."""
    model, (batch, _) = make_model().cuda().train(), make_batch("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch, search_config=SEARCHES[name]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # libraries and workspaces are made
    with waiting_is_an_error():
        step()
    with pytest.raises(RuntimeError, match="synchroniz"), waiting_is_an_error():
        batch["input_grids"].max().item()  # so that the test can fail


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
@pytest.mark.parametrize("name", ["mean", "gradient"])
def test_compiled_layers_are_those_of_float64(name, device):
    torch.compiler.reset()
    prepare_compilation()
    model = make_model().to(device)
    model.compile_layers()
    loss, gradients = train(model, make_batch(device)[0], SEARCHES[name])
    wanted_loss, wanted_gradients = train_in_float64(name)
    assert relative_error(loss, wanted_loss) < 1e-5
    assert relative_error(gradients, wanted_gradients) < 1e-3


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
@pytest.mark.parametrize("name", ["mean", "gradient"])
def test_a_step_compiled_as_a_whole_is_that_of_float64(name, device):
    torch.compiler.reset()
    prepare_compilation()
    mode = "reduce-overhead" if device == "cuda" else "default"
    model = torch.compile(make_model().to(device), fullgraph=True, mode=mode)
    for _ in range(3):  # CUDA graphs are recorded in the second and replayed in the third
        loss, gradients = train(model, make_batch(device)[0], SEARCHES[name])
    wanted_loss, wanted_gradients = train_in_float64(name)
    assert relative_error(loss, wanted_loss) < 1e-5
    assert relative_error(gradients, wanted_gradients) < 1e-3


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
def test_a_compiled_search_is_that_of_float64(device):
    torch.compiler.reset()
    prepare_compilation()
    model, search = make_model().to(device), SearchConfig(num_steps=5, lr=0.5)
    model.compile_search(mode="reduce-overhead" if device == "cuda" else "default")
    batch, _ = make_batch(device)
    found = model.search(**batch, search_config=search)  # steps 2 to 5 warm up, record and replay a CUDA graph
    wanted = make_model().double().search(**make_batch()[0], search_config=search)
    for field, tolerance in (("trajectory_log_probs", 1e-5), ("trajectory_latents", 1e-3)):
        assert relative_error(found[field].double().cpu(), wanted[field]) < tolerance, field
