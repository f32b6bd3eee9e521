from __future__ import annotations

from chats import ANSWER, USER
from data_rows import MakeCache

from minimind.data.chat_format import CHAT


def test_options_change_the_cache(cache_of: MakeCache) -> None:
    formats = [
        CHAT,
        CHAT.with_options(system_prompt_ratio=1.0, seed=1),
        CHAT.with_options(system_prompt_ratio=1.0, seed=2),
        CHAT.with_options(system_prompt_ratio=0.0, seed=1),
    ]
    row = {"conversations": [USER, ANSWER]}
    caches = [cache_of(data_format, row) for data_format in formats]
    assert len({cache.key for cache in caches}) == 4
    assert [cache.num_tokens > caches[0].num_tokens for cache in caches] == [0, 1, 1, 0]
    again = cache_of(CHAT.with_options(seed=1, system_prompt_ratio=1.0), row)
    assert again.key == caches[1].key
