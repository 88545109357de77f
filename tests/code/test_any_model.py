"""The objectives with causal language models of other families: packed files do not see each other, and training works."""

import numpy as np
import pytest
import torch
from cases_any_model import CONFIGS, LAYOUTS, SIZES, make, sequences
from cases_codegen2 import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    SiglipVisionConfig,
    default_data_collator,
)
from transformers.models.hrm_text.configuration_hrm_text import HrmTextConfig

from modeling_lpn import (
    CodeTrainer,
    DataCollatorForCodeObjectives,
    ObjectiveMixture,
)
from modeling_lpn.code.arguments import CodeTrainingArguments
from modeling_lpn.code.collator import check_attention


def logits(model, batch):
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "segment_ids")}
    inputs = {name: value for name, value in inputs.items() if name not in ("objective_ids", "source_tokens")}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attention", ["isolated", "isolated_4d", "joint"])
@pytest.mark.parametrize("preset", ["codegen2", "fim", "prefix_lm"])
def test_packed_files_do_not_see_each_other(name, attention, preset):
    if name == "gemma2" and attention == "isolated_4d":
        pytest.skip("a 4-D mask would take the place of its sliding window")
    model, data = make(name), sequences(preset)
    batch = DataCollatorForCodeObjectives(LAYOUTS[preset], attention, information=True)([data[0], data[1]])
    if preset == "prefix_lm" and name != "codegen2" and attention != "isolated_4d":
        batch.pop("block_sequence_ids")  # they cannot read it, see below
    segments, changed = batch["segment_ids"], {key: value.clone() for key, value in batch.items()}
    second = segments == 1
    changed["input_ids"][second] = (batch["input_ids"][second] + 1) % 100
    before, after = logits(model, batch), logits(model, changed)
    later = segments > 1
    assert later.any() and not torch.equal(before[second], after[second])
    moved = (before[later] - after[later]).abs().max()
    assert torch.equal(before[segments == 0], after[segments == 0])
    assert moved < 1e-5 if attention != "joint" else moved > 1e-3
    if attention == "isolated":  # as if each file were read alone
        for row, segment in ((0, 1), (1, 2)):
            own = segments[row] == segment
            alone = {
                key: value[row : row + 1, own]
                for key, value in batch.items()
                if value.ndim == 2 and key != "source_tokens"
            }
            torch.testing.assert_close(logits(model, alone)[0], before[row, own], atol=2e-5, rtol=1e-4)


def gemma3():
    torch.manual_seed(0)
    layers = ["sliding_attention", "full_attention"]
    text = Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=16, layer_types=layers)
    image = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SiglipVisionConfig(**image, image_size=28, patch_size=14)
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=127, mm_tokens_per_image=4)
    return AutoModelForCausalLM.from_config(config).eval()


def hrm_text():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        HrmTextConfig(**{**SIZES, "num_hidden_layers": 1}, H_cycles=1, L_cycles=1)
    ).eval()


def test_a_prefix_lm_of_transformers_reads_each_prefix_in_both_directions():
    model, data = hrm_text(), sequences("prefix_lm")
    check_attention(model, "isolated_4d", data.mixture)
    collator = DataCollatorForCodeObjectives(LAYOUTS["prefix_lm"], "isolated_4d", information=True)
    batch = collator([data[index] for index in range(4)])
    before, units, seen = logits(model, batch), [data[index]["units"] for index in range(4)], 0
    for row, some in enumerate(units):
        start = 0
        for unit in some:
            prefix, end = start + unit.plan.prefix_length, start + unit.plan.size
            if unit.plan.prefix_length > 1:
                for place, changes in ((prefix - 1, range(start, end)), (prefix, range(prefix, end))):
                    ids = batch["input_ids"].clone()
                    ids[row, place] = (ids[row, place] + 1) % 100
                    moved = (logits(model, {**batch, "input_ids": ids}) - before).abs().amax(-1) > 2e-5
                    assert moved.nonzero().tolist() == [[row, position] for position in changes]
                seen += 1
            start = end
    assert seen > 2


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_trains(name, tmp_path):
    preset = "fim" if name == "codegen2" else "codegen2"  # each one's own is tested elsewhere
    data = sequences(preset, num_sequences=32)
    collator = DataCollatorForCodeObjectives(LAYOUTS[preset], information=True)
    settings = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "use_cpu": True,
    }
    settings |= {
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "warmup_steps": 0,
        "remove_unused_columns": False,
    }
    args = CodeTrainingArguments(output_dir=str(tmp_path), **settings)
    model = make(name)
    check_attention(model, "isolated", data.mixture)
    trainer = CodeTrainer(model=model, args=args, data_collator=collator, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2 and all(np.isfinite(losses))


def test_what_a_model_cannot_read_is_refused():
    prefix_lm, fim = ObjectiveMixture.from_preset("prefix_lm"), ObjectiveMixture.from_preset("fim")
    for name in CONFIGS:
        check_attention(make(name), "isolated", fim)
    with pytest.raises(ValueError, match="HrmTextForCausalLM takes no `block_sequence_ids`.*'isolated_4d'"):
        check_attention(hrm_text(), "isolated", prefix_lm)
    for attention, fault in (("isolated", "takes no `block_sequence_ids`"), ("isolated_4d", "a sliding window")):
        with pytest.raises(ValueError, match=fault):  # by `token_type_ids` its prefixes would see what follows them
            check_attention(gemma3(), attention, prefix_lm)
    check_attention(make("codegen2"), "isolated", prefix_lm)
    check_attention(make("llama"), "isolated_4d", prefix_lm)
    with pytest.raises(ValueError, match="LlamaForCausalLM takes no `block_sequence_ids`.* `attention` 'isolated_4d'"):
        check_attention(make("llama"), "isolated", prefix_lm)
    with pytest.raises(ValueError, match="Gemma2ForCausalLM has layers with a sliding window"):
        check_attention(make("gemma2"), "isolated_4d", fim)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=128, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="BloomForCausalLM takes no `position_ids`"):
        check_attention(bloom, "isolated", fim)
    model = make("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no 4-D mask; set `attn_implementation`"):
        check_attention(model, "isolated_4d", fim)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL gives arguments by their old names
def test_the_same_data_through_trl(tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model, data, read = make("llama"), sequences("codegen2", num_sequences=32), []
    collator = DataCollatorForCodeObjectives(LAYOUTS["codegen2"])
    rows = [{name: values[0].tolist() for name, values in collator([sequence]).items()} for sequence in data]
    settings = {"output_dir": str(tmp_path), "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    settings |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 2}
    settings |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(**settings),
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=default_data_collator,
        processing_class=tiny_tokenizer(),
    )
    forward = model.forward
    model.forward = lambda *args, **kwargs: read.append(kwargs) or forward(*args, **kwargs)
    trainer.train()
    # What keeps packed files apart: positions, no cache, no padding mask.
    assert all(batch["use_cache"] is False and "attention_mask" not in batch for batch in read)
    assert (read[0]["position_ids"] == 0).sum() > 4
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
