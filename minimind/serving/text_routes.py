"""Adds the routes that read a text without continuing it: embeddings, tokens."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query, Request

from minimind.serving.api_errors import ERROR_RESPONSES, ApiError, timely
from minimind.serving.event_stream import unless_gone
from minimind.serving.generation_routes import open_call
from minimind.serving.response_schemas import (
    Embedding,
    EmbeddingList,
    EmbeddingUsage,
    TokenizedText,
    TokenizerInfo,
    TokenPiece,
    Tokens,
)
from minimind.serving.served_model import ServedModel
from minimind.serving.service import Service
from minimind.serving.text_schemas import DetokenizeRequest, EmbeddingRequest, TokenizeRequest


def add_text_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", responses=ERROR_RESPONSES)
    async def embeddings(body: EmbeddingRequest, request: Request) -> EmbeddingList:
        """Gives, for each text, the mean of the last hidden states of all its tokens, scaled to
        length 1. The model was not trained for this."""
        model, _ = open_call(service, request, body)
        texts = await asyncio.to_thread(model.read_texts, body, body.input, "input")

        async def read() -> list[list[float]]:
            return [await model.embedding(ids) for ids in texts]

        async with timely(service.settings.answer_timeout_s):
            found = await unless_gone(request.receive, read())
        packs = body.encoding_format == "base64"
        count = sum(map(len, texts))
        return EmbeddingList(
            data=[
                Embedding(index=index, embedding=_pack(numbers) if packs else numbers)
                for index, numbers in enumerate(found)
            ],
            model=model.name,
            usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
        )

    @app.post("/tokenize", responses=ERROR_RESPONSES, response_model_exclude_none=True)
    async def tokenize(body: TokenizeRequest, request: Request) -> Tokens:
        """Gives the ids of a text or a conversation, as vLLM and llama.cpp do."""
        model, _ = open_call(service, request, body)
        ids = await asyncio.to_thread(_ids, model, body)
        tokenizer = model.tokenizer
        pieces = [tokenizer.token_bytes([id], skip_special=False) for id in ids]
        return Tokens(
            tokens=[
                TokenPiece(id=id, piece=_piece(raw)) for id, raw in zip(ids, pieces, strict=True)
            ]
            if body.with_pieces
            else ids,
            count=len(ids),
            max_model_len=model.context,
            token_strs=[raw.decode(errors="replace") for raw in pieces]
            if body.return_token_strs
            else None,
        )

    @app.post("/detokenize", responses=ERROR_RESPONSES)
    async def detokenize(body: DetokenizeRequest, request: Request) -> TokenizedText:
        model, _ = open_call(service, request, body)
        text = model.tokenizer.decode(body.tokens, skip_special=False)
        return TokenizedText(prompt=text, content=text)

    @app.get("/tokenizer_info", responses=ERROR_RESPONSES)
    async def tokenizer_info(model: Annotated[str | None, Query()] = None) -> TokenizerInfo:
        """Gives the chat template and the special tokens."""
        tokenizer = service.find(model).tokenizer
        bos, eos, pad = (
            None if id is None else tokenizer.decode([id], skip_special=False)
            for id in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        )
        return TokenizerInfo(
            chat_template=tokenizer.chat_template, bos_token=bos, eos_token=eos, pad_token=pad
        )


def _ids(model: ServedModel, body: TokenizeRequest) -> list[int]:
    given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise ApiError(400, "give one of prompt, content and messages", param="prompt")
    parses = body.parse_special is not False
    if body.prompt is not None:
        begins = body.add_special_tokens is not False
        return model.encode(body, body.prompt, begins=begins, parses_special=parses)
    if body.content is not None:
        begins = bool(body.add_special)
        return model.encode(body, body.content, begins=begins, parses_special=parses)
    return model.chat_prompt(body).ids


def _pack(numbers: list[float]) -> str:
    return base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
