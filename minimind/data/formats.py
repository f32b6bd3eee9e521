"""Data formats: what a row of each kind must hold, and which of its tokens are targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from minimind.data.chat_format import chat_samples
from minimind.data.preference_format import preference_samples
from minimind.data.text_format import text_samples
from minimind.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of row."""

    name: str
    version: str
    """Part of the cache key: raise it with every change of what `read` gives."""
    all_targets: bool
    """Every token is a target, so the cache stores no mask."""
    split_long: bool
    """A document longer than a row is split, else truncated."""
    read: Callable[..., list[Any]]
    """(rows, tokenizer) -> for each row its sample, or a BadRow that says what is wrong with it.
    Rows come by the batch, so that all cores tokenise. Further options are keyword arguments."""
    documents_per_unit: int = 1
    """Documents of a sample, which stay together: the two of a pair."""

    def with_options(self, **options: Any) -> Format:
        """The same kind of row, read with these options of `read`: they change the cache key."""
        if not options:
            return self
        version = f"{self.version} {sorted(options.items())}"
        return replace(self, version=version, read=partial(self.read, **options))


FORMATS = {
    "text": Format("text", "1", all_targets=True, split_long=True, read=text_samples),
    "chat": Format("chat", "1", all_targets=False, split_long=False, read=chat_samples),
    "preference": Format(
        "preference",
        "1",
        all_targets=False,
        split_long=False,
        read=preference_samples,
        documents_per_unit=2,
    ),
}


def get_format(name: str) -> Format:
    """Raises ConfigError where there is no such format."""
    if name not in FORMATS:
        raise ConfigError(f"there is no data format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
