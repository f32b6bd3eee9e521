"""Provides data files in a folder of their own, and a cache of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from chat_rows import MakeRows
from dialect_rows import Data, Make

from minimind.data.chat_format import CHAT
from minimind.data.formats import Format
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _cache_of_its_own(cache_dir: Path) -> None:
    """Gives each test an empty cache folder."""


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Gives a function that writes texts as rows: write_rows(texts, name="a.jsonl") -> the file."""

    def write(texts: Iterable[str], name: str = "a.jsonl") -> Path:
        path = tmp_path / name
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_cache(write_rows: Callable[..., Path], tokenizer: Tokenizer) -> Callable[..., TokenCache]:
    """Gives a function that tokenises texts: make_cache(texts, name="a.jsonl") -> their cache."""

    def make(texts: Iterable[str], name: str = "a.jsonl") -> TokenCache:
        return build_token_cache(write_rows(texts, name), tokenizer)

    return make


@pytest.fixture
def write_chats(tmp_path: Path) -> Callable[..., Path]:
    """Gives a function that writes conversations: write_chats(conversations, name="chat.jsonl") ->
    the file."""

    def write(conversations: Iterable[list[dict]], name: str = "chat.jsonl") -> Path:
        path = tmp_path / name
        rows = [json.dumps({"conversations": c}, ensure_ascii=False) for c in conversations]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def hugging_face(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    """Gives the same tokenizer as transformers loads it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def cache_of(tmp_path: Path, tokenizer: Tokenizer) -> Make:
    """cache_of(format, row) -> the cache of a file of that row."""

    def cache(data_format: Format, row: Data) -> TokenCache:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        return build_token_cache(path, tokenizer, data_format)

    return cache


@pytest.fixture
def cache_of_rows(tmp_path: Path, tokenizer: Tokenizer) -> MakeRows:
    """cache_of_rows(*rows, format=CHAT) -> their cache."""

    def cache(*rows: dict[str, Any], format: Format = CHAT, **options: Any) -> TokenCache:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return build_token_cache(path, tokenizer, format, **options)

    return cache
