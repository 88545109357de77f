# Copyright 2026 The modeling_lpn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The pipeline "program-induction"."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import ModelOutput

from .modeling_lpn import LPNModel
from .processing_lpn import LPNProcessor
from .search_lpn import SearchConfig


MAX_FILE_SIZE = 2**20  # bytes; the largest task of ARC-AGI takes 50 kB


class ProgramInductionPipeline(Pipeline):
    """
    Infers the program of ARC tasks by latent search and executes it: `pipeline("program-induction", model=folder)`.

    Called with a task, ARC's `{"train": [{"input", "output"}], "test": [{"input"}]}` or the path of a JSON file that holds
    one, it returns a dictionary; called with a list of tasks, a list of such dictionaries:

    - `task_id` (`str`): as the task has it, or the name of its file; empty if there is neither;
    - `grids` (`list[list[grid]]`): for each test input the candidates, best first;
    - `scores` (`list[list[float]]`): what ranks the candidates: the log-likelihood of the demonstrations in nats, unless
      `prior_weight` or `rank_by` say otherwise;
    - `latents` (`list[list[list[float]]]`): the latent programs that wrote the candidates;
    - `num_evaluations` (`int`): the decoder evaluations that the search spent on this task.

    Args, all of them optional and given to the pipeline or to a call:
        budget (`int`): Gradient steps, or samples of a random or evolutionary search.
        num_candidates (`int`, defaults to 2): Grids for each test input; ARC-AGI allows two.
        seed (`int`, defaults to 0): Seed of the random numbers of a search, the same for every task.
        batch_size (`int`, defaults to 1): Tasks of a list that are searched together; results stay the same.
        search_config (`SearchConfig` or `dict`): Settings of the search; those saved with the model by default.
        other keyword arguments: Single settings of the search, as in `method="random"`.

    Raises:
        ValueError: for a malformed task or file, before anything is searched; for a wrong setting, and a `budget` where the
            method has none.
        TypeError: for a misspelt setting, and for an input that is no task.
        OSError: a file cannot be read.
    """

    _load_processor = True  # type: ignore[assignment]  # the base class declares them None
    _load_tokenizer = _load_image_processor = _load_feature_extractor = False  # type: ignore[assignment]

    model: LPNModel
    processor: LPNProcessor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tokenizer = None  # the base class takes the processor's, which only stands there for Trainer

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        is_list = isinstance(inputs, list | tuple)
        # All of them before the first is searched: a mistake at the end of a list costs no work.
        tasks = [self._read(task, number) for number, task in enumerate(inputs if is_list else [inputs])]
        size = batch_size or self._batch_size or 1
        # The processor pads a batch by itself, so a tuple of tasks goes through the pipeline as one input.
        batches = [tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)]
        call = super().__call__
        results = [result for batch in batches for result in call(batch, *args, **kwargs)]
        return results if is_list else results[0]

    def _read(self, task: Any, number: int) -> Mapping[str, Any]:
        """A task, checked; `number` names it in messages where nothing else does."""
        name = f"{number} of the list"
        if isinstance(task, str | os.PathLike):
            name = Path(task).stem
            task = read_task(task)
        if not isinstance(task, Mapping):
            raise TypeError(
                f"A task is a {type(task).__name__} ({task!r:.40}); give a dictionary, the path of a JSON file, or a list."
            )
        self.processor.validate_task(task, task_id=name)
        return task

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return {}, kwargs, {}

    def preprocess(self, input_: Any, **kwargs: Any) -> dict[str, Any]:
        return {"task_ids": [str(task.get("task_id") or "") for task in input_], **self.processor(list(input_))}

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> ModelOutput:
        task_ids = input_tensors.pop("task_ids")
        output = self.model.generate(**input_tensors, **self._settings(**kwargs))
        return ModelOutput(task_ids=task_ids, output=output, query_mask=input_tensors["query_mask"])

    def _settings(
        self,
        budget: int | None = None,
        num_candidates: int = 2,
        seed: int = 0,
        search_config: SearchConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """The arguments of a call as those of [`LPNModel.generate`]."""
        search = SearchConfig.of(self.model.config.search if search_config is None else search_config)
        search = search.override(**settings)
        if budget is not None and search.spec.budget is None:
            raise ValueError(f"`budget` is {budget!r}, but search method {search.method!r} has none; leave it out.")
        search = search if budget is None else search.at_budget(budget)
        return {
            "search_config": search.to_dict(),  # the model may bring another copy of the class
            "num_candidates": num_candidates,
            "generator": torch.Generator(self.model.device).manual_seed(seed),
        }

    def postprocess(self, model_outputs: ModelOutput, **kwargs: Any) -> list[dict[str, Any]]:
        output, mask = model_outputs["output"], model_outputs["query_mask"]
        found, grids = output.search_output, self.processor.post_process(output, mask)
        # A candidate's latent is one of the ranked ones: (batch, queries, candidates, ranked)
        same = (output.latents.unsqueeze(3) == found.latents[:, None, None]).all(-1)
        scores = found.scores[:, None].expand(-1, same.shape[1], -1).gather(2, same.int().argmax(-1))
        return [
            {
                "task_id": task_id,
                "grids": grids[row],
                "scores": scores[row][mask[row]].tolist(),
                "latents": output.latents[row][mask[row]].tolist(),
                "num_evaluations": int(found.num_evaluations[row]),
            }
            for row, task_id in enumerate(model_outputs["task_ids"])
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model, processor and code, so that `pipeline(model=folder, trust_remote_code=True)` finds all of them."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def read_task(path: str | os.PathLike) -> dict[str, Any]:
    """
    Reads a JSON file with one task; without a `task_id` it gets the name of the file.

    Raises `FileNotFoundError`, `ValueError` for a file over 1 MiB or one that holds no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no task file {str(path)!r}; give the path of a JSON file.")
    if (size := path.stat().st_size) > MAX_FILE_SIZE:
        raise ValueError(
            f"{path} has {size} bytes, more than {MAX_FILE_SIZE}; a task is smaller, give one task a file."
        )
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); give a file in ARC's JSON form.") from error
    if not isinstance(task, dict):
        raise ValueError(
            f"{path} holds a {type(task).__name__}, not one task; give the tasks as a list of dictionaries."
        )
    return {"task_id": path.stem, **task}


PIPELINE_REGISTRY.register_pipeline(
    "program-induction", pipeline_class=ProgramInductionPipeline, pt_model=(AutoModel,), type="multimodal"
)


__all__ = ["ProgramInductionPipeline", "read_task"]
