"""The CodeGen2 recipes as commands: converting checkpoints both ways, the benchmark on a small model."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases_codegen2 import tiny_model, tiny_tokenizer, token_ids, tokenizer_config, write_release
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CodeGenForCausalLM

from modeling_lpn import CodeGen2ForCausalLM
from modeling_lpn.codegen2.modeling_codegen2 import regroup_qkv


ROOT = Path(__file__).parents[2]


def convert(*args):
    recipe = runpy.run_path(str(ROOT / "recipes" / "convert_codegen2_checkpoint.py"))
    recipe["main"]([str(arg) for arg in args])
    return recipe


@pytest.mark.parametrize("mp_num, head_dim", [(4, None), (8, 4)])
def test_a_release_is_converted_and_exported_bit_for_bit(tmp_path, mp_num, head_dim):
    released = write_release(tiny_model(mp_num=mp_num), tmp_path / "release", "pytorch_model.bin", head_dim)
    convert(tmp_path / "release", tmp_path / "clean")
    clean = AutoModelForCausalLM.from_pretrained(tmp_path / "clean")
    assert isinstance(clean, CodeGen2ForCausalLM) and clean.config.mp_num == mp_num
    assert (tmp_path / "clean" / "generation_config.json").exists()
    assert (tmp_path / "clean" / "modeling_codegen2.py").exists()

    convert(tmp_path / "clean", tmp_path / "exported", "--layout", "released")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert set(exported) == {name for name in released if not name.endswith(("causal_mask", "masked_bias"))}
    assert all(torch.equal(value, released[name]) for name, value in exported.items())
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["model_type"] == "codegen" and config["mp_num"] == mp_num
    assert config.get("head_dim") == head_dim and config["eos_token_id"] != 2

    convert(tmp_path / "exported", tmp_path / "stock", "--layout", "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock").eval()
    assert type(stock) is CodeGenForCausalLM
    ids = token_ids(2, 9)
    torch.testing.assert_close(stock(ids).logits, clean.eval()(ids).logits, atol=1e-5, rtol=0)
    assert CodeGen2ForCausalLM.from_pretrained(tmp_path / "stock").config.mp_num == 4
    with pytest.raises(ValueError, match="is the source as well"):
        convert(tmp_path / "stock", tmp_path / "clean" / ".." / "stock")


def test_regrouping_is_undone():
    weight = torch.randn(96, 32)
    for groups in (1, 2, 8):
        assert torch.equal(regroup_qkv(regroup_qkv(weight, 4, groups), groups, 4), weight)


def test_a_wrong_grouping_is_refused_by_its_loss(tmp_path):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = CodeGen2ForCausalLM(tokenizer_config(tokenizer, mp_num=4, n_positions=256))
    recipe = runpy.run_path(str(ROOT / "recipes" / "convert_codegen2_checkpoint.py"))
    ids = tokenizer(recipe["SNIPPET"], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):  # a model that knows the function the recipe tries
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    write_release(model, tmp_path / "release", head_dim=4)  # the stray key says 8 groups
    tokenizer.save_pretrained(tmp_path / "release")
    with pytest.raises(ValueError, match="the projection is grouped by 4. Pass --mp_num 4"):
        convert(tmp_path / "release", tmp_path / "clean")
    assert not (tmp_path / "clean").exists()
    convert(tmp_path / "release", tmp_path / "clean", "--mp_num", "4")
    converted = CodeGen2ForCausalLM.from_pretrained(tmp_path / "clean")
    torch.testing.assert_close(converted(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "clean").padding_side == "left"


@pytest.mark.slow
def test_benchmark_runs(tmp_path):
    command = [sys.executable, "recipes/benchmarks/codegen2.py", "--layers", "1", "--repeats", "1", "--threads", "1"]
    command += ["--dtypes", "float32", "--cases", "prefill-1x16", "train-1x16", "decode-2-static", "--skip_memory"]
    command += ["--output", str(tmp_path / "result.json")]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["prefill-1x16", "train-1x16", "decode-2-static"]
    assert all(row["speedup_over_stock"] > 0 for row in rows) and rows[0]["matmul_seconds"] > 0
    assert rows[2]["speedup_over_stock_plain"] > 0
