"""Prompts and rows of a batch for `generate`: what evaluation and sampling of code models share."""

from ..codegen2.infilling_codegen2 import continue_prompts, encode_source


def decode(tokenizer, ids: list[int]) -> str:
    """Text of the ids as they are."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def context_length(model) -> int:
    """The longest sequence a model reads, in tokens."""
    return model.config.get_text_config().max_position_embeddings


def stop_ids(model, tokenizer) -> list[int]:
    """Ids that end a text: those of the tokenizer and of the model's `generation_config`."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(token for token in [tokenizer.eos_token_id, *configured] if token is not None))


def encode_prompt(model, tokenizer, text: str, max_new_tokens: int) -> list[int]:
    """Ids of a text to continue, with the token that the tokenizer starts texts with, cut to the end that fits."""
    start = [tokenizer.bos_token_id] if tokenizer("\n")["input_ids"][:1] == [tokenizer.bos_token_id] else []
    room = context_length(model) - max_new_tokens - len(start)
    if room < 1:
        raise ValueError(
            f"{max_new_tokens} new tokens leave no room for the prompt in a context of {context_length(model)} tokens; "
            "ask for fewer"
        )
    return start + encode_source(tokenizer, text)[-room:]


def decode_after(tokenizer, prompt: list[int], ids: list[int]) -> str:
    """Text of the ids behind a prompt; some tokenizers take off a space where a text begins."""
    return decode(tokenizer, prompt + ids)[len(decode(tokenizer, prompt)) :]


def generate_rows(model, prompts, stops, max_new_tokens, **kwargs) -> list[tuple[list[int], bool]]:
    """
    Continues prompts of different lengths.

    Args:
        model (`PreTrainedModel`): the model.
        prompts (`list[list[int]]`): token ids, none of them empty.
        stops (`list[int]`): ids that end a row; without one, no row ends before the limit.
        max_new_tokens (`int`): the limit.
        kwargs: passed to `generate`.

    Returns:
        `list[tuple[list[int], bool]]`: for each prompt the new ids before its end, and whether it ended itself.
    """
    rows = continue_prompts(model, prompts, stops, max_new_tokens, pad=stops[0] if stops else 0, **kwargs)
    ends = [next((place for place, token in enumerate(row) if token in stops), None) for row in rows]
    return [(row[:end], end is not None) for row, end in zip(rows, ends, strict=True)]
