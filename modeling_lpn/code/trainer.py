"""Trainer of code models on mixtures of objectives, and the models it starts from."""

import time

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, Trainer

from ..codegen2.configuration_codegen2 import CodeGen2Config
from ..codegen2.loss_codegen2 import token_losses
from ..codegen2.modeling_codegen2 import CodeGen2ForCausalLM
from ..hub import PublishingTrainer
from ..runs import load_pretrained
from .evaluation import evaluate_infilling
from .horizon import HorizonHead
from .objectives import IGNORE_INDEX, objective_numbers
from .tokenizer import prepare_codegen2_tokenizer


def load_code_tokenizer(name: str):
    """
    A tokenizer by Hub id or folder; one in the CodeGen2 layout is repaired, see [`prepare_codegen2_tokenizer`].

    Args:
        name (`str`): Hub id or folder.

    Returns:
        `PreTrainedTokenizerBase`
    """
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name)
    return prepare_codegen2_tokenizer(tokenizer) if "<mask_1>" in tokenizer.get_vocab() else tokenizer


def load_code_model(name: str | None, tokenizer, attn_implementation: str = "sdpa", **settings):
    """
    The model that training starts from.

    Args:
        name (`str`, *optional*): Hub id or folder of any causal language model. A CodeGen2 release is loaded by its own
            class, which `AutoModelForCausalLM` would not do; `None` is a new CodeGen2.
        tokenizer (`PreTrainedTokenizerBase`): gives a new model its vocabulary size and token ids.
        attn_implementation (`str`, defaults to `"sdpa"`): see transformers.
        settings: of [`CodeGen2Config`]; those of a checkpoint are changed, which its weights must allow.

    Returns:
        `PreTrainedModel`

    Raises:
        ValueError: for a model that embeds fewer tokens than the tokenizer has.
    """
    if name is None:
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        ids["eom_token_id"] = tokenizer.get_vocab().get("<eom>")
        config = CodeGen2Config(**{"vocab_size": len(tokenizer), "mp_num": 1, **ids, **settings})
        model = CodeGen2ForCausalLM._from_config(config, attn_implementation=attn_implementation)
    else:
        model_type = load_pretrained(PreTrainedConfig.get_config_dict, name)[0].get("model_type", "")
        kind = CodeGen2ForCausalLM if model_type.startswith("codegen") else AutoModelForCausalLM
        model = kind.from_pretrained(name, attn_implementation=attn_implementation, **settings)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model embeds {rows}; give the tokenizer that belongs to it."
        )
    return model


def add_lora(model, r: int, alpha: int):
    """
    Puts LoRA adapters on the layers that the model names in `lora_target_modules`, else on all linear ones.

    Args:
        model (`PreTrainedModel`): frozen from here on.
        r, alpha (`int`): rank and scale of the adapters.

    Returns:
        `PeftModel`
    """
    from peft import LoraConfig, get_peft_model

    targets = list(getattr(model, "lora_target_modules", ())) or "all-linear"
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=targets))


