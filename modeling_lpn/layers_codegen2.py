"""The products of CodeGen2 for which PyTorch's own choice is imprecise or, on a CPU, slow."""

import torch
from torch import nn


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention with the scores spelled out in float32, as the original code; returns them as well."""
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def single_query_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """Attention of one query per row, with the masks of `sdpa`: boolean (True where it may look) or additive."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3)).float()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(torch.float32).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value).transpose(1, 2), None


_HAS_ONEDNN = torch.backends.mkldnn.is_available()


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
            and not torch.compiler.is_compiling()  # inductor has its own choice of kernels
            and not torch.is_autocast_enabled("cpu")
            and _HAS_ONEDNN
        ):
            rows = input.reshape(-1, self.in_features)
            output = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
            return output.view(*input.shape[:-1], self.out_features)
        return super().forward(input)
