"""The infilling formats of other families than CodeGen2, by name. To add one, write its line here."""

from ..codegen2.infilling_codegen2 import INFILL_FORMATS, InfillFormat


_STARCODER = {"prefix": "<fim_prefix>", "suffix": "<fim_suffix>", "middle": "<fim_middle>"}
_CODELLAMA = {"prefix": "▁<PRE>", "suffix": "▁<SUF>", "middle": "▁<MID>", "start": "<s>"}
_CODELLAMA |= {"end_of_text": "</s>", "dummy_prefix": True}
_QWEN = {"prefix": "<|fim_prefix|>", "suffix": "<|fim_suffix|>", "middle": "<|fim_middle|>"}
# CodeGen2.5 has the strings of "codegen2" (and those of "starcoder") under other ids.
INFILL_FORMATS |= {
    "starcoder": InfillFormat(stops=("<|endoftext|>",), **_STARCODER),
    "starcoder-spm": InfillFormat(stops=("<|endoftext|>",), suffix_first=True, **_STARCODER),
    "codellama": InfillFormat(stops=("▁<EOT>", "</s>"), **_CODELLAMA),
    "codellama-spm": InfillFormat(stops=("▁<EOT>", "</s>"), suffix_first=True, **_CODELLAMA),
    "qwen2.5-coder": InfillFormat(stops=("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"), **_QWEN),
}


__all__ = ["INFILL_FORMATS"]
