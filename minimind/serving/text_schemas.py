"""Requests about texts that are no conversation: completions, embeddings, tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from minimind.serving.field_standing import NoEffect, Refused
from minimind.serving.message_schemas import Message, RequestPart
from minimind.serving.request_schemas import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    AnyRequest,
    ConversationFields,
    GenerationRequestFields,
)

MAX_PROMPTS = 64

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = (
    str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


def each_text(given: Texts) -> list[str | list[int]]:
    """One text is a list of one, and a list of ids is one text."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]  # type: ignore[list-item]
    return given  # type: ignore[return-value]


class TextReading(RequestPart):
    """How a text becomes tokens."""

    add_special_tokens: bool | None = None
    """False: nothing is put before the text. Else it begins as a document does."""
    parse_special: bool | None = None
    """True: special tokens that the text spells are tokens. Else it is text, whatever it spells,
    unless the server is told otherwise (`--parse_special`)."""


class CompletionRequest(TextReading, GenerationRequestFields):
    """The body of /v1/completions."""

    prompt: Texts
    """A text, its ids, or a list of these."""
    max_tokens: int | None = Field(None, ge=-1, lt=2**31)
    """16 unless given; -1: what the context leaves; 0: none, for `echo`."""
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    """Of the tokens made, and with `echo` of the prompt's."""
    echo: bool | None = None
    """The text begins with the prompt."""
    suffix: Annotated[Any, Refused("the model writes behind a text alone", "")] = None
    best_of: Annotated[Any, Refused("send `n` and choose", 1)] = None
    prompt_embeds: Annotated[Any, Refused("send `prompt`", [])] = None

    @property
    def num_choices(self) -> int:
        return self.n or 1


class EmbeddingRequest(TextReading, AnyRequest):
    """The body of /v1/embeddings."""

    input: Texts
    """A text, its ids, or a list of these."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64 is of fp32 numbers, the lowest byte first."""
    dimensions: Annotated[Any, Refused("all are given, as many as the model is wide")] = None
    truncate_prompt_tokens: Annotated[Any, Refused("shorten the text")] = None
    input_type: Annotated[Any, NoEffect("queries and documents are read alike")] = None


class TokenizeRequest(ConversationFields, AnyRequest):
    """The body of /tokenize: vLLM's with `prompt` or `messages`, or llama.cpp's with `content`."""

    messages: Annotated[list[Message], Field(min_length=1)] | None = None  # type: ignore[assignment]
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    """Before `prompt`, what a document begins with: true unless given."""
    add_special: bool | None = None
    """The same before `content`: false unless given."""
    parse_special: bool | None = None
    """False: what spells a special token stays text."""
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    """Each token as an object of `id` and `piece`."""


class DetokenizeRequest(AnyRequest):
    """The body of /detokenize."""

    tokens: list[Annotated[int, Field(ge=0)]]
