"""Tiny causal language models of several families, and sequences of the objectives for them."""

import numpy as np
import torch
from cases_codegen2 import tiny_config
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

from modeling_lpn import CodeGen2ForCausalLM, DocumentStream, ObjectiveMixture, PackedSequences
from modeling_lpn.code.packing import TokenizedDocuments
from modeling_lpn.codegen2.infilling_codegen2 import MaskLayout, MiddleLayout


SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=16, sliding_window=16),
    "gpt2": lambda: GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.2),
    "codegen2": lambda: tiny_config(vocab_size=128, n_positions=256, initializer_range=0.2, mp_num=1),
}
MASKS = MaskLayout(masks=(120, 119, 118, 117), separator=121, end_of_span=122, end_of_text=123)
MIDDLE = MiddleLayout(prefix=120, suffix=121, middle=122, stops=(123,))
LAYOUTS = {"codegen2": MASKS, "incoder": MASKS, "fim": MIDDLE, "causal": MIDDLE, "prefix_lm": MASKS}


def make(name):
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config._attn_implementation = "eager" if name == "gemma2" else "sdpa"  # the former has no other
    kind = CodeGen2ForCausalLM if name == "codegen2" else AutoModelForCausalLM
    return (kind._from_config(config) if name == "codegen2" else kind.from_config(config)).eval()


def sequences(preset, documents=12, max_length=48, **kwargs):
    rng = np.random.default_rng(0)
    files = TokenizedDocuments.from_lists([rng.integers(0, 100, 14).tolist() for _ in range(documents)])
    mixture = ObjectiveMixture.from_preset(preset, per="document")
    return PackedSequences(DocumentStream({"code": files}), mixture, LAYOUTS[preset], max_length, **kwargs)
