"""Horizon-length prediction: its targets by a naive reference, training with it, and that nothing of it stays."""

import numpy as np
import pytest
import torch
from cases_any_model import CONFIGS, LAYOUTS, make, sequences
from peft import LoraConfig, get_peft_model

from modeling_lpn import CodeTrainer, DataCollatorForCodeObjectives
from modeling_lpn.code.arguments import CodeTrainingArguments
from modeling_lpn.code.horizon import HorizonHead


def collator(preset):
    return DataCollatorForCodeObjectives(LAYOUTS[preset], information=True, horizon=True)


def trainer_of(model, preset, folder, weight=1.0, data=None, **settings):
    settings = {
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        **settings,
    }
    settings = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, **settings}
    args = CodeTrainingArguments(output_dir=str(folder), warmup_steps=0, remove_unused_columns=False, **settings)
    data = sequences(preset, num_sequences=48) if data is None else data
    return CodeTrainer(
        model=model, args=args, data_collator=collator(preset), train_dataset=data, horizon_weight=weight
    )


@pytest.mark.parametrize("preset", ["codegen2", "incoder", "fim", "causal"])
def test_the_targets_are_the_share_still_to_come(preset):
    data, masked = sequences(preset, num_sequences=32), 0
    for example in (data[index] for index in range(32)):
        batch, expected, tokens = collator(preset)([example]), [], []
        for unit in example["units"]:
            source = unit.token_ids if unit.plan.source is None else unit.plan.source
            for start, length in zip(unit.plan.starts, unit.plan.lengths, strict=True):
                expected += [(length - number) / length for number in range(1, length + 1)]
                tokens += list(source[start : start + length])
        known = batch["horizons"] >= 0
        assert batch["horizons"].dtype == torch.float32 and batch["horizons"].shape == batch["input_ids"].shape
        assert batch["input_ids"][known].tolist() == tokens
        np.testing.assert_allclose(batch["horizons"][known].numpy(), expected, rtol=1e-6)
        masked += len(tokens)
    assert (masked > 0) == (preset != "causal")


@pytest.mark.parametrize("name", CONFIGS)
def test_any_model_learns_it_in_a_loop_of_ones_own(name):
    preset = "fim" if name == "codegen2" else "codegen2"
    model, data = make(name), sequences(preset, num_sequences=8)
    batch = DataCollatorForCodeObjectives(LAYOUTS[preset], horizon=True)([data[index] for index in range(8)])
    horizons = batch.pop("horizons")
    before = model(**batch, use_cache=False).logits
    head, errors, num_middle = HorizonHead(model), [], (horizons >= 0).sum()
    assert torch.equal(model(**batch, use_cache=False).logits, before)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(25):
        loss = model(**batch, use_cache=False).loss
        errors.append(head.errors(horizons) / num_middle)
        (loss + errors[-1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    head.remove()
    assert errors[0] > 0.2 and errors[-1] < 0.6 * errors[0]


def test_the_trainer_trains_it_and_keeps_nothing_of_it(tmp_path):
    plain, model = make("codegen2"), make("codegen2")
    trainer_of(plain, "fim", tmp_path, weight=0.0).train()
    names, ids = list(model.state_dict()), torch.arange(12)[None]
    trainer = trainer_of(model, "fim", tmp_path)
    trainer.train()
    errors = [entry["loss_horizon"] for entry in trainer.state.log_history if "loss_horizon" in entry]
    assert len(errors) == 4 and all(0 < error < 0.5 for error in errors)
    assert not torch.equal(model.transformer.wte.weight, plain.transformer.wte.weight)
    trainer.save_model()
    assert list(model.state_dict()) == names
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 6}
    whole = make("codegen2")
    trainer_of(whole, "fim", tmp_path, **saving).train()
    resumed = make("codegen2")
    trainer_of(resumed, "fim", tmp_path, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_accumulated_parts_equal_one_batch(tmp_path):
    def run(batch, steps):
        model, settings = make("codegen2"), {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1}
        settings |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_grad_norm": 0}
        trainer_of(model, "fim", tmp_path, 3.0, sequences("fim", num_sequences=4), **settings).train()
        return model.state_dict()

    whole, parts = run(4, 1), run(1, 4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-5)


def test_what_it_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`horizon_weight` is -1, but give a number above 0"):
        trainer_of(make("codegen2"), "fim", tmp_path, weight=-1)
    adapted = get_peft_model(make("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    with pytest.raises(ValueError, match="adapters have no place"):
        trainer_of(adapted, "fim", tmp_path)
    trainer = trainer_of(make("codegen2"), "fim", tmp_path)
    trainer.data_collator = DataCollatorForCodeObjectives(LAYOUTS["fim"], information=True)
    with pytest.raises(ValueError, match="have no `horizons`; set `horizon=True`"):
        trainer.train()
    head = HorizonHead(make("llama"))
    with pytest.raises(RuntimeError, match="call it first"):
        head.errors(torch.zeros(1, 3))
