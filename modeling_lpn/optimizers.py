"""Muon for the matrices of a model's layers, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames


# Of the quintic of Newton and Schulz: singular values from 0.01 to 1 end between 0.7 and 1.2 after five iterations.
QUINTIC = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """
    The weights that Muon is for: of linear layers within the repeated layers of a model (in an `nn.ModuleList`). Embeddings, heads,
    norms and biases, of which a step changes few rows or which are no maps between hidden states, are not among them.
    """
    repeated = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    linear = {id(child): child for layers in repeated for child in layers.modules() if isinstance(child, nn.Linear)}
    return [layer.weight for layer in linear.values() if layer.weight.requires_grad]


class MuonAdamW(torch.optim.AdamW):
    """
    Muon for some matrices and AdamW for all other parameters, in one optimiser.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) averages the gradients of a matrix and moves by the
    nearest matrix whose singular values are all one, so that rare directions learn as fast as common ones. The step is scaled to the
    size of one of AdamW (Liu et al. 2025, arXiv 2502.16982), so that learning rate and weight decay are those of AdamW.

    Matrices of one shape are orthogonalised together: a few products for a whole model, not fifteen for every matrix.

    Args:
        params (iterable of parameters or of groups): All parameters, as for any optimiser.
        matrices (`list[nn.Parameter]`): Those among them that Muon moves, of two dimensions each; see [`layer_matrices`].
        lr, betas, eps, weight_decay, fused: As of `torch.optim.AdamW`; learning rate and weight decay also of Muon.
        momentum (`float`, defaults to 0.95): Of Muon's average of gradients (with Nesterov's step ahead), in [0, 1).

    Raises:
        ValueError: A matrix has not two dimensions, or is not among `params`; the momentum is out of range; a state to load was
            saved by another optimiser.

    Example:

    ```python
    >>> import torch
    >>> from modeling_lpn import LPNConfig, LPNModel
    >>> from modeling_lpn.optimizers import MuonAdamW, layer_matrices

    >>> model = LPNModel(LPNConfig(encoder_num_layers=1, decoder_num_layers=1))
    >>> optimizer = MuonAdamW(model.parameters(), layer_matrices(model), lr=2e-3)
    >>> [len(group["params"]) for group in optimizer.param_groups]
    [12, 19]

    ```
    """

    def __init__(
        self,
        params: Iterable[Any],
        matrices: list[nn.Parameter],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        fused: bool | None = None,
        momentum: float = 0.95,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` is {momentum}; give a number in [0, 1)")
        groups = _groups_by_kind(params, matrices)
        for group in groups:
            group.setdefault("momentum", momentum)
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        self.defaults |= {"muon": False, "momentum": momentum}  # of groups that are added
        # A fused AdamW unscales gradients of half precision by itself and skips what overflowed; Muon leaves that to the scaler.
        self._step_supports_amp_scaling = False

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> bool:
        """Where a step of AdamW collects what a group has to move: nothing, if that is Muon's, which moves it here."""
        if not group["muon"]:
            return super()._init_group(group, *lists)
        self._move_matrices(group)
        return False

    def _move_matrices(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)
        for matrix in group["params"]:
            if matrix.grad is not None:
                if not (state := self.state[matrix]):
                    # AdamW looks for `step` in every state that it loads; nothing counts it here.
                    state |= {"momentum_buffer": torch.zeros_like(matrix), "step": torch.zeros(())}
                average = state["momentum_buffer"]
                average.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(average, group["momentum"])
                by_shape[matrix.shape, matrix.dtype, matrix.device].append((matrix, ahead))
        for (shape, *_), pairs in by_shape.items():
            matrices, gradients = zip(*pairs, strict=True)
            directions = orthogonalize(torch.stack(gradients)).to(matrices[0].dtype).unbind()
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            # An entry of such a matrix is 1 / sqrt(max(shape)) in root mean square, one of AdamW's steps 0.2 to 0.4.
            torch._foreach_add_(matrices, directions, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if any("muon" not in group for group in state_dict["param_groups"]):
            raise ValueError(
                "the state was saved by an optimiser without Muon; go on without it, or begin anew with it"
            )
        super().load_state_dict(state_dict)


def _groups_by_kind(params: Iterable[Any], matrices: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups of one kind each, `muon` or not, with the settings of those they come from."""
    groups = list(params)
    groups = groups if groups and isinstance(groups[0], dict) else [{"params": groups}]
    chosen, known, found = {id(matrix) for matrix in matrices}, set(), []
    for group in groups:
        members = [group["params"]] if torch.is_tensor(group["params"]) else list(group["params"])
        known.update(map(id, members))
        for muon in (True, False):
            if kept := [parameter for parameter in members if (id(parameter) in chosen) == muon]:
                found.append({**group, "params": kept, "muon": muon})
    for matrix in matrices:
        if matrix.dim() != 2:
            raise ValueError(
                f"a parameter of shape {tuple(matrix.shape)} is among `matrices`; Muon moves matrices only"
            )
        if id(matrix) not in known:
            raise ValueError(
                f"a matrix of shape {tuple(matrix.shape)} is not among `params`; give both of one model, after FSDP has"
                " wrapped it if it does"
            )
    return found


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """
    Replaces the singular values of matrices by about one (0.7 to 1.2; small ones, below a hundredth of the matrix's norm, by less).

    Args:
        matrices (`torch.Tensor` of shape `(count, rows, columns)`): Any; zeros stay zeros.

    Returns:
        `torch.Tensor` of the same shape; bfloat16 on a GPU, whose rounding does no harm here, else float32.
    """
    first, second, third = QUINTIC
    values = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    wide = values.mT if values.shape[1] > values.shape[2] else values  # the smaller products
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        product = wide @ wide.mT
        wide = torch.baddbmm(
            wide, torch.baddbmm(product, product, product, beta=second, alpha=third), wide, beta=first
        )
    return wide.mT if values.shape[1] > values.shape[2] else wide


def muon_and_settings(model: nn.Module, args: TrainingArguments) -> tuple[type[MuonAdamW], dict[str, Any]]:
    """
    What `Trainer` takes as `optimizer_cls_and_kwargs`, with the settings of AdamW in its arguments.

    Raises:
        ValueError: `args` name another optimiser than AdamW or have settings that it alone reads, or the model has nothing to
            move by Muon.
    """
    optim = OptimizerNames(args.optim).value
    if optim not in ("adamw_torch", "adamw_torch_fused"):
        raise ValueError(
            f"`optim` is {optim!r} while Muon moves the matrices, and AdamW all else; leave one of the two out"
        )
    if args.optim_args:
        raise ValueError(f"`optim_args` are {args.optim_args!r}, which Muon does not read; leave one of the two out")
    if not (matrices := layer_matrices(model)):
        raise ValueError(
            f"{type(model).__name__} has no linear layer to train in an `nn.ModuleList`, so that Muon would move nothing;"
            " leave it out"
        )
    kwargs = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return MuonAdamW, {"matrices": matrices, "fused": True if optim == "adamw_torch_fused" else None, **kwargs}


__all__ = ["MuonAdamW", "layer_matrices", "muon_and_settings", "orthogonalize"]
