"""
Horizon-length prediction: while it trains, a model also says at each token of a middle which share of it is still to come
(arXiv 2410.03103). It is to plan towards the text behind the hole; inference and the model's logits do not change.
"""

import torch
from torch import nn


NO_HORIZON = -1.0


class HorizonHead(nn.Module):
    """
    An auxiliary head of any causal language model: from the hidden state that the output layer reads, by a linear layer and
    a sigmoid, the share of the middle still to come. It begins at zero, so at 0.5 everywhere.

    Args:
        model (`PreTrainedModel`): its forward pass is listened to until [`HorizonHead.remove`]; nothing of it changes.

    Raises:
        ValueError: for a model without an output layer.

    Example:

    ```python
    >>> import torch
    >>> from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM
    >>> from modeling_lpn.code.horizon import HorizonHead

    >>> model = CodeGen2ForCausalLM(CodeGen2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, rotary_dim=2, mp_num=1))
    >>> head = HorizonHead(model)  # give its parameters to the optimiser
    >>> logits = model(torch.tensor([[1, 2, 3]])).logits
    >>> head.errors(torch.tensor([[-1.0, 0.5, 0.0]])).item()  # the middle is the last two tokens; of the collator: `horizons`
    0.5
    >>> head.remove()

    ```
    """

    def __init__(self, model):
        super().__init__()
        output = model.get_output_embeddings()
        if output is None:
            raise ValueError(
                f"{type(model).__name__} has no output layer to read hidden states of; give a language model."
            )
        self.linear = nn.Linear(output.weight.shape[1], 1, device=output.weight.device, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._hidden = None
        self._hook = output.register_forward_pre_hook(self._listen)

    def _listen(self, module, args):
        self._hidden = args[0]

    def errors(self, horizons: torch.Tensor) -> torch.Tensor:
        """
        The summed absolute errors of the last forward pass.

        Args:
            horizons (`torch.Tensor` of shape `(batch, length)`): the share still to come behind each token of a middle,
                and -1 at all others, see `horizon` of [`DataCollatorForCodeObjectives`].

        Returns:
            `torch.Tensor`: a scalar, float32.

        Raises:
            RuntimeError: there was no forward pass since the last call.
        """
        if self._hidden is None:
            raise RuntimeError("The model was not called since the last errors; call it first.")
        hidden, self._hidden = self._hidden, None
        with torch.autocast(hidden.device.type, enabled=False):
            shares = self.linear(hidden.float()).squeeze(-1).sigmoid()
        return ((shares - horizons).abs() * (horizons >= 0)).sum()

    def remove(self) -> None:
        """Stops listening."""
        self._hook.remove()


__all__ = ["NO_HORIZON", "HorizonHead"]
