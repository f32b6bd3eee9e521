from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minimind.data.formats import FORMATS, get_format
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError


def test_an_unknown_format_names_the_known_ones() -> None:
    for name, known in FORMATS.items():
        assert get_format(name) is known
        assert known.name == name
    with pytest.raises(ConfigError, match="no data format 'txt'; there are text, chat"):
        get_format("txt")


def test_options_change_the_cache(write_chats: Callable[..., Path], tokenizer: Tokenizer) -> None:
    path = write_chats([[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]])
    chat = get_format("chat")
    formats = [
        chat,
        chat.with_options(system_prompt_ratio=1.0, seed=1),
        chat.with_options(system_prompt_ratio=1.0, seed=2),
        chat.with_options(system_prompt_ratio=0.0, seed=1),
    ]
    caches = [build_token_cache(path, tokenizer, data_format) for data_format in formats]
    assert len({cache.key for cache in caches}) == 4
    assert [cache.num_tokens > caches[0].num_tokens for cache in caches] == [0, 1, 1, 0]
    again = build_token_cache(path, tokenizer, chat.with_options(seed=1, system_prompt_ratio=1.0))
    assert again.key == caches[1].key
