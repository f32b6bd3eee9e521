"""The keys listed here are those that the installed DeepSpeed reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from minimind.config.deepspeed_keys import KNOWN_KEYS, REFUSED_KEYS, SECTIONS


class Recorder(dict[str, Any]):
    """Remembers which keys were asked for."""

    def __init__(self, values: dict[str, Any], asked: set[str]) -> None:
        super().__init__(values)
        self.asked = asked

    def __copy__(self) -> Recorder:
        return Recorder(self, self.asked)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def test_known_keys_are_what_the_installed_deepspeed_reads(
    deepspeed_config: Callable[[dict[str, Any]], Any],
):
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS as removed

    asked: set[str] = set()
    deepspeed_config(Recorder({"train_batch_size": 1}, asked))
    ours = {"swanlab"}
    assert asked >= KNOWN_KEYS - ours, "known here, but DeepSpeed never reads them"
    assert not KNOWN_KEYS & set(removed), "known here, but DeepSpeed removed them"
    assert not KNOWN_KEYS & set(REFUSED_KEYS)


def test_section_keys_are_what_the_installed_deepspeed_reads(
    deepspeed_config: Callable[[dict[str, Any]], Any],
):
    """A section has its keys here exactly where DeepSpeed accepts one that it does not know."""
    minimal = {
        "optimizer": {"type": "AdamW"},
        "scheduler": {"type": "WarmupLR"},
        "zero_optimization": {"stage": 1},
    }
    unchecked = set()
    for section in SECTIONS:
        values = {**minimal.get(section, {}), "no_such_key": 1}
        with contextlib.suppress(ValueError):
            deepspeed_config({"train_batch_size": 1, section: values})
            unchecked.add(section)
    assert unchecked == {section for section, keys in SECTIONS.items() if keys}
    for section in unchecked:
        asked: set[str] = set()
        values = Recorder(minimal.get(section, {}), asked)
        deepspeed_config({"train_batch_size": 1, section: values})
        assert asked >= (SECTIONS[section] or set())
