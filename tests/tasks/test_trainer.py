"""LPNTrainer: the published optimiser, accumulation, logging, evaluation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_lpn import (
    DataCollatorForGridTasks,
    LPNConfig,
    LPNModel,
    LPNProcessor,
    PatternTask,
    SearchConfig,
    TaskStream,
)
from modeling_lpn.tasks.arguments import LPNTrainingArguments
from modeling_lpn.tasks.flax_checkpoints import convert_config, convert_parameters
from modeling_lpn.tasks.stream import tasks_from_stream
from modeling_lpn.tasks.trainer import LPNTrainer


TINY = Path(__file__).parents[1] / "reference" / "lpn" / "tiny"
TASK = PatternTask(num_pairs=3, num_rows=4, num_cols=4, pattern_size=2)


def tiny_model(**settings):
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("num_heads", "head_dim")}
    return LPNModel(LPNConfig(max_rows=4, max_cols=4, latent_dim=4, **sizes, **settings))


def trainer_of(model, folder, **settings):
    arguments = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", "disable_tqdm": True}
    names = (
        "train_search",
        "train_search_from",
        "eval_search",
        "eval_budgets",
        "eval_dataset",
        "train_dataset",
        "data_collator",
    )
    extra = {name: settings.pop(name) for name in names if name in settings}
    args = LPNTrainingArguments(str(folder), **{**arguments, "dataloader_pin_memory": False, **settings})
    processor = LPNProcessor(4, 4)
    data = {"train_dataset": TaskStream(TASK, 1000), "data_collator": DataCollatorForGridTasks(processor)}
    return LPNTrainer(model=model, args=args, processing_class=processor, **{**data, **extra})


def test_training_equals_the_published_optimiser(tmp_path):
    """Eight micro-batches in four steps of AdamW with clipping, warm-up and weight decay on every parameter."""
    recorded, name = load_file(TINY / "grads.safetensors"), "train/warm3_k2"
    arrays = load_file(TINY / "io.safetensors")
    kwargs = json.loads((TINY / "grads.json").read_text())[f"{name}/losses"]["kwargs"]
    config = convert_config(json.loads((TINY / "config.json").read_text()))
    config.prior_kl_weight, config.pairwise_kl_weight = 1e-4, 0.0
    model = LPNModel(config)
    flax = {key: value.numpy() for key, value in load_file(TINY / "params.safetensors").items()}
    model.load_state_dict(convert_parameters(flax, config))
    pairs, shapes = arrays["in/pairs"].long(), arrays["in/grid_shapes"].long()
    names = ("input_grids", "output_grids", "input_shapes", "output_shapes")
    batch = dict(zip(names, (pairs[..., 0], pairs[..., 1], shapes[..., 0], shapes[..., 1]), strict=True))
    noise = arrays["in/train_eps_warm3_k2"]
    trainer = trainer_of(
        model,
        tmp_path,
        train_dataset=list(range(len(noise))),
        data_collator=lambda items: {**batch, "latent_noise": noise[items[0]]},
        per_device_train_batch_size=1,
        gradient_accumulation_steps=kwargs["every_k"],
        learning_rate=kwargs["lr"],
        warmup_steps=kwargs["warmup"],
        logging_steps=1,
    )
    trainer.train()
    losses = recorded[f"{name}/losses"].view(-1, 2).mean(1)
    assert [log["loss"] for log in trainer.state.log_history if "loss" in log] == pytest.approx(
        losses.tolist(), abs=2e-4
    )
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    prefix = f"{name}/params_after/"
    after = {key[len(prefix) :]: value.numpy() for key, value in recorded.items() if key.startswith(prefix)}
    for key, expected in convert_parameters(after, config).items():
        assert torch.allclose(model.state_dict()[key], expected, atol=2e-3), key


def test_learning_rate_follows_the_published_schedule(tmp_path):
    trainer = trainer_of(tiny_model(), tmp_path)
    trainer.create_optimizer_and_scheduler(200)
    rates = []
    for _ in range(102):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == pytest.approx([4e-4 * min(1, (step + 1) / 100) for step in range(102)])
    trainer = trainer_of(tiny_model(), tmp_path, lr_scheduler_type="cosine", warmup_steps=0)
    trainer.create_optimizer_and_scheduler(200)
    assert trainer.lr_scheduler.lr_lambdas[0](200) == pytest.approx(0.0)


def test_weight_decay_acts_on_every_parameter(tmp_path):
    model = tiny_model(encoder_use_bias=True, decoder_use_bias=True)
    trainer = trainer_of(model, tmp_path)
    decayed = [group for group in trainer.create_optimizer().param_groups if group["weight_decay"] == 1e-4]
    assert sum(len(group["params"]) for group in decayed) == len(list(model.parameters()))


def test_accumulation_4_equals_batch_4(tmp_path):
    weights, losses = [], []
    for batch, steps in ((4, 1), (1, 4)):
        model = tiny_model(variational=False, prior_kl_weight=0.0)
        trainer = trainer_of(
            model,
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            learning_rate=1e-2,
            warmup_steps=0,
            logging_steps=2,
        )
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        losses.append([(log["loss"], log["grid_loss"], log["grad_norm"]) for log in trainer.state.log_history[:-1]])
    assert torch.allclose(*weights, atol=1e-5)
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4)


def test_every_component_is_logged_as_its_mean(tmp_path):
    trainer = trainer_of(
        tiny_model(), tmp_path, logging_steps=2, train_search=SearchConfig(method="gradient", num_steps=1)
    )
    trainer.train()
    first, second = (log for log in trainer.state.log_history if "loss" in log)
    for name in (
        "reconstruction_loss",
        "row_loss",
        "col_loss",
        "grid_loss",
        "prior_kl",
        "pairwise_kl",
        "latent_norm",
        "program_cosine",
    ):
        assert name in first and first[name] != second[name]
    total = first["reconstruction_loss"] + 1e-4 * first["prior_kl"]
    assert first["loss"] == pytest.approx(total, rel=1e-4)


def test_search_begins_at_the_given_step(tmp_path, monkeypatch):
    model, search, seen = tiny_model(), SearchConfig(method="gradient", num_steps=1), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: (seen.append(inputs["search_config"]), forward(**inputs))[1]
    )
    trainer_of(model, tmp_path, train_search=search, train_search_from=3).train()
    assert seen == [None, None, None, search]


def test_evaluation_by_search_is_logged_and_changes_nothing(tmp_path):
    rows = tasks_from_stream(TaskStream(TASK, 6, seed=9), 6)
    weights = []
    for strategy in ("no", "steps"):
        model = tiny_model()
        trainer = trainer_of(
            model,
            tmp_path,
            eval_strategy=strategy,
            eval_steps=2,
            eval_dataset=rows,
            eval_budgets=(0, 2),
            eval_search=SearchConfig(lr=0.5, num_samples=1),
        )
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)
    logs = [log for log in trainer.state.log_history if "eval_runtime" in log]
    assert [log["step"] for log in logs] == [2, 4]
    assert logs[0]["eval_log_prob_at_2"] >= logs[0]["eval_log_prob_at_0"]
    assert 0 <= logs[0]["eval_top_2_strict_task_accuracy_at_2"] <= 1
    metrics = trainer.evaluate({"a": rows[:2], "b": rows[2:]})
    assert {"eval_a_top_1_pixel_accuracy_at_0", "eval_b_top_1_pixel_accuracy_at_2"} <= set(metrics)
    with pytest.raises(ValueError, match="no tasks to evaluate"):
        trainer_of(tiny_model(), tmp_path).evaluate()
