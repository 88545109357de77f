"""Trainer of Latent Program Networks."""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_utils import SchedulerType

from ..hub import PublishingTrainer
from ..lpn.modeling_lpn import LPNOutput, mean_between_pairs
from ..lpn.search_lpn import SearchConfig
from .evaluation import evaluate_tasks


LOGGED_SCORES = ("strict_task_accuracy", "pixel_accuracy")


@torch.no_grad()
def describe_latents(
    outputs: LPNOutput, pair_mask: torch.Tensor | None = None, every_latent: bool = False
) -> dict[str, torch.Tensor]:
    """
    What the published code logs of the latents of a training step; each is a mean over tasks of a task's mean over its real
    pairs.

    Args:
        outputs ([`LPNOutput`]): Of the training loss.
        pair_mask (`torch.BoolTensor` of shape `(batch, pairs)`, *optional*): Which pairs are real; all by default.
        every_latent (`bool`): Whether a pair was decoded with each of the other latents, not with one program.

    Returns:
        `dict[str, torch.Tensor]` of scalars:
            `latent_mean_average`, `latent_logvar_average`, `latent_mean_norm` of a variational model: averages of the
            posterior's parameters. `latent_norm`, `latent_cosine`, `latent_distance`: norm of the pairs' latents, cosine
            and distance between two of a task. `program_norm`, `program_cosine`, `program_distance`: the same of the
            latents that were decoded, after the search. `program_latent_distance`: distance from the decoded latent to the
            latent of the pair that was left out.
    """
    latents, programs, mean, logvar = outputs.latents, outputs.programs, outputs.latent_mean, outputs.latent_logvar
    if pair_mask is None:
        pair_mask = torch.ones_like(latents[..., 0], dtype=torch.bool)
    weights = pair_mask / pair_mask.sum(1, keepdim=True) / pair_mask.shape[0]  # (batch, pairs), sum 1
    found = {}
    if logvar is not None:
        found["latent_mean_average"] = (mean.mean(-1) * weights).sum()
        found["latent_logvar_average"] = (logvar.mean(-1) * weights).sum()
        found["latent_mean_norm"] = (mean.norm(dim=-1) * weights).sum()
    for name, vectors in (("latent", latents), ("program", programs)):
        found[f"{name}_norm"] = (vectors.norm(dim=-1) * weights).sum()
        found[f"{name}_cosine"] = mean_between_pairs(_cosines(vectors), pair_mask)
        found[f"{name}_distance"] = mean_between_pairs(_distances(vectors), pair_mask)
    distance = ((programs - latents).norm(dim=-1) * weights).sum()
    found["program_latent_distance"] = found["latent_distance"] if every_latent else distance
    return found


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    norms = vectors.norm(dim=-1)
    return vectors @ vectors.transpose(1, 2) / (norms.unsqueeze(2) * norms.unsqueeze(1) + 1e-5)


def _distances(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors.unsqueeze(2) - vectors.unsqueeze(1)).norm(dim=-1)


class LPNTrainer(PublishingTrainer, Trainer):
    """
    `Trainer` that trains an [`LPNModel`] as the published code does and evaluates it by search.

    - Every scalar of [`LPNOutput`] and of [`describe_latents`] is logged, as its mean over micro-batches and processes since the last log.
    - Weight decay acts on every parameter, biases and embeddings included, and the learning rate of
      `constant_with_warmup` at step t (from 0) is `learning_rate * min(1, (t + 1) / (warmup_steps + 1))`.
    - Evaluation solves the rows of `eval_dataset` by latent search at every budget of `eval_budgets`.

    Args:
        train_search ([`SearchConfig`], *optional*): Search inside the training loss (paper, section 4.3). Without it
            the mean of the other pairs' latents is decoded.
        train_search_from (`int`, defaults to 0): Optimiser step from which that search is used, the mean before it. The
            paper trains its ARC model so (section 5.7), since a step without search costs less.
        eval_search ([`SearchConfig`], *optional*): Search of the evaluation; that of `model.config.search` by default.
        eval_budgets (`tuple[int]`): Budgets to evaluate; see [`evaluate_tasks`].
        kwargs: Arguments of `Trainer`; `processing_class` is an [`LPNProcessor`], `eval_dataset` a list of task rows
            (or a dict of such lists).
    """

    # The loss is a mean over the micro-batch, so the Trainer has to divide it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args,
        train_search: SearchConfig | None = None,
        train_search_from: int = 0,
        eval_search: SearchConfig | None = None,
        eval_budgets: tuple[int, ...] = (0,),
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.train_search, self.train_search_from = train_search, train_search_from
        self.eval_search, self.eval_budgets = eval_search, tuple(eval_budgets)
        self._sums, self._count = {}, 0
        # `Trainer` seeds all processes alike, which would give them the same posterior noise.
        torch.manual_seed(self.args.seed + self.args.process_index)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        search = self.train_search if self.state.global_step >= self.train_search_from else None
        outputs = model(**inputs, search_config=search)
        if model.training:
            self._count += 1
            every = search is not None and SearchConfig.of(search).spec.in_training == "every"
            for name, value in {**outputs, **describe_latents(outputs, inputs.get("pair_mask"), every)}.items():
                if name != "loss" and torch.is_tensor(value) and value.dim() == 0:
                    self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs, start_time=None):
        if "loss" in logs and self._sums:  # all processes log the loss at the same step: they can meet here
            names = sorted(self._sums)
            count = torch.tensor(float(self._count), device=self.args.device)
            totals = self.accelerator.reduce(torch.stack([*(self._sums[name] for name in names), count]), "sum")
            logs.update(zip(names, (totals[:-1] / totals[-1]).tolist(), strict=True))
            self._sums, self._count = {}, 0
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model):
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.CONSTANT_WITH_WARMUP:
            warmup = self.args.get_warmup_steps(num_training_steps)
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Solves tasks by search and logs the scores.

        Args:
            eval_dataset (`list[dict]` or `dict[str, list[dict]]`, *optional*): task rows, if not
                those of the trainer.
            ignore_keys: not used; part of the signature of `Trainer.evaluate`.
            metric_key_prefix (`str`): goes before the names of the metrics.

        Returns:
            `dict[str, float]`: for each budget `eval_top_1_strict_task_accuracy_at_{budget}` and so on.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError("there are no tasks to evaluate; pass `eval_dataset` as a list of task rows")
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, rows in eval_dataset.items():
                metrics.update(self.evaluate(rows, metric_key_prefix=f"{metric_key_prefix}_{name}"))
            return metrics
        output = evaluate_tasks(
            self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
            self.processing_class,
            eval_dataset,
            search_config=self.eval_search,
            budgets=self.eval_budgets,
            batch_size=self.args.per_device_eval_batch_size,
            seed=self.args.seed,
            progress=False,
        )
        metrics = {f"{metric_key_prefix}_runtime": output.seconds["total"]}
        for result in output.results:
            metrics[f"{metric_key_prefix}_log_prob_at_{result.budget}"] = result.log_prob
            for name, value in result.scores.items():
                if name.endswith(LOGGED_SCORES):
                    metrics[f"{metric_key_prefix}_{name}_at_{result.budget}"] = value
        if output.errors:
            metrics[f"{metric_key_prefix}_failed_tasks"] = len(output.errors)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
