"""Defines requests about texts that are no conversations: completions, embeddings, tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from minimind.serving.api_errors import ApiError
from minimind.serving.field_standing import NoEffect, Off, Refused
from minimind.serving.message_schemas import Message, RequestPart
from minimind.serving.request_schemas import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    AnyRequest,
    ConversationFields,
    GenerationRequestFields,
    Side,
    Truncation,
)

MAX_PROMPTS = 64
MAX_EMBEDDED = 2048
"""The most texts in an embeddings call, as in OpenAI's API; clients send a thousand."""
DEFAULT_COMPLETION = 16
"""The default length of an answer of /v1/completions, as in OpenAI's API."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = (
    str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)
Many = (
    str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_EMBEDDED)]
)


def each_text(given: Texts) -> list[str | list[int]]:
    """Gives the texts as a list; a single string or list of ids is one text."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]  # type: ignore[list-item]
    return given  # type: ignore[return-value]


class TextReading(RequestPart):
    """Holds the fields that decide how a text becomes tokens."""

    add_special_tokens: bool | None = None
    """False: nothing is put before the text. Otherwise it begins as a document does."""
    parse_special: bool | None = None
    """True: special tokens in the text are read as tokens. False: they stay text. The default is
    the server's (`--parse_special`)."""


class CompletionRequest(TextReading, GenerationRequestFields):
    """Defines the body of /v1/completions."""

    prompt: Texts
    """A text, its ids, or a list of these."""
    max_tokens: int | None = Field(None, ge=-1, lt=2**31)
    """The most tokens of the answer, by default 16; -1 is the rest of the context, 0 none, for use
    with `echo`."""
    n_predict: int | None = Field(None, ge=-2, lt=2**31)
    """llama.cpp's name for `max_tokens`, used if that is not given; -1 and -2 are the rest of the
    context."""
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS), Off(False)] = None
    """Reports the log-probabilities of generated tokens and of this many likeliest ones; with
    `echo` those of the prompt too."""
    echo: bool | None = None
    """True: the text begins with the prompt."""
    suffix: Annotated[Any, Refused("the model only continues a text", "")] = None
    best_of: int | None = Field(None, ge=1)
    """Must equal `n`, since all choices are returned; another number is refused."""
    prompt_embeds: Annotated[Any, Refused("send `prompt`", [])] = None

    @property
    def num_choices(self) -> int:
        """Gives the number of choices. Raises ApiError where not all of them would be returned."""
        wanted = self.n or 1
        if self.best_of not in (None, wanted):
            message = f"best_of is {self.best_of} and n {wanted}: send `n` alone and choose"
            raise ApiError(400, message, param="best_of")
        return wanted

    @property
    def wanted_tokens(self) -> int | None:
        asked = (self.max_tokens, self.n_predict, DEFAULT_COMPLETION)
        wanted = next(count for count in asked if count is not None)
        return None if wanted < 0 else wanted


class EmbeddingRequest(TextReading, AnyRequest):
    """Defines the body of /v1/embeddings."""

    input: Many
    """A text, its ids, or a list of these."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64 encodes little-endian fp32 numbers."""
    dimensions: Annotated[Any, Refused("vectors have the model's hidden size")] = None
    truncate_prompt_tokens: Truncation = None
    """Keeps only this many tokens at each text's beginning; -1 keeps as many as the context
    holds."""
    truncation_side: Side | None = None
    """The side on which a text is cut; left keeps its end instead."""
    input_type: Annotated[Any, NoEffect("queries and documents are read alike")] = None
    embd_normalize: Annotated[Any, Refused("vectors have length 1", 2)] = None

    def truncated(self, ids: list[int], context: int) -> list[int]:
        wanted = self.truncate_prompt_tokens
        if wanted is None:
            return ids
        kept = context if wanted == -1 else wanted
        return ids[-kept:] if self.truncation_side == "left" else ids[:kept]


class TokenizeRequest(ConversationFields, AnyRequest):
    """Defines the body of /tokenize: vLLM's with `prompt` or `messages`, or llama.cpp's with
    `content`."""

    messages: Annotated[list[Message], Field(min_length=1)] | None = None  # type: ignore[assignment]
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    """True (the default): `prompt` begins with the tokens that begin a document."""
    add_special: bool | None = None
    """True: `content` begins with the tokens that begin a document; the default is false."""
    parse_special: bool | None = None
    """False: the text of a special token stays text."""
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    """True: each token is given as an object with `id` and `piece`."""


class DetokenizeRequest(AnyRequest):
    """Defines the body of /detokenize."""

    tokens: list[Annotated[int, Field(ge=0)]]
