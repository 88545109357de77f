"""Muon beside AdamW against PyTorch's own of each, and which parameters of which model it moves."""

import copy

import pytest
import torch
from cases_any_model import make
from torch import nn
from transformers import TrainingArguments

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM, LPNConfig, LPNModel
from modeling_lpn.optimizers import MuonAdamW, layer_matrices, muon_and_settings, orthogonalize


SHAPES = ((6, 6), (4, 9), (9, 4), (9, 4), (3,))


def parameters_with_gradients(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(shape, generator=generator).to(device) for shape in SHAPES] for _ in range(5)]
    return [nn.Parameter(values) for values in drawn[0]], drawn[1:]


def train(optimizers, parameters, gradients):
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_orthogonalized_matrices_have_the_singular_vectors_and_singular_values_of_about_one():
    matrices = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    for wide in (matrices, matrices.mT):
        found = orthogonalize(wide)
        left, _, right = torch.linalg.svd(wide, full_matrices=False)
        inner = left.mT @ found @ right.mT  # diagonal where the vectors are the same
        diagonal = torch.diagonal(inner, dim1=1, dim2=2)
        assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
        torch.testing.assert_close(inner, torch.diag_embed(diagonal), atol=1e-4, rtol=0)
    assert orthogonalize(torch.zeros(1, 2, 3)).eq(0).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_moves_matrices_as_the_muon_of_pytorch_and_the_rest_as_its_adamw(device):
    if (muon := getattr(torch.optim, "Muon", None)) is None:
        pytest.skip("Muon came with PyTorch 2.9")
    settings = {"lr": 0.02, "weight_decay": 0.1}
    ours, gradients = parameters_with_gradients(device)
    found = train([MuonAdamW(ours, ours[:3], **settings)], ours, gradients)
    theirs, _ = parameters_with_gradients(device)
    others = torch.optim.AdamW(theirs[3:], **settings)
    wanted = train([muon(theirs[:3], adjust_lr_fn="match_rms_adamw", **settings), others], theirs, gradients)
    start = parameters_with_gradients(device)[0]
    for index in range(3):  # theirs rounds to bfloat16 on every device
        moved = (wanted[index] - start[index]).norm()
        assert (found[index] - wanted[index]).norm() < 0.02 * moved
    for index in (3, 4):
        assert torch.equal(found[index], wanted[index])


def test_groups_keep_their_settings_and_a_state_goes_on():
    (first, second, *rest), gradients = parameters_with_gradients()
    groups = [{"params": [first, *rest], "weight_decay": 0.5}, {"params": [second], "weight_decay": 0.0}]
    whole = MuonAdamW(groups, [first, second], lr=0.02)
    assert [(group["muon"], group["weight_decay"]) for group in whole.param_groups] == [
        (True, 0.5),
        (False, 0.5),
        (True, 0.0),
    ]
    parameters = [first, second, *rest]
    train([whole], parameters, gradients[:2])
    state, values = copy.deepcopy(whole.state_dict()), [parameter.detach().clone() for parameter in parameters]
    wanted = [value.clone() for value in train([whole], parameters, gradients[2:])]
    again = [nn.Parameter(value) for value in values]
    groups = [{"params": [again[0], *again[2:]], "weight_decay": 0.5}, {"params": [again[1]], "weight_decay": 0.0}]
    resumed = MuonAdamW(groups, again[:2], lr=0.02)
    resumed.load_state_dict(state)
    assert all(map(torch.equal, train([resumed], again, gradients[2:]), wanted))


def test_a_matrix_without_a_gradient_stays():
    parameters, gradients = parameters_with_gradients()
    before = parameters[0].detach().clone()
    optimizer = MuonAdamW(parameters, parameters[:3], lr=0.02)
    parameters[1].grad = gradients[0][1]
    optimizer.step()
    assert torch.equal(parameters[0], before) and not optimizer.state[parameters[0]]


def test_matrices_are_the_linear_weights_of_repeated_layers():
    models = [
        LPNModel(LPNConfig(encoder_num_layers=1, decoder_num_layers=2)),
        CodeGen2ForCausalLM(CodeGen2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, mp_num=1)),
        make("llama"),
    ]
    for model in models:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found = [names[id(matrix)] for matrix in layer_matrices(model)]
        layers = (".layers.", ".h.")
        wanted = [
            name
            for name, parameter in model.named_parameters()
            if parameter.dim() == 2 and any(part in name for part in layers)
        ]
        assert sorted(found) == sorted(wanted) and len(found) >= 8
    model.requires_grad_(False)
    assert layer_matrices(model) == []


def test_overflowed_gradients_of_half_precision_move_nothing():
    """The scaler looks for them before the step where an optimiser does not say that it does so itself."""
    parameters, gradients = parameters_with_gradients()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = MuonAdamW(parameters, parameters[:3], lr=0.02, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    for parameter, gradient in zip(parameters, gradients[0], strict=True):
        parameter.grad = gradient.clone()
    parameters[3].grad[0, 0] = torch.inf
    scaler.step(optimizer)
    assert all(map(torch.equal, parameters, before))


def test_hooks_run_once_and_groups_can_be_added():
    parameters, gradients = parameters_with_gradients()
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # hooks its own `step`
    optimizer, calls = MuonAdamW(parameters[:3], parameters[:3], lr=0.02), []
    optimizer.add_param_group({"params": parameters[3:]})
    assert [group["muon"] for group in optimizer.param_groups] == [True, False]
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train([optimizer], parameters, gradients)
    assert len(calls) == len(gradients)


def test_groups_as_other_optimisers_take_them():
    (first, *rest), _ = parameters_with_gradients()
    groups = [{"params": first, "momentum": 0.5}, {"params": iter(rest)}]
    found = MuonAdamW(groups, [first, rest[0]], lr=0.1).param_groups
    assert [(group["muon"], group["momentum"], len(group["params"])) for group in found] == [
        (True, 0.5, 1),
        (True, 0.95, 1),
        (False, 0.95, 3),
    ]


def test_what_it_cannot_move_is_refused():
    (square, wide, *_, vector), _ = parameters_with_gradients()
    with pytest.raises(ValueError, match=r"shape \(3,\) is among `matrices`"):
        MuonAdamW([square, vector], [vector], lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(4, 9\) is not among `params`"):
        MuonAdamW([square], [wide], lr=0.1)
    with pytest.raises(ValueError, match="`momentum` is 1"):
        MuonAdamW([square], [square], momentum=1)
    with pytest.raises(ValueError, match="saved by an optimiser without Muon"):
        MuonAdamW([square], [square]).load_state_dict(torch.optim.AdamW([square]).state_dict())


@pytest.mark.parametrize(
    "model, settings, message",
    [
        ("llama", {"optim": "adafactor"}, "`optim` is 'adafactor' while Muon"),
        ("llama", {"optim_args": "amsgrad=True"}, "`optim_args` are 'amsgrad=True', which Muon does not read"),
        ("gpt2", {}, "GPT2LMHeadModel has no linear layer"),  # its layers are a convolution's
    ],
)
def test_settings_that_would_have_no_effect_are_refused(tmp_path, model, settings, message):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
    with pytest.raises(ValueError, match=message):
        muon_and_settings(make(model), args)
