"""Provides data files in a folder of their own, and a cache of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from data_rows import MakeCache

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


@pytest.fixture(scope="session")
def hugging_face(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    """Gives the same tokenizer as transformers loads it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def cache_of(tmp_path: Path, tokenizer: Tokenizer) -> MakeCache:
    """cache_of(format, *rows, name="rows.jsonl") -> the cache of a file of these rows."""

    def cache(
        data_format: Format, *rows: dict[str, Any], name: str = "rows.jsonl", **options: Any
    ) -> TokenCache:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return build_token_cache(path, tokenizer, data_format, **options)

    return cache
