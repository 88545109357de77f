"""The pipeline of a trained model, by the name of its folder or Hub repository, without running code from there."""

import os

from transformers import AutoTokenizer, Pipeline, PreTrainedConfig, PreTrainedModel

from .code.tokenizer import prepare_codegen2_tokenizer
from .codegen2.modeling_codegen2 import CodeGen2ForCausalLM
from .codegen2.pipeline_codegen2 import CodeInfillingPipeline
from .lpn.modeling_lpn import LPNModel
from .lpn.pipeline_lpn import ProgramInductionPipeline
from .lpn.processing_lpn import LPNProcessor, StringProcessor
from .runs import check_download, load_pretrained


HOLE = "<FILL_ME>"
# The family of a `model_type`; "codegen" is what CodeGen2's released checkpoints say.
FAMILIES = {"lpn": "program-induction", "codegen2": "code-infilling", "codegen": "code-infilling"}


def model_task(name: str | os.PathLike) -> str:
    """
    What a model is for: `"program-induction"` or `"code-infilling"`.

    Args:
        name (`str` or path): a folder or a Hub repository; only its `config.json` is read.

    Raises:
        FileNotFoundError: there is neither a folder nor a repository of that name.
        ValueError: it has no readable `config.json`, or a model of another kind.
    """
    return FAMILIES[_model_type(str(name))]


def load_pipeline(name: str | os.PathLike, task: str | None = None, **kwargs) -> Pipeline:
    """
    Loads the pipeline of a model. The code is this package's, whatever the repository brings.

    Args:
        name (`str` or path): a folder or a Hub repository.
        task (`str`, *optional*): `"program-induction"` or `"code-infilling"`, if it must be that.
        kwargs: of the pipeline, as in `batch_size=8` or `device="cpu"`.

    Returns:
        [`ProgramInductionPipeline`] or [`CodeInfillingPipeline`].

    Raises:
        FileNotFoundError: there is neither a folder nor a repository of that name.
        ConnectionError: a download from the Hub broke off.
        ValueError: it cannot be read, has a model of another kind or for another task, or lacks weights.

    Example:

    ```python
    >>> from modeling_lpn.pipelines import load_pipeline
    >>> load_pipeline("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: there is no folder 'no/such/folder', and the Hub gives no model of that name (...); a private one ...

    ```
    """
    name = str(name)
    kind = _model_type(name)
    if task not in (None, FAMILIES[kind]):
        raise ValueError(f"{name!r} holds a {kind} model, which is for {FAMILIES[kind]}; give a model for {task}")
    try:
        if kind == "lpn":
            processor = _processor_class(name).from_pretrained(name)
            return ProgramInductionPipeline(_load_whole(LPNModel, name), processor=processor, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(name)
        if kind == "codegen":
            tokenizer = prepare_codegen2_tokenizer(tokenizer)
        return CodeInfillingPipeline(_load_whole(CodeGen2ForCausalLM, name), tokenizer=tokenizer, **kwargs)
    except Exception as error:  # safetensors, tokenizers, JSON and transformers each raise errors of their own
        check_download(name, error)
        raise ValueError(f"{name!r} cannot be loaded: {_first_line(error)}") from error


def split_at_holes(text: str, hole: str = HOLE) -> list[str]:
    """
    The texts before, between and after the holes.

    Raises `ValueError` where there is no hole.
    """
    pieces = text.split(hole) if hole else [text]
    if len(pieces) < 2:
        raise ValueError(f"the text has no hole; write {hole or HOLE} where code is missing")
    return pieces


def _model_type(name: str) -> str:
    try:
        config, _ = load_pretrained(PreTrainedConfig.get_config_dict, name)
    except (OSError, ValueError) as error:
        if isinstance(error, (FileNotFoundError, ConnectionError)):
            raise
        raise ValueError(f"{name!r} holds no model that can be read: {_first_line(error)}") from error
    kind = config.get("model_type")
    if kind is None:
        raise ValueError(f"{name!r} has no config.json with a `model_type`; give the folder of a saved model")
    if kind not in FAMILIES:
        raise ValueError(f"{name!r} holds a model of type {kind!r}; known: {', '.join(FAMILIES)}")
    return kind


def _processor_class(name: str) -> type[LPNProcessor]:
    """The class that a saved processor names: that of strings, or else that of grids."""
    saved, _ = LPNProcessor.get_processor_dict(name)
    return StringProcessor if saved.get("processor_class") == StringProcessor.__name__ else LPNProcessor


def _load_whole(kind: type[PreTrainedModel], name: str) -> PreTrainedModel:
    """A model all of whose weights were found: transformers only warns where some are new."""
    model, info = kind.from_pretrained(name, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    return model.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


__all__ = ["HOLE", "load_pipeline", "model_task", "split_at_holes"]
