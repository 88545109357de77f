"""Neural program synthesis for Hugging Face: Latent Program Networks and CodeGen2."""

import importlib

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoProcessor

from .code import infill_formats  # noqa: F401 (registers the formats of other families)
from .code.collator import DataCollatorForCodeObjectives
from .code.corpora import load_corpus, open_sources, tokenize_corpus
from .code.objectives import ObjectiveMixture
from .code.packing import DocumentStream, PackedSequences
from .code.tokenizer import prepare_codegen2_tokenizer, train_codegen2_tokenizer
from .codegen2.configuration_codegen2 import CodeGen2Config
from .codegen2.infilling_codegen2 import infill, infill_layout
from .codegen2.modeling_codegen2 import CodeGen2ForCausalLM, CodeGen2ForSequenceClassification, CodeGen2Model
from .codegen2.pipeline_codegen2 import CodeInfillingPipeline
from .lpn.configuration_lpn import LPNConfig
from .lpn.modeling_lpn import LPNModel
from .lpn.pipeline_lpn import ProgramInductionPipeline
from .lpn.processing_lpn import LPNProcessor, StringProcessor
from .lpn.search_lpn import SearchConfig
from .tasks.arc import load_tasks, save_tasks
from .tasks.collator import DataCollatorForGridTasks
from .tasks.evaluation import evaluate_tasks
from .tasks.generators import PatternTask
from .tasks.pairs import PairTask
from .tasks.plots import plot_accuracy_by_budget, plot_latent_map, plot_search, plot_task
from .tasks.stream import TaskStream


AutoConfig.register("lpn", LPNConfig, exist_ok=True)
AutoModel.register(LPNConfig, LPNModel, exist_ok=True)
AutoProcessor.register(LPNConfig, LPNProcessor, exist_ok=True)
# Not the processor of a configuration: this makes saved ones known by the name of their class.
AutoProcessor.register(StringProcessor, StringProcessor, exist_ok=True)
LPNConfig.register_for_auto_class()
LPNModel.register_for_auto_class("AutoModel")
LPNProcessor.register_for_auto_class("AutoProcessor")
StringProcessor.register_for_auto_class("AutoProcessor")

AutoConfig.register("codegen2", CodeGen2Config, exist_ok=True)
AutoModel.register(CodeGen2Config, CodeGen2Model, exist_ok=True)
AutoModelForCausalLM.register(CodeGen2Config, CodeGen2ForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(CodeGen2Config, CodeGen2ForSequenceClassification, exist_ok=True)
CodeGen2Config.register_for_auto_class()
CodeGen2Model.register_for_auto_class("AutoModel")
CodeGen2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
CodeGen2ForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__version__ = "0.2.0"

# transformers' Trainer takes seconds to import: only who trains waits for it.
_LATE = {"CodeTrainer": ".code.trainer", "LPNTrainer": ".tasks.trainer"}

__all__ = [
    "CodeGen2Config",
    "CodeGen2ForCausalLM",
    "CodeGen2ForSequenceClassification",
    "CodeGen2Model",
    "CodeInfillingPipeline",
    "CodeTrainer",
    "DataCollatorForCodeObjectives",
    "DataCollatorForGridTasks",
    "DocumentStream",
    "LPNConfig",
    "LPNModel",
    "LPNProcessor",
    "LPNTrainer",
    "ObjectiveMixture",
    "PackedSequences",
    "PairTask",
    "PatternTask",
    "ProgramInductionPipeline",
    "SearchConfig",
    "StringProcessor",
    "TaskStream",
    "evaluate_tasks",
    "infill",
    "infill_layout",
    "load_corpus",
    "load_tasks",
    "open_sources",
    "plot_accuracy_by_budget",
    "plot_latent_map",
    "plot_search",
    "plot_task",
    "prepare_codegen2_tokenizer",
    "save_tasks",
    "tokenize_corpus",
    "train_codegen2_tokenizer",
]


def __getattr__(name: str):
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
