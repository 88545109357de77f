# Copyright 2026 The modeling_lpn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Next-token cross-entropy without copies of the logits."""

from typing import Any

import torch
from torch import nn


# Logits of this many elements are brought to float32 at a time by the loss: large enough to keep a GPU busy, small
# enough (32 MB) to vanish beside the logits themselves.
LOSS_CHUNK_ELEMENTS = 2**23


class ChunkedCrossEntropy(torch.autograd.Function):
    """
    Cross-entropies `(rows,)` of `logits` `(rows, vocab)` at `targets` `(rows,)`, 0 where those equal `ignore_index`.
    Float32 arithmetic on a few rows at a time: the forward pass keeps the log-normalisers `(rows,)` where
    `cross_entropy(logits.float())` keeps a second, float32 copy of the logits, and the backward pass builds no float32
    gradient.
    """

    @staticmethod
    def forward(logits: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        log_norms = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
        chunk = max(1, LOSS_CHUNK_ELEMENTS // logits.shape[-1])
        for rows, norms in zip(logits.split(chunk), log_norms.split(chunk), strict=True):
            torch.logsumexp(rows.float(), dim=-1, out=norms)
        picked = logits.gather(-1, targets.clamp(min=0)[:, None])[:, 0].float()
        return torch.where(targets == ignore_index, 0.0, log_norms - picked), log_norms

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, targets, ctx.ignore_index = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, targets, output[1])

    @staticmethod
    def backward(ctx: Any, grad_losses: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, targets, log_norms = ctx.saved_tensors
        grad = torch.empty_like(logits)
        chunk = max(1, LOSS_CHUNK_ELEMENTS // logits.shape[-1])
        weights = torch.where(targets == ctx.ignore_index, 0.0, grad_losses.float())
        for i in range(0, logits.shape[0], chunk):
            rows = slice(i, i + chunk)
            probabilities = (logits[rows].float() - log_norms[rows, None]).exp_()
            probabilities.scatter_add_(-1, targets[rows, None].clamp(min=0), -torch.ones_like(log_norms[rows, None]))
            grad[rows] = probabilities.mul_(weights[rows, None])
        return grad, None, None


def token_losses(
    logits: torch.Tensor,
    labels: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Next-token cross-entropy of every position, in float32 and without a second copy of the logits.

    Args:
        logits (`torch.Tensor` of shape `(batch, length, vocab_size)`): scores of any float type.
        labels (`torch.LongTensor` of shape `(batch, length)`): target ids before the shift, `ignore_index` for none.
        shift_labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): targets already shifted, instead.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: losses in nats and the shifted targets, each `(batch, length)`; the loss
        is 0 where there is no target.
    """
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    shift_labels = shift_labels.to(logits.device)
    losses, _ = ChunkedCrossEntropy.apply(logits.flatten(0, -2), shift_labels.flatten(), ignore_index)
    return losses.view(shift_labels.shape), shift_labels


def causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    vocab_size: int,
    num_items_in_batch: int | torch.Tensor | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """
    Mean next-token cross-entropy, as transformers' `ForCausalLMLoss` without its copies of the logits.

    Args:
        logits, labels, shift_labels, ignore_index: see [`token_losses`].
        vocab_size (`int`): last size of `logits`.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*): what the sum is divided by, where the batch is part
            of a larger one (gradient accumulation); the number of targets if not given.

    Returns:
        `torch.Tensor`: the scalar loss, float32.
    """
    losses, targets = token_losses(logits, labels, shift_labels, ignore_index)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != ignore_index).sum()
    elif torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(losses.device)
    return losses.sum() / num_items_in_batch
