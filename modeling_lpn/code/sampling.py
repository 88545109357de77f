"""
Completions of benchmark tasks: drawn so that an interrupted run goes on where it stopped, and run to be scored.

A sample depends on the seed, its task and its number alone: the uniform number behind each of its tokens comes from a
generator of its own, and the token is found by inverting the distribution. So neither the batch, nor the number of
processes, nor an interruption changes what is drawn (but for tokens whose bounds a rounding error of the logits moves).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..batching import evaluating, map_batches
from ..codegen2.infilling_codegen2 import InfillFormat, infill
from ..records import RecordStore, model_digest, text_digest
from ..runs import cores_of_process
from ..sandbox.execution import ExecutionResult, require_code_execution, run_programs
from .benchmarks import TRUNCATIONS, CodeTask
from .evaluation import GREEDY
from .generation import decode_after, encode_prompt, generate_rows, stop_ids
from .metrics import compute_pass_at_k, score_intervals


CHECK_EVERY = 8  # steps between two looks whether a row has reached what will be cut off


@dataclass(frozen=True)
class SamplingConfig:
    """
    How completions are drawn.

    Args:
        num_samples (`int`, defaults to 1): samples of every task.
        temperature (`float`, defaults to 0.0): 0 takes the likeliest token.
        top_p (`float`, defaults to 1.0): share of the probability that may be drawn from, likeliest tokens first.
        max_new_tokens (`int`, defaults to 256): longest completion.
        batch_size (`int`, defaults to 16): completions at a time; changes no result.
        seed (`int`, defaults to 0): seed of all samples.
        truncation (`str`, defaults to `"none"`): rule of `TRUNCATIONS`; a sample ends where it will be cut.
        infill_format (`str` or [`InfillFormat`], defaults to `"codegen2"`): key of `INFILL_FORMATS`, `"auto"`, or a
            format, for tasks with a suffix.

    Raises:
        ValueError: a number out of its range, an unknown rule, or several greedy samples, which would all be the same.
    """

    num_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 16
    seed: int = 0
    truncation: str = "none"
    infill_format: str | InfillFormat = "codegen2"

    def __post_init__(self):
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"`truncation` is {self.truncation!r}; known: {', '.join(TRUNCATIONS)}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or min(self.num_samples, self.max_new_tokens) < 1:
            raise ValueError(
                f"`temperature` {self.temperature}, `top_p` {self.top_p}, `num_samples` {self.num_samples} and "
                f"`max_new_tokens` {self.max_new_tokens} must be at least 0, in (0, 1], at least 1 and at least 1"
            )
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"{self.num_samples} samples at `temperature` 0 are all the same; give `num_samples` 1 or a temperature"
            )


class InverseSampler(LogitsProcessor):
    """
    Draws each row's token with the row's own random numbers and leaves it as the only one to choose.

    Args:
        uniforms (`torch.Tensor` of shape `(rows, steps)`): in [0, 1), one for every token to come.
        temperature (`float`): what the logits are divided by.
        top_p (`float`): share of the probability to draw from.
    """

    def __init__(self, uniforms, temperature, top_p):
        self.uniforms, self.temperature, self.top_p, self.step = uniforms, temperature, top_p, 0

    def __call__(self, input_ids, scores):
        choice = draw_tokens(scores, self.uniforms[:, self.step], self.temperature, self.top_p)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, choice, 0.0)


def draw_tokens(scores, uniforms, temperature, top_p=1.0, top_k=None):
    """
    A token of every row, by inverting its distribution.

    Args:
        scores (`torch.Tensor` of shape `(rows, vocab_size)`): logits.
        uniforms (`torch.Tensor` of shape `(rows,)`): in [0, 1).
        temperature, top_p (`float` or `torch.Tensor` of shape `(rows, 1)`): what the logits are divided by, and the share
            of the probability to draw from, likeliest tokens first.
        top_k (`torch.Tensor` of shape `(rows, 1)`, *optional*): number of likeliest tokens to draw from, before `top_p`.

    Returns:
        `torch.Tensor` of shape `(rows, 1)`: token ids.
    """
    probs, order = (scores.float() / temperature).softmax(-1), None  # (rows, vocab_size)
    if top_k is not None or torch.is_tensor(top_p) or top_p < 1:
        probs, order = probs.sort(-1, descending=True)
        if top_k is not None:
            probs = torch.where(torch.arange(probs.shape[-1], device=probs.device) < top_k, probs, 0.0)
            probs = probs / probs.sum(-1, keepdim=True)
        probs = torch.where(probs.cumsum(-1) - probs < top_p, probs, 0.0)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    targets = uniforms[:, None].to(total) * total
    targets = torch.minimum(targets, torch.nextafter(total, torch.zeros_like(total)))  # rounding may reach the top
    choice = torch.searchsorted(cumulative, targets, right=True)
    return choice if order is None else order.gather(-1, choice)


class StopAtTruncation(StoppingCriteria):
    """Ends the rows whose text has reached what `truncate` cuts off."""

    def __init__(self, tokenizer, truncate):
        self.tokenizer, self.truncate, self.start, self.done = tokenizer, truncate, None, None

    def __call__(self, input_ids, scores, **kwargs):
        if self.start is None:
            self.start, self.done = input_ids.shape[1] - 1, torch.zeros(len(input_ids), dtype=torch.bool)
        if (input_ids.shape[1] - self.start) % CHECK_EVERY == 0:
            for row in (~self.done).nonzero()[:, 0].tolist():
                text = self.tokenizer.decode(input_ids[row, self.start :], clean_up_tokenization_spaces=False)
                self.done[row] = self.truncate(text) != text
        return self.done.to(input_ids.device)


def sample_completions(
    model,
    tokenizer,
    tasks: Sequence[CodeTask],
    sampling: SamplingConfig,
    path: str | os.PathLike,
) -> list[list[dict]]:
    """
    Draws completions of tasks and keeps them in a file, to which they are appended batch by batch.

    A later call with the same settings draws what is missing; a line that was only half written is drawn again. Under
    `accelerate launch` the processes share the work, each with a file of its own beside the main one until all is done.

    Args:
        model (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): the model and its tokenizer.
        tasks (`Sequence[CodeTask]`): either all have a suffix, and are filled by [`infill`], or none.
        sampling ([`SamplingConfig`]): how to draw; `num_samples` and `batch_size` may change between calls.
        path (`str` or path): a `.jsonl` file of lines `{"task_id", "sample", "completion", "finished"}`; its settings
            and a digest of tasks and weights are beside it in `.settings.json`.

    Returns:
        `list[list[dict]]`: for every task its lines in order, in every process. `completion` is what the model wrote, not
        cut yet; `finished` tells whether it ended (or reached what is cut off) before `max_new_tokens`.

    Raises:
        ValueError: the file was made with other settings, tasks or weights, or the tasks are of both kinds.
    """
    if len({task.suffix is None for task in tasks}) != 1:
        raise ValueError("some tasks have a suffix and some have none; complete and fill in separate calls")
    store = RecordStore(path, _settings(model, tasks, sampling), ("task_id", "sample"), ("completion", "finished"))
    known = store.open()
    keys = [(task, number) for task in tasks for number in range(sampling.num_samples)]
    todo = [(task, number) for task, number in keys if (task.task_id, number) not in known]
    with evaluating(model) as model:
        sampler = _Sampler(model, tokenizer, sampling, store)
        with tqdm(
            total=len(todo), unit="sample", disable=not todo or not PartialState().is_main_process
        ) as sampler.bar:
            new = map_batches(sampler, todo, lambda key: len(key[0].context + key[0].prompt), sampling.batch_size)
    known |= {store.key_of(record): record for record in new}
    store.close(known)
    return [[known[task.task_id, number] for number in range(sampling.num_samples)] for task in tasks]


def _settings(model, tasks, sampling) -> dict:
    """What the samples depend on."""
    settings = asdict(sampling)
    for name in ("num_samples", "batch_size"):
        del settings[name]
    texts = json.dumps([[task.task_id, task.context, task.prompt, task.suffix] for task in tasks])
    return {**settings, "tasks": text_digest(texts), "model": model_digest(model)}


class _Sampler:
    """Completions of a batch of tasks."""

    def __init__(self, model, tokenizer, sampling, store):
        self.model, self.tokenizer, self.sampling, self.store = model, tokenizer, sampling, store
        self.bar = None

    def __call__(self, batch) -> list[dict]:
        sampling, kwargs = self.sampling, dict(GREEDY)
        if sampling.temperature > 0:
            uniforms = torch.stack([self._uniforms(*key) for key in batch])
            sampler = InverseSampler(uniforms, sampling.temperature, sampling.top_p)
            kwargs["logits_processor"] = LogitsProcessorList([sampler])
        stop = StopAtTruncation(self.tokenizer, TRUNCATIONS[sampling.truncation])
        kwargs["stopping_criteria"] = StoppingCriteriaList([] if sampling.truncation == "none" else [stop])
        write = self._continue if batch[0][0].suffix is None else self._fill
        texts, finished = write([task for task, _ in batch], kwargs)
        # Of the text alone: what a row is padded with depends on its batch.
        truncate = TRUNCATIONS[sampling.truncation]
        finished = [end or truncate(text) != text for end, text in zip(finished, texts, strict=True)]
        records = [
            {"task_id": task.task_id, "sample": number, "completion": text, "finished": end}
            for (task, number), text, end in zip(batch, texts, finished, strict=True)
        ]
        self.store.append(records)
        self.bar.update(len(batch) * PartialState().num_processes)
        return records

    def _uniforms(self, task, number):
        digest = int.from_bytes(hashlib.sha256(task.task_id.encode()).digest()[:8])
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.sampling.seed, digest, number])))
        return torch.from_numpy(rng.random(self.sampling.max_new_tokens, dtype=np.float32))

    def _continue(self, tasks, kwargs):
        limit, stops = self.sampling.max_new_tokens, stop_ids(self.model, self.tokenizer)
        prompts = [encode_prompt(self.model, self.tokenizer, task.context + task.prompt, limit) for task in tasks]
        rows = generate_rows(self.model, prompts, stops, limit, **kwargs)
        texts = [decode_after(self.tokenizer, prompt, ids) for prompt, (ids, _) in zip(prompts, rows, strict=True)]
        return texts, [end for _, end in rows]

    def _fill(self, tasks, kwargs):
        kwargs |= {"infill_format": self.sampling.infill_format, "max_new_tokens": self.sampling.max_new_tokens}
        prefixes, suffixes = [task.context + task.prompt for task in tasks], [task.suffix for task in tasks]
        results = infill(self.model, self.tokenizer, prefixes, suffixes, **kwargs)
        return [result.spans[0] for result in results], [result.finished[0] for result in results]


def run_completions(
    tasks: Sequence[CodeTask],
    completions: Sequence[Sequence[str]],
    truncation: str = "none",
    num_workers: int | None = None,
    allow_code_execution: bool = False,
    **options,
) -> list[list[ExecutionResult]]:
    """
    Runs the programs that completions make of their tasks, each different program once.

    Under `accelerate launch` the programs are dealt to the processes and every process gets all results.

    Args:
        tasks (`Sequence[CodeTask]`): the tasks.
        completions (`Sequence[Sequence[str]]`): for each task some texts.
        truncation (`str`, defaults to `"none"`): rule of `TRUNCATIONS` to cut them by.
        num_workers (`int`, *optional*): programs at a time; this process's share of the cores if not given.
        allow_code_execution (`bool`, defaults to `False`): must be `True`: read `modeling_lpn/sandbox/execution.py` first.
        options: those of [`run_program`]: `timeout`, `memory_bytes`, `isolation`, `runner`.

    Returns:
        `list[list[ExecutionResult]]`: for each task a result for each completion.

    Raises:
        PermissionError: `allow_code_execution` is not given.
        SandboxError: see [`run_program`].
    """
    require_code_execution(allow_code_execution)
    cut = TRUNCATIONS[truncation]
    programs = [[task.program(cut(text)) for text in texts] for task, texts in zip(tasks, completions, strict=True)]
    state, unique = PartialState(), list(dict.fromkeys(program for some in programs for program in some))
    mine = range(len(unique))[state.process_index :: state.num_processes]
    if num_workers is None:
        num_workers = cores_of_process()
    with tqdm(total=len(mine), unit="program", disable=not state.is_main_process) as bar:
        programs_run = run_programs(
            [unique[index] for index in mine], num_workers, on_result=lambda *_: bar.update(), **options
        )
    results = dict(gather_object(list(zip(mine, programs_run, strict=True))))
    by_program = {program: results[index] for index, program in enumerate(unique)}
    return [[by_program[program] for program in some] for some in programs]


CHECKS = {"empty": lambda task: "", "canonical": lambda task: task.canonical_solution}


def check_benchmark(tasks: Sequence[CodeTask], check: str, **options) -> float:
    """
    Scores completions that need no model, which tells whether tasks and runner work.

    Args:
        tasks (`Sequence[CodeTask]`): the tasks.
        check (`str`): `"canonical"`, the solutions that come with the tasks: a sound benchmark gives 1.0, the ceiling; or
            `"empty"`, nothing: the floor.
        options: those of [`run_completions`].

    Returns:
        `float`: the share of tasks that pass.
    """
    results = run_completions(tasks, [[CHECKS[check](task)] for task in tasks], **options)
    return sum(result.passed for (result,) in results) / len(results)


def evaluate_benchmark(
    model,
    tokenizer,
    tasks: Sequence[CodeTask],
    sampling: SamplingConfig,
    path: str | os.PathLike,
    k: Sequence[int] = (1,),
    **options,
) -> dict:
    """
    Draws completions, runs them and scores them.

    Args:
        model, tokenizer, tasks, sampling, path: see [`sample_completions`].
        k (`Sequence[int]`, defaults to `(1,)`): numbers of samples for `pass@k`.
        options: those of [`run_completions`].

    Returns:
        `dict`: `scores` (`pass@k`; `finished_rate`, the share of samples that came to their end), `intervals_95` of `pass@k`
        ([`score_intervals`]), and what else a score means nothing without: the settings of `sampling`, `num_tasks`,
        `stop_rule`.
    """
    samples = sample_completions(model, tokenizer, tasks, sampling, path)
    completions = [[sample["completion"] for sample in some] for some in samples]
    results = run_completions(tasks, completions, sampling.truncation, **options)
    scores = compute_pass_at_k([[result.passed for result in some] for some in results], k)
    finished = [sample["finished"] for some in samples for sample in some]
    stop_rule = "end of text, or what the truncation cuts" if tasks[0].suffix is None else "end of the span or text"
    return {
        "scores": {**scores, "finished_rate": sum(finished) / len(finished)},
        "intervals_95": score_intervals(scores, len(tasks)),
        "num_tasks": len(tasks),
        "stop_rule": stop_rule,
        **asdict(sampling),
    }


__all__ = [
    "CHECKS",
    "InverseSampler",
    "SamplingConfig",
    "check_benchmark",
    "draw_tokens",
    "evaluate_benchmark",
    "run_completions",
    "sample_completions",
]
