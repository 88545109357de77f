"""CodeGen2 under Trainer, PEFT, FSDP2 and TRL, and in a process that has only the files of its repository."""

import os
import subprocess
import sys

import pytest
import torch
from cases_codegen2 import SIZES, left_padded, tiny_config, tiny_model, tiny_tokenizer, token_ids, tokenizer_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, pipeline

from modeling_lpn import CodeGen2ForCausalLM, CodeGen2ForSequenceClassification


def rows(number, length=10):
    return [{"input_ids": ids, "labels": ids.clone()} for ids in token_ids(number, length)]


def arguments(folder, **kwargs):
    settings = {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2, "seed": 3}
    settings |= {"per_device_train_batch_size": 2, "lr_scheduler_type": "constant", "save_strategy": "no"}
    return TrainingArguments(**{**settings, **kwargs})


def test_resuming_is_bitwise(tmp_path):
    data = rows(12)
    whole = tiny_model()
    Trainer(whole, arguments(tmp_path / "whole", max_steps=4), train_dataset=data).train()
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    Trainer(tiny_model(), arguments(tmp_path / "parts", **saving), train_dataset=data).train()
    resumed = tiny_model(seed=1)
    trainer = Trainer(resumed, arguments(tmp_path / "parts", **saving), train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_best_model_is_loaded(tmp_path):
    kwargs = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    kwargs |= {"load_best_model_at_end": True, "learning_rate": 5.0}  # one such step ruins the model
    kwargs |= {"metric_for_best_model": "loss", "warmup_steps": 1, "lr_scheduler_type": "constant_with_warmup"}
    trainer = Trainer(tiny_model(), arguments(tmp_path, **kwargs), train_dataset=rows(4), eval_dataset=rows(2))
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_trainer_accumulates_as_a_larger_batch(tmp_path, kind):
    def run(batch, steps):
        torch.manual_seed(0)
        if kind == "causal":
            model, data = tiny_model(), rows(4)
            data[0]["labels"][:6] = -100  # parts with different numbers of targets
        else:
            model = CodeGen2ForSequenceClassification(tiny_config(num_labels=3, initializer_range=0.2))
            data = [{"input_ids": ids, "labels": number % 3} for number, ids in enumerate(token_ids(4, 10))]
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 1}
        settings |= {"optim": "sgd", "learning_rate": 0.1}
        Trainer(model, arguments(tmp_path, **settings), train_dataset=data).train()
        return model

    whole, parts = run(4, 1), run(1, 4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_lora_round_trip(tmp_path):
    peft = pytest.importorskip("peft")
    model, (ids, mask) = tiny_model(), left_padded()
    model.save_pretrained(tmp_path / "base")
    before = model(ids, attention_mask=mask).logits.detach()
    targets = list(model.lora_target_modules)
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    assert len(adapted.targeted_module_names) == 4 * SIZES["n_layer"]

    def gradients():
        loss = adapted(input_ids=ids, attention_mask=mask, labels=ids, prefix_length=2).loss
        trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
        return dict(zip(trained, torch.autograd.grad(loss, trained.values()), strict=True))

    wanted = gradients()
    assert len(wanted) == 2 * 4 * SIZES["n_layer"] and all(value.any() for value in wanted.values())
    adapted.train().activation_checkpointing_enable()
    adapted.enable_input_require_grads()
    assert all(torch.equal(value, wanted[name]) for name, value in gradients().items())
    adapted.eval().activation_checkpointing_disable()
    with torch.no_grad():
        wanted = adapted(ids, attention_mask=mask).logits
        assert (wanted - before).abs().max() > 1e-2
        adapted.save_pretrained(tmp_path / "adapter")
        base = CodeGen2ForCausalLM.from_pretrained(tmp_path / "base").eval()
        again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(again(ids, attention_mask=mask).logits, wanted, atol=1e-5, rtol=0)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(ids, attention_mask=mask).logits, wanted, atol=1e-4, rtol=0)
        merged.save_pretrained(tmp_path / "merged")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(plain(ids, attention_mask=mask).logits, wanted, atol=1e-4, rtol=0)
    tokens = adapted.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokens.shape == (3, 15)


def run_python(code, folder, **env):
    """Runs code in a fresh process whose path does not hold this repository."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), **env}
    variables.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


REMOTE = """
import sys, torch
sys.modules["modeling_lpn"] = None  # importing the package fails, installed or not
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import Trainer, TrainingArguments, pipeline
model = AutoModelForCausalLM.from_pretrained("repo", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model)
case = torch.load("case.pt", weights_only=True)
logits = model(case["ids"], attention_mask=case["mask"], prefix_length=2).logits
torch.testing.assert_close(logits, case["logits"], atol=1e-5, rtol=0)
tokenizer = AutoTokenizer.from_pretrained("repo")
print(model.infill(tokenizer, "def add(", "b", max_new_tokens=4).text)
fill = pipeline(model="pipeline", trust_remote_code=True)
print(fill({"prefix": "def add(", "suffix": "b"}, max_new_tokens=4)["text"])

