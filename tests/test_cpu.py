"""Speed of models on a CPU: each fast product against PyTorch's own, and what stays as it was."""

import copy
import types

import pytest
import torch
from cases_codegen2 import left_padded, tiny_model, token_ids
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_lpn import cpu
from modeling_lpn.cpu import speed_up_on_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 16, 17])
def test_linear_layer_equals_the_plain_one(dtype, rows):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40).to(dtype)
    layer.forward = types.MethodType(cpu._linear_forward, layer)
    inputs = torch.randn(rows, 1, 24, dtype=dtype)
    with torch.no_grad():
        expected = nn.functional.linear(inputs, layer.weight, layer.bias)
        torch.testing.assert_close(layer(inputs), expected)
        torch.testing.assert_close(layer(inputs[:, 0]), expected[:, 0])
    layer(inputs).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_upcast_linear_rounds_float32_products_once(monkeypatch, dtype, has_bias):
    monkeypatch.setattr(cpu, "UPCAST_BLOCK", 16)  # 40 outputs: two whole blocks and a part
    torch.manual_seed(0)
    factors = [torch.randn(20, 24), torch.randn(40, 24)] + ([torch.randn(40)] if has_bias else [])
    half = [factor.to(dtype).requires_grad_() for factor in factors]
    wide = [factor.detach().float().requires_grad_() for factor in half]
    ours, plain = cpu.UpcastLinear.apply(*half, *[None] * (not has_bias)), nn.functional.linear(*wide)
    torch.testing.assert_close(ours, plain.to(dtype))
    grad = torch.randn(20, 40).to(dtype)
    ours.backward(grad)
    plain.backward(grad.float())
    for factor, reference in zip(half, wide, strict=True):
        torch.testing.assert_close(factor.grad, reference.grad.to(dtype))
    frozen = cpu.UpcastLinear.apply(half[0], *[factor.detach() for factor in half[1:]], *[None] * (not has_bias))
    (grad_rows,) = torch.autograd.grad(frozen, half[0], grad)
    assert torch.equal(grad_rows, half[0].grad)


@pytest.mark.parametrize("masked", [None, torch.bool, torch.bfloat16])
def test_upcast_attention_equals_the_kernel(masked):
    torch.manual_seed(0)
    states = [torch.randn(3, 2, 9, 8).bfloat16().requires_grad_() for _ in range(3)]
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)
    masks = {None: None, torch.bool: mask, torch.bfloat16: torch.where(mask, 0.0, -100.0).bfloat16()}
    module = tiny_model().transformer.h[0].attn  # causal where no mask is given
    ours = cpu.upcast_attention(module, *states, masks[masked], scaling=0.3)[0]
    kernel = nn.functional.scaled_dot_product_attention(*states, attn_mask=mask, scale=0.3).transpose(1, 2)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, kernel, atol=0.02, rtol=0)
    grad = torch.randn_like(ours)
    for got, wanted in zip(
        torch.autograd.grad(ours, states, grad), torch.autograd.grad(kernel, states, grad), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backend", [None, "eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_half_precision_trains_as_float32(backend):
    torch.compiler.reset()
    wide, ids = tiny_model().train(), token_ids(4, 24)
    wide.load_state_dict({name: weight.bfloat16() for name, weight in wide.state_dict().items()})
    half = speed_up_on_cpu(copy.deepcopy(wide).bfloat16())
    forward = torch.compile(half.forward, fullgraph=True, backend=backend) if backend else half.forward
    forward(ids, labels=ids).loss.backward()
    wide(ids, labels=ids).loss.backward()
    for ours, reference in zip(half.parameters(), wide.parameters(), strict=True):
        error = (ours.grad.float() - reference.grad).norm() / reference.grad.norm()
        assert error < 0.05


def tiny_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, num_attention_heads=4, **sizes)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny_model, tiny_llama])
@torch.no_grad()
def test_a_sped_up_model_computes_the_same(make, dtype):
    (ids, mask), plain = left_padded(), make().to(dtype)
    fast = speed_up_on_cpu(speed_up_on_cpu(copy.deepcopy(plain)))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    outputs = []
    for model in (plain, fast):
        cache = model(ids[:, :11], attention_mask=mask[:, :11], use_cache=True).past_key_values
        step = model(ids[:, 11:], attention_mask=mask, past_key_values=cache).logits
        outputs.append((model(ids, attention_mask=mask).logits[:, -1], step[:, 0]))
    for ours, reference in zip(*reversed(outputs), strict=True):
        torch.testing.assert_close(ours.float().softmax(-1), reference.float().softmax(-1), atol=tolerance, rtol=0)


def test_what_is_saved_and_adapted_is_what_it_was(tmp_path):
    plain = tiny_model()
    fast = speed_up_on_cpu(copy.deepcopy(plain))
    assert [type(layer) for layer in fast.modules()] == [type(layer) for layer in plain.modules()]
    fast.save_pretrained(tmp_path / "fast")
    plain.save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
