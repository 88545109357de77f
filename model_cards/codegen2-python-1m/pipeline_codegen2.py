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
"""The pipeline "code-infilling"."""

from typing import Any

from transformers import AutoModelForCausalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .infilling_codegen2 import infill


class CodeInfillingPipeline(Pipeline):
    """
    Fills the holes of source code: `pipeline("code-infilling", model=model, tokenizer=tokenizer)`.

    Called with a dictionary, `{"prefix": ..., "suffix": ...}` or `{"pieces": [...]}` (the texts before, between and
    after the holes), or with a list of them, it returns a dictionary with `text`, `spans`, `finished` and `truncated`
    (see [`Infilling`]), or a list. `batch_size` rows of a list are generated together; other keyword arguments are
    those of [`infill`].

    Raises:
        ValueError: for a request with other keys, and as [`infill`].
    """

    _load_tokenizer = True  # type: ignore[assignment]  # the base class declares them None
    _load_processor = _load_image_processor = _load_feature_extractor = False  # type: ignore[assignment]

    def __call__(
        self, inputs: dict | list[dict], *args: Any, batch_size: int | None = None, **kwargs: Any
    ) -> dict[str, Any] | list[dict[str, Any]]:
        if not isinstance(inputs, list):
            return super().__call__((inputs,), *args, **kwargs)[0]
        # `infill` pads a batch by itself, so a tuple of requests goes through the pipeline as one input.
        size = batch_size or self._batch_size or 1
        batches = [tuple(inputs[start : start + size]) for start in range(0, len(inputs), size)]
        return [result for batch in batches for result in super(CodeInfillingPipeline, self).__call__(batch, **kwargs)]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict[str, Any], dict]:
        return {}, kwargs, {}

    def preprocess(self, inputs: tuple[dict, ...]) -> dict[str, Any]:  # type: ignore[override]
        pieces = []
        for request in inputs:
            keys = set(request) if isinstance(request, dict) else None
            if keys == {"prefix", "suffix"}:
                pieces.append([request["prefix"], request["suffix"]])
            elif keys == {"pieces"}:
                pieces.append(request["pieces"])
            else:
                what = f"is a {type(request).__name__}" if keys is None else f"has the keys {sorted(keys)}"
                raise ValueError(
                    f"A request {what}; give a dictionary of `prefix` and `suffix`, or of `pieces` for several holes."
                )
        return {"pieces": pieces}

    def _forward(self, model_inputs: dict[str, Any], **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"infillings": infill(self.model, self.tokenizer, pieces=model_inputs["pieces"], **kwargs)}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        return [
            {"text": result.text, "spans": result.spans, "finished": result.finished, "truncated": result.truncated}
            for result in model_outputs["infillings"]
        ]


PIPELINE_REGISTRY.register_pipeline(
    "code-infilling", pipeline_class=CodeInfillingPipeline, pt_model=(AutoModelForCausalLM,), type="text"
)
