"""
Speed of transformers models on a CPU, opt-in: products for which PyTorch's own choice is slow there.

Uses private operators of PyTorch (oneDNN), which is why it stands apart from the models. `recipes/benchmarks/codegen2.py`
measures what each trick buys, with and without it in one run.
"""

import types

import torch
from torch import nn
from torch.library import custom_op
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


HAS_ONEDNN = torch.backends.mkldnn.is_available()
SLOW_DTYPES = set()  # half precision for whose products PyTorch has no fast kernel on this CPU
if HAS_ONEDNN and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    SLOW_DTYPES.add(torch.bfloat16)
if HAS_ONEDNN and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
    SLOW_DTYPES.add(torch.float16)
MAX_ROWS = 16  # as many rows oneDNN multiplies with a weight in the time of one
ATTENTION = "cpu_sdpa"


def speed_up_on_cpu(model: PreTrainedModel) -> PreTrainedModel:
    """
    Makes a model faster on a CPU, in place; on other devices, and under autocast, it computes as before.

    - Plain `nn.Linear` layers multiply up to 16 float32 rows (decoding a batch) by oneDNN, which reads the weights at the
      memory's speed; in half precision that this CPU has no arithmetic for, more rows by float32 products, forward and
      backward, see [`UpcastLinear`]. Sharded and quantised layers stay as they are.
    - Training with `sdpa` attention in half precision that this CPU has no arithmetic for runs the kernel in float32.

    The layers stay `nn.Linear` with their parameters, so saving, LoRA and quantisation by type see what they saw before.
    Calling it twice changes nothing more.

    Args:
        model (`PreTrainedModel`): any transformers model.

    Returns:
        `PreTrainedModel`: the model itself.

    Example:

    ```python
    >>> from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM
    >>> from modeling_lpn.cpu import speed_up_on_cpu

    >>> config = CodeGen2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, rotary_dim=8)
    >>> model = speed_up_on_cpu(CodeGen2ForCausalLM(config))

    ```
    """
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.forward = types.MethodType(_linear_forward, layer)
    if model._supports_attention_backend and model.config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention_forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(ATTENTION)
    return model


def _linear_forward(layer: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    multiply = _fast_product(layer, input)
    if multiply is None:
        return nn.functional.linear(input, layer.weight, layer.bias)
    output = multiply(input.reshape(-1, layer.in_features), layer.weight, layer.bias)
    return output.view(*input.shape[:-1], layer.out_features)


def _fast_product(layer: nn.Linear, input: torch.Tensor):
    """The product that is faster than PyTorch's own for this input, or `None`."""
    dtype, few_rows = input.dtype, input.numel() <= MAX_ROWS * layer.in_features
    if (
        input.device.type != "cpu"
        or dtype != layer.weight.dtype
        or type(layer.weight) is not nn.Parameter  # sharded or quantised
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    if few_rows and dtype == torch.float32 and HAS_ONEDNN and not torch.is_grad_enabled():
        return torch.ops.modeling_lpn.few_rows_linear if torch.compiler.is_compiling() else few_rows_linear
    return UpcastLinear.apply if dtype in SLOW_DTYPES and not few_rows else None


def few_rows_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`nn.functional.linear` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


# An operator for `torch.compile`, whose own rule for oneDNN's product wants weights that never change.
if HAS_ONEDNN:
    custom_op("modeling_lpn::few_rows_linear", few_rows_linear, mutates_args=()).register_fake(
        lambda rows, weight, bias: rows.new_empty(rows.shape[0], weight.shape[0])
    )


UPCAST_BLOCK = 4096  # rows of a weight that are brought to float32 at a time


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + UPCAST_BLOCK) for start in range(0, size, UPCAST_BLOCK)]


class UpcastLinear(torch.autograd.Function):
    """
    `nn.functional.linear` of half-precision factors by float32 products, forward and backward.

    The result is that of half-precision products that accumulate in float32. Saves the factors as they are, and makes
    no float32 copy of a whole large weight.
    """

    @staticmethod
    def forward(rows, weight, bias):
        output, wide_rows = rows.new_empty(rows.shape[0], weight.shape[0]), rows.float()
        for block in _blocks(weight.shape[0]):
            wide_bias = None if bias is None else bias[block].float()
            output[:, block] = nn.functional.linear(wide_rows, weight[block].float(), wide_bias)
        return output

    @staticmethod
    def setup_context(ctx, inputs, output):
        rows, weight, _ = inputs
        ctx.save_for_backward(rows, weight)

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        grad_rows = torch.zeros_like(rows, dtype=torch.float32) if of_rows else None
        grad_weight, wide_rows = (torch.empty_like(weight), rows.float()) if of_weight else (None, None)
        for block in _blocks(weight.shape[0]):
            wide_grad = grad[:, block].float()
            if of_rows:
                grad_rows.addmm_(wide_grad, weight[block].float())
            if of_weight:
                grad_weight[block] = wide_grad.t() @ wide_rows
        return grad_rows.to(rows.dtype) if of_rows else None, grad_weight, grad.sum(0) if of_bias else None


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sdpa` attention of `(batch, heads, length, head_dim)` states, by a faster way where this CPU has one."""
    slow = query.device.type == "cpu" and query.requires_grad and query.dtype in SLOW_DTYPES
    attend = upcast_attention if slow else ALL_ATTENTION_FUNCTIONS["sdpa"]
    return attend(module, query, key, value, attention_mask, **kwargs)


def upcast_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`sdpa` in float32: in slow half precision the backward pass of the CPU kernel takes ten times as long."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    wide = (states.float() for states in (query, key, value))
    attended, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *wide, attention_mask, **kwargs)
    return attended.to(value.dtype), weights


__all__ = ["speed_up_on_cpu"]
