"""
The infilling formats of other families than CodeGen2, by name, and infilling tokens for models that have none.

To add a family, write its line here (in a program of one's own: `INFILL_FORMATS["mine"] = InfillFormat(...)`, or give the
object where a name goes), and its documentation's prompt into `tests/code/test_infill_formats.py`.
"""

from collections.abc import Iterable
from dataclasses import asdict, replace

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..codegen2.infilling_codegen2 import INFILL_FORMATS, InfillFormat, RepositoryFormat, find_format


_FIM = {"prefix": "<fim_prefix>", "suffix": "<fim_suffix>", "middle": "<fim_middle>"}
_PIPES = {"prefix": "<|fim_prefix|>", "suffix": "<|fim_suffix|>", "middle": "<|fim_middle|>"}
# The three below have the same vocabulary of sentinels, and CodeGen2.5 that of StarCoder too, beside its masks.
_STARCODER = InfillFormat(
    stops=("<|endoftext|>", "<fim_pad>", "<filename>", "<reponame>", "<gh_stars>"),
    marks=("<gh_stars>", "<reponame>"),
    lacks=("<file_sep>", "<mask_1>"),
    **_FIM,
)
_GRANITE = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")
_CODELLAMA = InfillFormat(
    stops=("▁<EOT>", "</s>"),
    end_of_text="</s>",
    prefix="▁<PRE>",
    suffix="▁<SUF>",
    middle="▁<MID>",
    start="<s>",
    dummy_prefix=True,
)
_QWEN = InfillFormat(
    stops=("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_end|>", "<|im_start|>"),
    repository=RepositoryFormat("<|file_sep|>", "<|repo_name|>", after_name="\n", after_file="\n"),
    marks=("<|repo_name|>", "<|file_sep|>"),
    **_PIPES,
)
_DEEPSEEK = InfillFormat(
    stops=("<｜end▁of▁sentence｜>", "<|EOT|>"),
    end_of_text="<｜end▁of▁sentence｜>",
    prefix="<｜fim▁begin｜>",
    suffix="<｜fim▁hole｜>",
    middle="<｜fim▁end｜>",
    start="<｜begin▁of▁sentence｜>",
)

INFILL_FORMATS |= {
    "codegen2.5": INFILL_FORMATS["codegen2"],
    "incoder": InfillFormat(
        stops=("<|endofmask|>", "<|endoftext|>"), mask="<|mask:{}|>", first_mask=0, start="<|endoftext|>"
    ),
    "santacoder": InfillFormat(
        stops=("<|endoftext|>", "<fim-pad>"), prefix="<fim-prefix>", suffix="<fim-suffix>", middle="<fim-middle>"
    ),
    "starcoder": _STARCODER,
    "starcoder-spm": replace(_STARCODER, order="spm", by_vocabulary=False),
    "starcoder2": InfillFormat(
        stops=("<|endoftext|>", "<file_sep>", "<repo_name>", "<fim_pad>"),
        repository=RepositoryFormat("<file_sep>", "<repo_name>", path_in_prefix=True),
        marks=("<file_sep>", "<repo_name>"),
        **_FIM,
    ),
    "granite-code": _STARCODER,
    "granite-3.3": InfillFormat(
        stops=(*_GRANITE, "<fim_pad>", "<filename>", "<reponame>"),
        end_of_text="<|end_of_text|>",
        lacks=("<|endoftext|>",),
        **_FIM,
    ),
    "granite-4": InfillFormat(
        stops=(*_GRANITE, "<|fim_pad|>"), end_of_text="<|end_of_text|>", lacks=("<|endoftext|>",), **_PIPES
    ),
    "codellama": _CODELLAMA,
    "codellama-spm": replace(_CODELLAMA, order="spm", by_vocabulary=False),
    "qwen2.5-coder": _QWEN,
    "qwen3-coder": _QWEN,
    "deepseek-coder": _DEEPSEEK,
    "deepseek-coder-v2": _DEEPSEEK,
    "codegemma": InfillFormat(
        stops=("<|file_separator|>", "<eos>", "<end_of_turn>"), end_of_text="<eos>", start="<bos>", **_PIPES
    ),
    "codestral": InfillFormat(
        stops=("</s>",),
        end_of_text="</s>",
        prefix="[PREFIX]",
        suffix="[SUFFIX]",
        order="suffix_prefix",
        start="<s>",
        dummy_prefix=True,
    ),
    "seed-coder": InfillFormat(
        stops=("<[end▁of▁sentence]>",),
        end_of_text="<[end▁of▁sentence]>",
        prefix="<[fim-prefix]>",
        suffix="<[fim-suffix]>",
        middle="<[fim-middle]>",
        order="spm_separate",
        start="<[begin▁of▁sentence]>",
    ),
    "mellum": InfillFormat(
        stops=("<|endoftext|>", "<filename>", "<fim_pad>"),
        order="spm_separate",
        repository=RepositoryFormat("<filename>"),
        marks=("<filename>",),
        lacks=("<file_sep>", "<mask_1>"),
        **_FIM,
    ),
}


