"""The rotary embedding of CodeGen2, and the products for which PyTorch's own choice is imprecise or, on a CPU, slow."""

import torch
from torch import nn
from torch.library import custom_op
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_SLOW_DTYPES = set()  # half precision for whose products PyTorch has no fast kernel on this CPU
if _HAS_ONEDNN and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _SLOW_DTYPES.add(torch.bfloat16)
if _HAS_ONEDNN and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
    _SLOW_DTYPES.add(torch.float16)


def rotary_angles(position_ids, rotary_dim):
    """Cosines and sines, `(batch, length, rotary_dim / 2)` in float32, of the base-10000 rotary embedding."""
    # Computed anew in every forward pass: a non-persistent buffer would hold garbage after `from_pretrained`.
    exponent = torch.arange(0, rotary_dim, 2, device=position_ids.device).float() / rotary_dim
    angles = position_ids[..., None].float() * (1.0 / 10000**exponent)
    return angles.cos(), angles.sin()


def rotate_pairs(states, cos, sin):
    """
    Rotates adjacent channel pairs (2i, 2i + 1) of the first `rotary_dim` channels, in float32 as the original code.

    Args:
        states (`torch.Tensor` of shape `(..., length, head_dim)`): queries or keys.
        cos, sin (`torch.Tensor` of shape `(..., length, rotary_dim / 2)`): see `rotary_angles`.

    Returns:
        `torch.Tensor`: contiguous, of the shape and dtype of `states`.
    """
    rotary_dim = 2 * cos.shape[-1]
    even, odd = states[..., 0:rotary_dim:2], states[..., 1:rotary_dim:2]
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(states.dtype)
    if rotary_dim == states.shape[-1]:
        return rotated
    return torch.cat((rotated, states[..., rotary_dim:]), dim=-1)


def _masked(scores, attention_mask):
    """Scores under a mask, boolean (True where a query may look) as those of `sdpa`, or additive."""
    if attention_mask is None:
        return scores
    if attention_mask.dtype == torch.bool:
        return scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return scores + attention_mask


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention with the scores spelled out in float32, as the original code; returns them as well."""
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)) * scaling
    weights = _masked(scores, attention_mask).softmax(dim=-1).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def single_query_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """Attention of one query per row, in half precision."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3)).float()
    weights = _masked(scores, attention_mask).softmax(dim=-1).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2), None


def upcast_attention_forward(module, query, key, value, attention_mask, **kwargs):
    """`sdpa` in float32: in slow half precision the backward pass of the CPU kernel takes ten times as long."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    wide = (states.float() for states in (query, key, value))
    attended, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *wide, attention_mask, **kwargs)
    return attended.to(value.dtype), weights


def faster_than_sdpa(query):
    """The attention of `(batch, heads, length, head_dim)` queries that is faster than `sdpa`, or `None`."""
    if query.device.type != "cpu" or query.dtype not in (torch.bfloat16, torch.float16):
        return None
    if query.shape[2] == 1:  # the kernel packs all keys: 5 to 10 times slower than two products
        return single_query_attention_forward
    return upcast_attention_forward if query.requires_grad and query.dtype in _SLOW_DTYPES else None


def few_rows_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`nn.functional.linear` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


# An operator for `torch.compile`, whose own rule for oneDNN's product wants weights that never change. This file may be loaded
# twice, once from a repository of the Hub.
if _HAS_ONEDNN and not hasattr(torch.ops.modeling_lpn, "few_rows_linear"):
    custom_op("modeling_lpn::few_rows_linear", few_rows_linear, mutates_args=()).register_fake(
        lambda rows, weight, bias: rows.new_empty(rows.shape[0], weight.shape[0])
    )


UPCAST_BLOCK = 4096  # rows of a weight that are brought to float32 at a time


def _blocks(size):
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


class CodeGen2Linear(nn.Linear):
    """
    A linear layer that is fast on a CPU where PyTorch's own choice is not.

    Decoding multiplies one row per sequence with every weight. For two to `MAX_ROWS` float32 rows PyTorch's own choice
    reads the weights at half of the memory's speed, so that a batch of four takes twice as long as one row; oneDNN
    takes about the same time for all of them. More rows in half precision take six times as long as in float32 on a
    CPU that has no such arithmetic: see `UpcastLinear`.
    """

    MAX_ROWS = 16

    def forward(self, input):
        linear = self._fast_linear(input)
        if linear is None:
            return super().forward(input)
        output = linear(input.reshape(-1, self.in_features), self.weight, self.bias)
        return output.view(*input.shape[:-1], self.out_features)

    def _fast_linear(self, input):
        dtype, few_rows = input.dtype, input.numel() <= self.MAX_ROWS * self.in_features
        if (
            input.device.type != "cpu"
            or dtype != self.weight.dtype
            or type(self.weight) is not nn.Parameter  # sharded or quantised
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        if few_rows and dtype == torch.float32 and _HAS_ONEDNN and not torch.is_grad_enabled():
            return torch.ops.modeling_lpn.few_rows_linear if torch.compiler.is_compiling() else few_rows_linear
        return UpcastLinear.apply if dtype in _SLOW_DTYPES and not few_rows else None
