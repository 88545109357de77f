"""Tokenizers in the CodeGen2 layout: the released one repaired, or a small one trained on a corpus."""

import re
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast


END_OF_TEXT = "<|endoftext|>"


def codegen2_added_tokens(num_masks: int = 899) -> list[str]:
    """
    The tokens the release adds to a byte-level BPE, in the order of their ids.

    Args:
        num_masks (`int`, defaults to 899): number of mask tokens.

    Returns:
        `list[str]`: runs of 31 to 2 spaces and of 9 to 2 tabs, four unused tokens, `<sep>`, `<eom>`, and
        `<mask_N>` ... `<mask_1>`; so `<mask_1>` is the last token of the vocabulary.

    Example:

    ```python
    >>> from modeling_lpn.code.tokenizer import codegen2_added_tokens

    >>> tokens = codegen2_added_tokens()
    >>> len(tokens), tokens[-1], 50257 + tokens.index("<eom>")
    (943, '<mask_1>', 50300)

    ```
    """
    spaces = [" " * run for run in range(31, 1, -1)]
    tabs = ["\t" * run for run in range(9, 1, -1)]
    return spaces + tabs + _sentinels(num_masks)


def _sentinels(num_masks):
    dummies = [f"<dummy_{number}>" for number in range(4)]
    return [*dummies, "<sep>", "<eom>", *(f"<mask_{number}>" for number in range(num_masks, 0, -1))]


def train_codegen2_tokenizer(
    corpus: Iterable[str], vocab_size: int = 1024, num_masks: int = 99, model_max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE and adds the CodeGen2 tokens in the release's layout.

    Args:
        corpus (`Iterable[str]`): source texts.
        vocab_size (`int`, defaults to 1024): number of all tokens, the 44 + `num_masks` added ones among them.
        num_masks (`int`, defaults to 99): number of mask tokens.
        model_max_length (`int`, defaults to 2048): context of the model.

    Returns:
        `PreTrainedTokenizerFast`: with `<|endoftext|>` as bos, eos and padding token. A corpus too small for
        `vocab_size` gives fewer tokens: take `len(tokenizer)` for the model.

    Raises:
        ValueError: where `vocab_size` leaves no room for the 256 bytes.

    Example:

    ```python
    >>> from modeling_lpn import CodeGen2Config, train_codegen2_tokenizer

    >>> tokenizer = train_codegen2_tokenizer(["def add(a, b):\\n    return a + b\\n"] * 4, vocab_size=420)
    >>> tokenizer.decode(tokenizer("    return a")["input_ids"])
    '    return a'
    >>> config = CodeGen2Config(
    ...     vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, rotary_dim=8,
    ...     bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ...     pad_token_id=tokenizer.pad_token_id, eom_token_id=tokenizer.convert_tokens_to_ids("<eom>"),
    ... )

    ```
    """
    base = vocab_size - len(codegen2_added_tokens(num_masks))
    if base < 257:
        raise ValueError(
            f"`vocab_size` {vocab_size} leaves {base} tokens beside the {vocab_size - base} added ones; the bytes and "
            "the end of text need 257. Raise `vocab_size` or lower `num_masks`."
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    # The end of text is added after training to lie behind the learned tokens, as 50256 does.
    trainer = trainers.BpeTrainer(
        vocab_size=base - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # Runs of spaces and tabs are added tokens and cut a text before the merges apply: no merge across them is used.
    pieces = (piece for text in corpus for piece in re.split(r" {2,}|\t{2,}", text))
    bpe.train_from_iterator(pieces, trainer)
    bpe.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
    tokenizer.add_tokens([token for token in codegen2_added_tokens(num_masks) if not token.strip()])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in _sentinels(num_masks)], special_tokens=True)
    return prepare_codegen2_tokenizer(tokenizer, model_max_length)


def prepare_codegen2_tokenizer(tokenizer, model_max_length: int = 2048):
    """
    Repairs a tokenizer in the CodeGen2 layout, the released one above all, in place.

    The released files flag only `<|endoftext|>` as special, so that `skip_special_tokens=True` leaves `<mask_1>`,
    `<sep>` and `<eom>` in the text; they have no padding token, and GPT-2's length of 1024. Padding goes to the left,
    where generation needs it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a loaded tokenizer with the sentinels.
        model_max_length (`int`, defaults to 2048): context of the model.

    Returns:
        the same tokenizer.

    Raises:
        ValueError: where it has no sentinels.
    """
    vocab = tokenizer.get_added_vocab()
    sentinels = sorted((token for token in vocab if token.startswith(("<mask_", "<dummy_"))), key=vocab.get)
    if "<mask_1>" not in vocab or "<sep>" not in vocab or "<eom>" not in vocab:
        raise ValueError(
            f"The tokenizer ({len(tokenizer)} tokens) lacks `<mask_1>`, `<sep>` or `<eom>`; pass the one of a "
            "CodeGen2 release, or of `train_codegen2_tokenizer`."
        )
    special = [AddedToken(token, normalized=False, special=True) for token in ["<sep>", "<eom>", *sentinels]]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    settings = {"padding_side": "left", "model_max_length": model_max_length}
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.init_kwargs.update(settings)  # what `save_pretrained` writes
    return tokenizer


__all__ = ["codegen2_added_tokens", "prepare_codegen2_tokenizer", "train_codegen2_tokenizer"]