base = AutoModel.from_pretrained("base", trust_remote_code=True)
classifier = AutoModelForSequenceClassification.from_pretrained("classifier", trust_remote_code=True)
assert classifier(case["ids"]).logits.shape == (3, 3)

rows = [{"input_ids": ids, "labels": ids} for ids in case["data"]]
arguments = TrainingArguments(
    "run", use_cpu=True, disable_tqdm=True, max_steps=4, per_device_train_batch_size=2, seed=3, learning_rate=1e-2,
    lr_scheduler_type="constant", save_strategy="steps", save_steps=2
)
trainer = Trainer(model, arguments, train_dataset=rows)
trainer.train(resume_from_checkpoint="run/checkpoint-2")
for name, value in model.state_dict().items():
    torch.testing.assert_close(value, case["trained"][name], atol=1e-6, rtol=0)
model.save_pretrained("again")
AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
"""


def test_remote_code_loads_infills_and_resumes_without_the_package(tmp_path):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = CodeGen2ForCausalLM(tokenizer_config(tokenizer)).eval()
    model.save_pretrained(tmp_path / "repo")
    tokenizer.save_pretrained(tmp_path / "repo")
    files = {file.name for file in (tmp_path / "repo").glob("*.py")}
    assert files == {f"{name}_codegen2.py" for name in ("configuration", "modeling", "masking", "loss", "infilling")}
    pipeline("code-infilling", model=model, tokenizer=tokenizer).save_pretrained(tmp_path / "pipeline")
    model.transformer.save_pretrained(tmp_path / "base")
    CodeGen2ForSequenceClassification(tokenizer_config(tokenizer, num_labels=3)).save_pretrained(
        tmp_path / "classifier"
    )
    ids, mask = left_padded()
    case = {"ids": ids, "mask": mask, "data": token_ids(12, 10)}
    case["logits"] = model(ids, attention_mask=mask, prefix_length=2).logits.detach()
    wanted = model.infill(tokenizer, "def add(", "b", max_new_tokens=4).text

    settings = arguments(tmp_path / "run", max_steps=4, save_strategy="steps", save_steps=2)
    data = [{"input_ids": row, "labels": row} for row in case["data"]]
    Trainer(model, settings, train_dataset=data).train()
    case["trained"] = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(case, tmp_path / "case.pt")
    assert run_python(REMOTE, tmp_path).count(wanted) == 2


FSDP = """
import sys, torch, torch.distributed as dist
sys.path[:0] = [{root!r}, {tests!r}]
from torch.distributed.fsdp import fully_shard
from cases_codegen2 import tiny_model, token_ids
rank, size = int(sys.argv[1]), 2
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=size)
model, ids = tiny_model(), token_ids(4, 10)
plain = tiny_model()
blocks = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
assert len(blocks) == 2
for module in [*blocks, model]:
    fully_shard(module)
model(ids[2 * rank : 2 * rank + 2], labels=ids[2 * rank : 2 * rank + 2]).loss.backward()
plain(ids, labels=ids).loss.backward()
for (name, ours), wanted in zip(model.named_parameters(), plain.parameters()):
    torch.testing.assert_close(ours.grad.full_tensor(), wanted.grad, atol=1e-5, rtol=1e-4, msg=name)
dist.destroy_process_group()
"""


def test_accelerate_wraps_the_blocks():
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    model = tiny_model()
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert [name for name, module in model.named_modules() if wraps(module)] == ["transformer.h.0", "transformer.h.1"]


@pytest.mark.slow
def test_blocks_shard_with_fsdp2(tmp_path):
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = FSDP.format(root=os.path.dirname(tests), tests=tests)
    commands = [[sys.executable, "-c", code, str(rank), str(tmp_path / "store")] for rank in range(2)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_trl_fine_tunes_it(tmp_path, lora):
    trl, peft, datasets = (pytest.importorskip(name) for name in ("trl", "peft", "datasets"))
    tokenizer, losses = tiny_tokenizer(), []
    data = datasets.Dataset.from_dict({"text": ["def add(a, b):\n    return a + b\n", "x = 1\n"] * 4})
    for packing in (False, True):
        torch.manual_seed(0)
        model = CodeGen2ForCausalLM(tokenizer_config(tokenizer))
        targets = list(model.lora_target_modules)
        adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets) if lora else None
        settings = {"output_dir": str(tmp_path), "max_steps": 2, "use_cpu": True, "bf16": False, "max_length": 32}
        settings |= {"packing": packing, "report_to": "none", "per_device_train_batch_size": 8, "save_strategy": "no"}
        settings |= {"logging_steps": 1, "learning_rate": 1e-2}
        arguments = {"args": trl.SFTConfig(**settings), "train_dataset": data, "processing_class": tokenizer}
        trainer = trl.SFTTrainer(model, peft_config=adapter, **arguments)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    plain, packed = losses
    assert plain[1] < plain[0] and packed[0] == pytest.approx(plain[0], abs=1e-4)  # packed files are kept apart
