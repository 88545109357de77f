"""Neural program synthesis for Hugging Face: Latent Program Networks and CodeGen2."""

# CodeGen2
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from .code_tokenizers import codegen2_added_tokens, prepare_codegen2_tokenizer, train_codegen2_tokenizer
from .configuration_codegen2 import CodeGen2Config
from .infilling_codegen2 import (
    INFILL_FORMATS,
    InfillFormat,
    Infilling,
    MaskLayout,
    MiddleLayout,
    encode_source,
    infill,
    infill_layout,
)
from .modeling_codegen2 import (
    CodeGen2ForCausalLM,
    CodeGen2ForSequenceClassification,
    CodeGen2Model,
    CodeGen2PreTrainedModel,
    regroup_qkv,
)
from .pipelines import CodeInfillingPipeline


AutoConfig.register("codegen2", CodeGen2Config, exist_ok=True)
AutoModel.register(CodeGen2Config, CodeGen2Model, exist_ok=True)
AutoModelForCausalLM.register(CodeGen2Config, CodeGen2ForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(CodeGen2Config, CodeGen2ForSequenceClassification, exist_ok=True)
CodeGen2Config.register_for_auto_class()
CodeGen2Model.register_for_auto_class("AutoModel")
CodeGen2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
CodeGen2ForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "INFILL_FORMATS",
    "CodeGen2Config",
    "CodeGen2ForCausalLM",
    "CodeGen2ForSequenceClassification",
    "CodeGen2Model",
    "CodeGen2PreTrainedModel",
    "CodeInfillingPipeline",
    "InfillFormat",
    "Infilling",
    "MaskLayout",
    "MiddleLayout",
    "codegen2_added_tokens",
    "encode_source",
    "infill",
    "infill_layout",
    "prepare_codegen2_tokenizer",
    "regroup_qkv",
    "train_codegen2_tokenizer",
]
