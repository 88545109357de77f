"""The rotary embedding of CodeGen2, and the products for which PyTorch's own choice is imprecise or, on a CPU, slow."""

import torch
from torch import nn
from torch.library import custom_op


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


_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def few_rows_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`nn.functional.linear` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


# An operator for `torch.compile`, whose own rule for oneDNN's product wants weights that never change. This file may be loaded
# twice, once from a repository of the Hub.
if _HAS_ONEDNN and not hasattr(torch.ops.modeling_lpn, "few_rows_linear"):
    custom_op("modeling_lpn::few_rows_linear", few_rows_linear, mutates_args=()).register_fake(
        lambda rows, weight, bias: rows.new_empty(rows.shape[0], weight.shape[0])
    )


class CodeGen2Linear(nn.Linear):
    """
    A linear layer that is fast for a few rows on a CPU.

    Decoding multiplies one row per sequence with every weight. For two to `MAX_ROWS` float32 rows PyTorch's own choice
    reads the weights at half of the memory's speed, so that a batch of four takes twice as long as one row; oneDNN
    takes about the same time for all of them.
    """

    MAX_ROWS = 16

    def forward(self, input):
        if (
            input.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and input.numel() <= self.MAX_ROWS * self.in_features
            and not torch.is_grad_enabled()
            and type(self.weight) is nn.Parameter  # neither sharded nor quantised
            and not torch.is_autocast_enabled("cpu")
            and _HAS_ONEDNN
        ):
            compiling = torch.compiler.is_compiling()
            linear = torch.ops.modeling_lpn.few_rows_linear if compiling else few_rows_linear
            output = linear(input.reshape(-1, self.in_features), self.weight, self.bias)
            return output.view(*input.shape[:-1], self.out_features)
        return super().forward(input)
