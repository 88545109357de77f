"""
What may be asked for: OpenAI's `/v1/completions`, and `/infill` as of llama.cpp's server (its README of 2026).

A setting of either API that would change the result and that this server does not have is refused, unless it has the value
that asks for nothing; so is a name that neither API knows.
"""

import difflib
import secrets
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from transformers import GenerationConfig

from .batching import Drawing, TextRules


# Settings that this server does not have, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "dry_multiplier", "xtc_probability", "mirostat"), (0,)),
    **dict.fromkeys(("dynatemp_range", "min_p", "n_probs"), (0,)),
    **dict.fromkeys(("typical_p", "repeat_penalty", "n_cmpl"), (1,)),
    **dict.fromkeys(("logit_bias", "lora"), ([], {})),
    **dict.fromkeys(("grammar", "json_schema", "logprobs"), ("",)),
    **dict.fromkeys(("ignore_eos", "return_progress", "timings_per_token", "post_sampling_probs"), (False,)),
}
# How llama.cpp goes about its work, details of settings above, and what a request is filed under: no result depends on it.
# fmt: off
_HINTS = frozenset(
    (
        "cache_prompt", "n_cache_reuse", "id_slot", "n_keep", "t_max_prompt_ms", "sse_ping_interval",
        "repeat_last_n", "min_keep", "samplers", "user", "metadata", "dynatemp_exponent", "dry_base",
        "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "xtc_threshold", "mirostat_tau",
        "mirostat_eta",
    )
)
# fmt: on
_Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Stops = Annotated[list[_Text], Field(max_length=16)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, description="0 and -1: all tokens")
    seed: int | None = Field(None, description="none and -1: another one each time")
    stop: _Text | _Stops | None = None
    stream: bool | None = None

    @model_validator(mode="after")
    def _refuse_what_has_no_effect(self):
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _HINTS or value in _NEUTRAL.get(name, ()):
                continue
            if name in _NEUTRAL:
                raise ValueError(f"`{name}` is {value!r}, but this server does not have it; leave it out")
            near = difflib.get_close_matches(name, type(self).model_fields, 1)
            raise ValueError(f"there is no `{name}`{f'; is it `{near[0]}`?' if near else ''}")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def rules(self) -> TextRules:
        return TextRules(self.stops)

    def drawings(self, config: GenerationConfig, number: int = 1) -> list[Drawing]:
        """How each sample is drawn; without a `temperature` as the model's own settings say, greedily in most."""

        def chosen(name, neutral):
            given, own = getattr(self, name), getattr(config, name, None) if config.do_sample else None
            return next((value for value in (given, own) if value is not None), neutral)

        temperature = chosen("temperature", 1.0 if config.do_sample else 0.0)
        seed = secrets.randbits(63) if self.seed in (None, -1) else self.seed
        top_p, top_k = chosen("top_p", 1.0), max(chosen("top_k", 0), 0)
        return [Drawing(temperature, top_p, top_k, seed, place) for place in range(number)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class CompletionRequest(_Request):
    """The body of `/v1/completions`. With a `suffix` (an empty one too) the hole before it is filled."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    best_of: int | None = None
    echo: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _refuse_best_of(self):
        if self.best_of not in (None, self.n or 1):
            raise ValueError(f"`best_of` is {self.best_of} and `n` is {self.n or 1}; samples are not ranked here")
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Extra(BaseModel):
    """Another file."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str
    filename: str = "tmp"


class InfillRequest(_Request):
    """The body of `/infill`. `pieces`, `path` and `repo_name` are additions to llama.cpp's fields."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Extra] = []
    prompt: str = Field("", description="how the span begins")
    pieces: list[str] | None = Field(None, description="texts before, between and after several holes", min_length=2)
    path: str | None = None
    repo_name: str | None = None
    n_predict: int | None = Field(None, ge=-1, description="-1: as many as the server allows")
    n_indent: int = Field(0, ge=0)
    t_max_predict_ms: int = Field(0, ge=0, description="0: no limit")
    return_tokens: bool = False
    response_fields: list[str] | None = None

    @model_validator(mode="after")
    def _refuse_two_sources(self):
        if self.pieces is not None and (self.input_prefix or self.input_suffix or self.prompt):
            raise ValueError(
                "`pieces` and `input_prefix`, `input_suffix` or `prompt` are given; a source is one or the other"
            )
        if self.n_predict == 0:
            raise ValueError(
                "`n_predict` is 0, which keeps a prompt in llama.cpp's cache; there is none here: give 1 or more"
            )
        return self

    @property
    def sources(self) -> list[str]:
        return self.pieces or [self.input_prefix, self.input_suffix]

    @property
    def rules(self) -> TextRules:
        return TextRules(self.stops, self.n_indent, self.t_max_predict_ms / 1000 or None)


__all__ = ["CompletionRequest", "Extra", "InfillRequest"]
