"""What a record of hours of work is kept for."""

import pytest
import torch

from modeling_lpn import CodeGen2Config, CodeGen2ForCausalLM, LPNConfig, LPNModel
from modeling_lpn.records import model_digest


def make(kind):
    torch.manual_seed(0)
    if kind == "lpn":
        return LPNModel(LPNConfig(max_rows=4, max_cols=4, encoder_num_heads=2, encoder_head_dim=4))
    return CodeGen2ForCausalLM(
        CodeGen2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, mp_num=1)
    )


@pytest.mark.parametrize(
    "kind, setting, value",
    [("lpn", "layer_norm_eps", 0.1), ("codegen2", "n_positions", 16), ("codegen2", "bos_token_id", 5)],
)
def test_a_digest_is_of_all_that_changes_what_a_model_says(kind, setting, value, tmp_path):
    model, digest = make(kind), model_digest(make(kind))
    model.save_pretrained(tmp_path)
    assert model_digest(type(model).from_pretrained(tmp_path)) == digest
    setattr(model.config, setting, value)
    assert model_digest(model) != digest
    other = make(kind)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert model_digest(other) != digest
