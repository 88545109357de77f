"""Neural program synthesis for Hugging Face: Latent Program Networks and CodeGen2."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoProcessor

from .code_benchmarks import BENCHMARKS, TRUNCATIONS, CodeTask, load_benchmark
from .code_data import load_corpus, open_sources, read_rows, stream_corpus, tokenize_corpus
from .code_evaluation import InfillCase, causal_loss, evaluate_infilling, make_infill_cases
from .code_sampling import SamplingConfig, evaluate_benchmark, sample_completions
from .code_tokenizers import codegen2_added_tokens, prepare_codegen2_tokenizer, train_codegen2_tokenizer
from .collators import DataCollatorForCodeObjectives, DataCollatorForGridTasks, explain
from .configuration_codegen2 import CodeGen2Config
from .configuration_lpn import LPNConfig
from .evaluation import EvaluationOutput, evaluate_tasks
from .execution import isolation_level, run_program, run_programs
from .infilling_codegen2 import (
    INFILL_FORMATS,
    InfillFormat,
    Infilling,
    MaskLayout,
    MiddleLayout,
    encode_source,
    encode_sources,
    infill,
    infill_layout,
)
from .metrics import (
    compute_arc_scores,
    compute_pass_at_k,
    infill_scores,
    make_submission,
    pass_at_k,
    validate_submission,
)
from .modeling_codegen2 import (
    CodeGen2ForCausalLM,
    CodeGen2ForSequenceClassification,
    CodeGen2Model,
    CodeGen2PreTrainedModel,
    regroup_qkv,
)
from .modeling_lpn import LPNModel, LPNPreTrainedModel
from .objectives import OBJECTIVES, PRESETS, ObjectiveMixture
from .outputs_lpn import LPNEncoderOutput, LPNGenerateOutput, LPNOutput
from .packing import DocumentStream, PackedSequences, StreamedSequences, TokenizedDocuments
from .pipelines import CodeInfillingPipeline
from .processing_lpn import LPNProcessor
from .search_lpn import SEARCH_METHODS, SearchConfig, SearchOutput
from .sources import load_tasks, save_tasks
from .tasks import TASK_GENERATORS, PairTask, PatternTask, TaskStream
from .token_splitter import TokenSplitter


AutoConfig.register("lpn", LPNConfig, exist_ok=True)
AutoModel.register(LPNConfig, LPNModel, exist_ok=True)
AutoProcessor.register(LPNConfig, LPNProcessor, exist_ok=True)
LPNConfig.register_for_auto_class()
LPNModel.register_for_auto_class("AutoModel")
LPNProcessor.register_for_auto_class("AutoProcessor")

AutoConfig.register("codegen2", CodeGen2Config, exist_ok=True)
AutoModel.register(CodeGen2Config, CodeGen2Model, exist_ok=True)
AutoModelForCausalLM.register(CodeGen2Config, CodeGen2ForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(CodeGen2Config, CodeGen2ForSequenceClassification, exist_ok=True)
CodeGen2Config.register_for_auto_class()
CodeGen2Model.register_for_auto_class("AutoModel")
CodeGen2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
CodeGen2ForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__version__ = "0.1.0"

__all__ = [
    "BENCHMARKS",
    "CodeGen2Config",
    "CodeGen2ForCausalLM",
    "CodeGen2ForSequenceClassification",
    "CodeGen2Model",
    "CodeGen2PreTrainedModel",
    "CodeInfillingPipeline",
    "CodeTask",
    "DataCollatorForCodeObjectives",
    "DataCollatorForGridTasks",
    "DocumentStream",
    "EvaluationOutput",
    "INFILL_FORMATS",
    "InfillCase",
    "InfillFormat",
    "Infilling",
    "LPNConfig",
    "LPNEncoderOutput",
    "LPNGenerateOutput",
    "LPNModel",
    "LPNOutput",
    "LPNPreTrainedModel",
    "LPNProcessor",
    "MaskLayout",
    "MiddleLayout",
    "OBJECTIVES",
    "ObjectiveMixture",
    "PRESETS",
    "PackedSequences",
    "PairTask",
    "PatternTask",
    "SEARCH_METHODS",
    "SamplingConfig",
    "SearchConfig",
    "SearchOutput",
    "StreamedSequences",
    "TASK_GENERATORS",
    "TRUNCATIONS",
    "TaskStream",
    "TokenSplitter",
    "TokenizedDocuments",
    "causal_loss",
    "codegen2_added_tokens",
    "compute_arc_scores",
    "compute_pass_at_k",
    "encode_source",
    "encode_sources",
    "evaluate_benchmark",
    "evaluate_infilling",
    "evaluate_tasks",
    "explain",
    "infill",
    "infill_layout",
    "infill_scores",
    "isolation_level",
    "load_benchmark",
    "load_corpus",
    "load_tasks",
    "make_infill_cases",
    "make_submission",
    "open_sources",
    "pass_at_k",
    "prepare_codegen2_tokenizer",
    "read_rows",
    "regroup_qkv",
    "run_program",
    "run_programs",
    "sample_completions",
    "save_tasks",
    "stream_corpus",
    "tokenize_corpus",
    "train_codegen2_tokenizer",
    "validate_submission",
]