class CodeTrainer(PublishingTrainer, Trainer):
    """
    `Trainer` for the batches of [`DataCollatorForCodeObjectives`] with `information=True`, and any causal language model.

    The loss is the mean over all targets of the optimiser step, however they are spread over accumulation steps and
    processes; with the collator's `span_weight` the terms are weighted, and still divided by the number of targets.
    Beside it every log has

    - `loss_causal`, `loss_span_corruption` ...: mean loss of the targets in units of each objective, not weighted;
    - `target_fraction`: share of the tokens that carry loss (the lesson of CodeGen2, arXiv 2305.02309: maximise it);
    - `tokens_per_second`: of all processes together, evaluation not counted;
    - `tokens_SOURCE`: source tokens seen so far, exact also after a resume; they stand in `trainer_state.json` as well.

    Evaluation gives `eval_loss` (of `eval_dataset`) and, given `infill_cases`, exact match, edit similarity and the rate
    of spans that end in `<eom>`.

    Args:
        infill_cases (`list[InfillCase]`, *optional*): holes in held-out files, see [`make_infill_cases`].
        infill_settings (`dict`, *optional*): `infill_format` and `max_new_tokens` of [`evaluate_infilling`].
        horizon_weight (`float`, defaults to 0.0): weight of horizon-length prediction ([`HorizonHead`]), whose mean absolute
            error over all tokens of middles in the step (logged as `loss_horizon`) is added to the loss; the collator's
            `horizon` must be set. The head is part of the checkpoints, for a resume, and is gone when training ends. The 0.1 of
            our recipes is ours; that of the paper is not known to us.
        kwargs: arguments of `Trainer`; `train_dataset` is a [`PackedSequences`] or [`StreamedSequences`], the
            `processing_class` the tokenizer.

    Raises:
        ValueError: for `infill_cases` under FSDP, where no process has the whole model to write with; for a `horizon_weight`
            below 0, under FSDP, or with adapters, whose checkpoints have no place for the head.
    """

    def __init__(
        self, *args, infill_cases=None, infill_settings: dict | None = None, horizon_weight: float = 0.0, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.horizon_weight = horizon_weight
        if horizon_weight:
            self._check_horizon()
        if infill_cases and self.is_fsdp_enabled:
            raise ValueError(
                f"{len(infill_cases)} infill cases are to be written under FSDP, where no process has the whole model; "
                "set `num_infill_cases` 0 and evaluate the saved model with recipes/evaluate_codegen2.py."
            )
        self.infill_cases, self.infill_settings = infill_cases, infill_settings or {}
        # The targets are counted over a whole step, after the shift, and the loss is divided by their number.
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        self._reset()

    def _reset(self):
        self._sums = torch.zeros(2, len(objective_numbers()), dtype=torch.float64)  # losses and targets by objective
        self._tokens, self._sources = 0, None
        self._horizon_sums = torch.zeros(2, dtype=torch.float64)  # errors and tokens of middles
        self._since, self._paused = time.perf_counter(), 0.0

    def _check_horizon(self):
        fault = "" if self.horizon_weight > 0 else "give a number above 0, or 0 for none"
        if self.is_fsdp_enabled:
            fault = "its head is not sharded by FSDP; set it to 0, or train without FSDP"
        elif hasattr(self.model, "peft_config"):
            fault = "checkpoints of adapters have no place for its head; set it to 0, or train all weights"
        if fault:
            raise ValueError(f"`horizon_weight` is {self.horizon_weight}, but {fault}.")

    def train(self, *args, **kwargs):
        """As `Trainer.train`, with a [`HorizonHead`] meanwhile if there is a `horizon_weight`."""
        if not self.horizon_weight:
            return super().train(*args, **kwargs)
        self.model.horizon_head = HorizonHead(self.model)
        try:
            return super().train(*args, **kwargs)
        finally:
            self.model.horizon_head.remove()
            del self.model.horizon_head

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As that of `Trainer`; it also counts the tokens of middles in the whole step."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.horizon_weight and batches:
            if "horizons" not in batches[0]:
                raise ValueError(
                    f"`horizon_weight` is {self.horizon_weight}, but the batches have no `horizons`; set `horizon=True` of"
                    " the collator"
                )
            count = sum((batch["horizons"] >= 0).sum() for batch in batches).to(device)
            if self.args.average_tokens_across_devices:
                count = self.accelerator.reduce(count, "sum")
            self._num_horizons = count.clamp(min=1)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, objectives = inputs.pop("labels"), inputs.pop("objective_ids", None)
        sources, weights = inputs.pop("source_tokens", None), inputs.pop("loss_weights", None)
        inputs.pop("segment_ids", None)
        horizons = inputs.pop("horizons", None)
        outputs = model(**inputs, use_cache=False)
        losses, targets = token_losses(outputs.logits, labels)
        has_target = targets != IGNORE_INDEX
        # The prediction at a position is of the token after it.
        total = (losses if weights is None else losses * nn.functional.pad(weights[:, 1:], (0, 1))).sum()
        if num_items_in_batch is None:
            loss = total / has_target.sum()
        else:
            loss = total / num_items_in_batch
            if self.horizon_weight and model.training:
                errors = self.model.horizon_head.errors(horizons)
                loss = loss + self.horizon_weight * errors / self._num_horizons
                self._horizon_sums += torch.stack([errors.detach(), (horizons >= 0).sum()]).double().cpu()
            if model.training and self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # the gradients of the processes are averaged
        if model.training and objectives is not None:
            self._record(losses.detach(), has_target, objectives, sources)
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss

    def _record(self, losses, has_target, objectives, sources):
        objectives = nn.functional.pad(objectives[:, 1:], (0, 1)).flatten()
        values = torch.stack([losses.flatten().double(), has_target.flatten().double()])
        self._sums = self._sums.to(losses.device).index_add_(1, objectives, values)
        self._tokens += objectives.numel()
        self._sources = sources.amax(0)

    def log(self, logs, start_time=None):
        if "loss" in logs and self._tokens:  # all processes log the loss at the same step: they can meet here
            losses, targets = self.accelerator.reduce(self._sums.float(), "sum")
            tokens = self._tokens * self.accelerator.num_processes
            for name, number in objective_numbers().items():
                if targets[number]:
                    logs[f"loss_{name}"] = (losses[number] / targets[number]).item()
            if self.horizon_weight:
                errors, middles = self.accelerator.reduce(self._horizon_sums.float().to(losses.device), "sum")
                logs["loss_horizon"] = (errors / middles.clamp(min=1)).item()
            logs["target_fraction"] = (targets.sum() / tokens).item()
            logs["tokens_per_second"] = tokens / (time.perf_counter() - self._since - self._paused)
            seen = self.accelerator.gather(self._sources[None]).amax(0).tolist()
            logs.update(zip((f"tokens_{name}" for name in self.train_dataset.source_names), seen, strict=True))
            self._reset()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As `Trainer.evaluate`, then fills the holes of `infill_cases`."""
        start = time.perf_counter()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.infill_cases and metric_key_prefix == "eval":
            scores, _ = evaluate_infilling(
                self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
                self.processing_class,
                self.infill_cases,
                batch_size=self.args.per_device_eval_batch_size,
                **self.infill_settings,
            )
            scores = {f"{metric_key_prefix}_infill_{name}": value for name, value in scores.items()}
            self.log(dict(scores))
            metrics.update(scores)
        self._paused += time.perf_counter() - start
        return metrics


__all__ = ["CodeTrainer", "add_lora", "load_code_model", "load_code_tokenizer"]
