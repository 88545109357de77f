"""Folders that earlier versions saved still load, and compute what they computed."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from modeling_lpn import LPNModel, LPNProcessor, SearchConfig


SAVED = Path(__file__).parent / "reference" / "saved_0_1"
DEMONSTRATIONS = ("input_grids", "output_grids", "input_shapes", "output_shapes")


@torch.no_grad()
def test_an_lpn_folder_of_version_0_1():
    model = AutoModel.from_pretrained(SAVED / "lpn")
    assert type(model) is LPNModel and type(AutoProcessor.from_pretrained(SAVED / "lpn")) is LPNProcessor
    expected = load_file(SAVED / "lpn" / "expected.safetensors")
    pairs = {name: expected[name] for name in DEMONSTRATIONS}
    latent_mean = model.encode(**pairs).latent_mean
    torch.testing.assert_close(latent_mean, expected["latent_mean"])
    torch.testing.assert_close(model.log_prob(latent_mean[:, :1], **pairs), expected["log_prob"])
    queries = {"query_grids": pairs["input_grids"][:, :1], "query_shapes": pairs["input_shapes"][:, :1]}
    output = model.generate(**pairs, **queries, search_config=SearchConfig(num_steps=3))
    torch.testing.assert_close(output.search_output.log_probs, expected["search_log_probs"])
    assert torch.equal(output.output_grids, expected["generated"])


@torch.no_grad()
def test_a_codegen2_folder_of_version_0_1():
    model = AutoModelForCausalLM.from_pretrained(SAVED / "codegen2")
    expected = load_file(SAVED / "codegen2" / "expected.safetensors")
    torch.testing.assert_close(model(expected["input_ids"]).logits, expected["logits"])
