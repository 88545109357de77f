"""Next-token cross-entropy without copies of the logits."""

import torch
from torch import nn


# Logits of this many elements are brought to float32 at a time by the loss: large enough to keep a GPU busy, small
# enough (32 MB) to vanish beside the logits themselves.
LOSS_CHUNK_ELEMENTS = 2**23


class ChunkedCrossEntropy(torch.autograd.Function):
    """
    Sum of the cross-entropies of `logits` `(rows, vocab)` at `targets` `(rows,)`, those equal to `ignore_index` left
    out. Float32 arithmetic on a few rows at a time: the forward pass keeps the log-normalisers `(rows,)` where
    `cross_entropy(logits.float())` keeps a second, float32 copy of the logits, and the backward pass builds no float32
    gradient.
    """

    @staticmethod
    def forward(logits, targets, ignore_index):
        log_norms = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
        chunk = max(1, LOSS_CHUNK_ELEMENTS // logits.shape[-1])
        for rows, norms in zip(logits.split(chunk), log_norms.split(chunk)):
            torch.logsumexp(rows.float(), dim=-1, out=norms)
        picked = logits.gather(-1, targets.clamp(min=0)[:, None])[:, 0].float()
        total = torch.where(targets == ignore_index, 0.0, log_norms - picked).sum()
        return total, log_norms

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, targets, ctx.ignore_index = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, targets, output[1])

    @staticmethod
    def backward(ctx, grad_total, _):
        logits, targets, log_norms = ctx.saved_tensors
        grad = torch.empty_like(logits)
        chunk = max(1, LOSS_CHUNK_ELEMENTS // logits.shape[-1])
        weights = torch.where(targets == ctx.ignore_index, 0.0, grad_total.float())
        for i in range(0, logits.shape[0], chunk):
            rows = slice(i, i + chunk)
            probabilities = (logits[rows].float() - log_norms[rows, None]).exp_()
            probabilities.scatter_add_(-1, targets[rows, None].clamp(min=0), -torch.ones_like(log_norms[rows, None]))
            grad[rows] = probabilities.mul_(weights[rows, None])
        return grad, None, None


def causal_lm_loss(
    logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100, shift_labels=None, **kwargs
):
    """
    Next-token cross-entropy in float32, as transformers' `ForCausalLMLoss` without its copies of the logits.

    Args:
        logits (`torch.Tensor` of shape `(batch, length, vocab_size)`): scores of any float type.
        labels (`torch.LongTensor` of shape `(batch, length)`): target ids before the shift, `ignore_index` for none.
        vocab_size (`int`): last size of `logits`.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*): what the sum is divided by, where the batch is part
            of a larger one (gradient accumulation); the number of targets if not given.
        ignore_index (`int`, defaults to -100): label of tokens without a target.
        shift_labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): targets already shifted.

    Returns:
        `torch.Tensor`: the scalar loss, float32.
    """
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    total, _ = ChunkedCrossEntropy.apply(logits.reshape(-1, vocab_size), targets, ignore_index)
    if num_items_in_batch is None:
        num_items_in_batch = (targets != ignore_index).sum()
    elif torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
