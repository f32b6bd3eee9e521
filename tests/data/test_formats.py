from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minimind.data.chat_format import CHAT
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer


def test_options_change_the_cache(write_chats: Callable[..., Path], tokenizer: Tokenizer) -> None:
    path = write_chats([[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]])
    formats = [
        CHAT,
        CHAT.with_options(system_prompt_ratio=1.0, seed=1),
        CHAT.with_options(system_prompt_ratio=1.0, seed=2),
        CHAT.with_options(system_prompt_ratio=0.0, seed=1),
    ]
    caches = [build_token_cache(path, tokenizer, data_format) for data_format in formats]
    assert len({cache.key for cache in caches}) == 4
    assert [cache.num_tokens > caches[0].num_tokens for cache in caches] == [0, 1, 1, 0]
    again = build_token_cache(path, tokenizer, CHAT.with_options(seed=1, system_prompt_ratio=1.0))
    assert again.key == caches[1].key