def add_infill_tokens(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None = None,
    infill_format: str | InfillFormat = "starcoder",
    num_masks: int = 100,
    seed: int = 0,
) -> InfillFormat:
    """
    Gives a model that cannot infill (Llama, SmolLM, ...) the tokens to be trained with.

    What the tokenizer lacks of a format is added as special tokens; a file ends, and begins, as the model has learned it,
    by the tokenizer's own end of text. The embeddings of the new tokens, and their rows of the output layer, are the mean
    of all others plus a tenth of their spread, so that at first they are neither likely nor all the same.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place; it keeps the format when it is saved, for
            `infill_format="auto"`.
        model (`PreTrainedModel`, *optional*): changed in place: resized where its embeddings have no row for the tokens.
        infill_format (`str` or [`InfillFormat`], defaults to `"starcoder"`): the format to take the strings from.
        num_masks (`int`, defaults to 100): mask tokens, of a format with masks.
        seed (`int`, defaults to 0): of the new rows.

    Returns:
        [`InfillFormat`]: the format to train and to infill with.

    Raises:
        ValueError: for an unknown format, or a tokenizer without an end of text.

    Example:

    ```python
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> from modeling_lpn import infill_layout
    >>> from modeling_lpn.code.infill_formats import add_infill_tokens

    >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="</s>"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    >>> own = add_infill_tokens(tokenizer)
    >>> layout = infill_layout(tokenizer, "auto")
    >>> tokenizer.decode(layout.sequence([[0], [1]], [[0, 0]]))
    '<fim_prefix> a <fim_suffix> b <fim_middle> a a </s>'

    ```
    """
    names, vocab, eos = find_format(infill_format), tokenizer.get_vocab(), tokenizer.eos_token
    if eos is None:
        raise ValueError("The tokenizer has no `eos_token`, by which a file would end; set it to a token it has.")
    own = _adapted(names, vocab, eos)
    masks = () if own.mask is None else (own.mask.format(own.first_mask + number) for number in range(num_masks))
    wanted = dict.fromkeys((*own.sentinels, *masks))
    before = len(tokenizer)
    tokenizer.add_tokens([token for token in wanted if token not in vocab], special_tokens=True)
    tokenizer.init_kwargs["infill_format"] = asdict(own)
    if model is not None:
        new = [number for token, number in tokenizer.get_vocab().items() if token not in vocab]
        _initialise_rows(model, sorted(new), before, len(tokenizer), seed)
    return own


def _adapted(names: InfillFormat, vocab: Iterable[str], eos: str) -> InfillFormat:
    """The format with the model's own end of text in place of tokens that a file begins and ends with and that it lacks."""
    end_of_text = names.end_of_text if names.end_of_text in vocab else eos
    first = end_of_text if names.stops[0] == names.end_of_text else names.stops[0]
    stops = tuple(dict.fromkeys((first, *(token for token in names.stops[1:] if token in vocab), end_of_text)))
    start = names.start if names.start in vocab else None
    repository = names.repository if names.repository and names.repository.file in vocab else None
    return replace(names, stops=stops, end_of_text=end_of_text, start=start, repository=repository, marks=(), lacks=())


@torch.no_grad()
def _initialise_rows(model: PreTrainedModel, new: list[int], before: int, after: int, seed: int) -> None:
    if after > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(after, mean_resizing=False)
    generator, done = torch.Generator().manual_seed(seed), set()
    layers: list[nn.Module | None] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for layer in filter(None, layers):
        for parameter in (layer.weight, getattr(layer, "bias", None)):
            if parameter is None or parameter.data_ptr() in done:  # tied
                continue
            done.add(parameter.data_ptr())
            old = parameter[:before].float()
            noise = torch.randn(len(new), *parameter.shape[1:], generator=generator).to(old.device)
            parameter[new] = (old.mean(0) + 0.1 * old.std(0) * noise).to(parameter.dtype)


__all__ = ["INFILL_FORMATS", "InfillFormat", "add_infill_tokens"]
