"""CodeGen2 on an accelerator against float64 on the CPU; what needs no GPU for what it asks runs on the CPU too."""

import functools

import pytest
import torch
from cases_codegen2 import SIZES, token_ids
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import StaticCache

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM


GPU = pytest.param("cuda", marks=pytest.mark.gpu)
IDS = token_ids(3, 20)
MASK = torch.arange(20) >= torch.tensor([[0], [5], [9]])  # left padding
CASES = {
    "plain": {},
    "padded": {"attention_mask": MASK.long()},
    "prefix": {"prefix_length": torch.tensor([0, 4, 20])},
    "packed": {"position_ids": torch.arange(20).remainder(7).expand(3, -1)},
}


def make_model(dtype=torch.float32, device="cpu", implementation="sdpa"):
    """Heads of 16, which every fused kernel takes."""
    torch.manual_seed(0)
    sizes = {**SIZES, "n_embd": 64, "n_head": 4, "rotary_dim": 8, "mp_num": 1, "initializer_range": 0.1}
    model = CodeGen2ForCausalLM._from_config(CodeGen2Config(**sizes), attn_implementation=implementation).eval()
    return model.to(device, dtype)


def train(model, name):
    """Logits of real tokens, loss and gradients of a step, on the CPU in float64."""
    case = {key: value.to(model.device) for key, value in CASES[name].items()}
    # A first real token has padding before it, whose hidden state means nothing.
    labels = IDS.masked_fill(~(MASK & MASK.roll(1, 1)), -100) if name == "padded" else IDS
    output = model(IDS.to(model.device), labels=labels.to(model.device), use_cache=False, **case)
    output.loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    logits = output.logits.detach().cpu()[MASK if name == "padded" else torch.ones_like(MASK)]
    return [value.detach().double().cpu() for value in (logits, output.loss, gradients)]


@functools.cache
def train_in_float64(name):
    return train(make_model(torch.float64), name)


def relative_errors(found, name):
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, train_in_float64(name), strict=True)]


@pytest.mark.parametrize(
    "implementation,device",
    [
        ("sdpa", "cpu"),
        ("eager", "cpu"),
        *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("sdpa", "eager", "flex_attention")),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_a_training_step_is_that_of_float64(name, implementation, device):
    found = train(make_model(device=device, implementation=implementation), name)
    assert max(relative_errors(found, name)) < 1e-4


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_has_the_direction_of_float64(name, device):
    *_, gradients = found = train(make_model(torch.bfloat16, device), name)
    assert max(relative_errors(found, name)[:2]) < 0.05
    assert float(torch.nn.functional.cosine_similarity(gradients, train_in_float64(name)[2], 0)) > 0.99


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_plain_batch_runs_by_the_flash_kernel(device):
    """No mask is made where there is nothing to hide, which that kernel could not take: it raises."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = train(make_model(torch.bfloat16, device), "plain")
    assert max(relative_errors(found, "plain")[:2]) < 0.05


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), GPU])
@pytest.mark.parametrize("name", ["plain", "prefix"])
def test_a_compiled_model_is_that_of_float64(name, device):
    torch.compiler.reset()
    model = make_model(device=device)
    model.forward = torch.compile(model.forward, fullgraph=True)
    assert max(relative_errors(train(model, name), name)) < 1e-4


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_generation_is_that_of_float64_with_either_cache(device):
    wanted = make_model(torch.float64)
    model, settings = make_model(device=device), {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    settings |= {"eos_token_id": None}
    mask = MASK.long()
    expected = wanted.generate(IDS, attention_mask=mask, **settings)
    for cache in ({}, {"past_key_values": StaticCache(config=model.config, max_cache_len=40)}):
        found = model.generate(IDS.to(device), attention_mask=mask.to(device), **settings, **cache)
        assert torch.equal(found.cpu(), expected)
