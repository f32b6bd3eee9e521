"""Decides which documents an epoch reads from which sources: each source once, or by weight."""

from __future__ import annotations

import bisect
import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimind.data.token_cache import TokenCache
from minimind.errors import ConfigError

logger = logging.getLogger(__name__)

SAMPLE_PREFIX = "sample:"
"""Begins a name that stands for sample data instead of a file (samples/sources.py)."""
MAX_REPEATED = 1000
"""The most times that an epoch may be larger than its data, since its documents are numbered in
memory."""


@dataclass(frozen=True, slots=True)
class WeightedSource:
    """Holds a data source and its share of the tokens that an epoch reads; without a weight it is
    read once."""

    cache: TokenCache
    weight: float | None = None


def parse_data_args(values: Sequence[str]) -> list[tuple[str, float | None]]:
    """Parses `A.jsonl`, `A.jsonl:0.7`, `sample:tools` or `sample:tools:0.7` to (path, weight). A
    file whose own name ends like a weight is a path.

    Raises ConfigError for a missing file, for a weight that is not a number above 0, and where only
    some files have weights.
    """
    if not values:
        raise ConfigError("--data names no file; give one or more data files")
    parsed = [_parse_one(value) for value in values]
    unweighted = [path for path, weight in parsed if weight is None]
    if unweighted and len(unweighted) < len(parsed):
        raise ConfigError(
            f"--data gives weights to some files but not to {', '.join(unweighted)}; "
            "weight all of them (A.jsonl:0.7 B.jsonl:0.3) or none"
        )
    return parsed


class Mixture:
    """Numbers the documents of an epoch through all sources. The documents of one row (the two of a
    pair) are a unit, one after the other.

    Weights are shares of tokens. The source that is scarcest for its weight is read once, the
    others as often as their shares require, so an epoch reads every document at least once. The
    fraction of a reading selects a random part of the units, the same in each epoch.
    """

    def __init__(self, sources: Sequence[WeightedSource], seed: int) -> None:
        """Raises ConfigError where there is no source, where only some sources have weights, and
        for weights so far apart that an epoch would be too long."""
        weights = [source.weight for source in sources]
        if not sources or (None in weights and any(weight is not None for weight in weights)):
            raise ConfigError("give one or more data files, and weights to all of them or to none")
        self._caches = [source.cache for source in sources]
        self._weights = weights
        self.documents_per_unit = self._caches[0].format.documents_per_unit
        self._first = [0]
        for cache in self._caches:
            num_units = cache.num_documents // self.documents_per_unit
            self._first.append(self._first[-1] + num_units)
        lengths = np.concatenate([cache.lengths for cache in self._caches])
        self._lengths_UK = lengths.reshape(-1, self.documents_per_unit)
        self._units: np.ndarray | None = None
        self.times = [1.0] * len(sources)
        """The number of times that an epoch reads each source."""
        if None not in weights:
            tokens = [cache.num_tokens for cache in self._caches]
            shares = [weight / sum(w for w in weights if w) for weight in weights if weight]
            needed = [
                n / share if share else math.inf for n, share in zip(tokens, shares, strict=True)
            ]
            total = max(needed)
            if total > MAX_REPEATED * sum(tokens):
                scarce = self._caches[needed.index(total)].path
                raise ConfigError(
                    f"one reading of {scarce} beside so much of the other data would make an epoch "
                    f"of {total:.0e} tokens out of {sum(tokens):,}: give weights that are closer"
                )
            self.times = [share * total / n for n, share in zip(tokens, shares, strict=True)]
            self._units = self._repeated(seed)
        if len(sources) > 1:
            logger.info("an epoch reads %s", self.describe())

    @property
    def lengths(self) -> np.ndarray:
        """Gives the number of tokens of each document in the epoch, int64."""
        units = slice(None) if self._units is None else self._units
        return self._lengths_UK[units].reshape(-1)

    def locate(self, document: int) -> tuple[TokenCache, int]:
        """Gives the cache that holds a document of the epoch, and the document's number in it."""
        unit = document // self.documents_per_unit
        unit = unit if self._units is None else int(self._units[unit])
        source = bisect.bisect_right(self._first, unit) - 1
        first = (unit - self._first[source]) * self.documents_per_unit
        return self._caches[source], first + document % self.documents_per_unit

    def describe(self) -> str:
        """Describes the sources, such as `A.jsonl ×1.0, B.jsonl ×2.3`."""
        return ", ".join(
            f"{Path(cache.path).name} ×{times:.1f}"
            for cache, times in zip(self._caches, self.times, strict=True)
        )

    @property
    def fingerprint(self) -> str:
        """Identifies the data, their tokenizer and format, and the weights."""
        parts = [(cache.key, w) for cache, w in zip(self._caches, self._weights, strict=True)]
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _repeated(self, seed: int) -> np.ndarray:
        chosen = []
        for number, times in enumerate(self.times):
            units = np.arange(self._first[number], self._first[number + 1])
            # Rounding may make a whole number come out slightly too small.
            whole = math.floor(times + 1e-9)
            chosen += [units] * whole
            wanted = (times - whole) * self._caches[number].num_tokens
            if wanted >= 1:
                shuffled = np.random.default_rng([seed, 2, number]).permutation(units)
                tokens = self._lengths_UK[shuffled].sum(axis=1)
                # Rounded to the nearest unit, so that the error is half a unit at most.
                count = int(np.searchsorted(np.cumsum(tokens) - tokens / 2, wanted))
                chosen.append(np.sort(shuffled[:count]))
        return np.concatenate(chosen)


def _parse_one(value: str) -> tuple[str, float | None]:
    path, separator, tail = value.rpartition(":")
    is_sample = value.startswith(SAMPLE_PREFIX)
    is_whole = path + separator == SAMPLE_PREFIX if is_sample else Path(value).exists()
    if not separator or is_whole:
        return value, None
    try:
        weight = float(tail)
    except ValueError:
        if is_sample or Path(path).exists():
            raise ConfigError(
                f"--data {value}: the weight {tail!r} is no number; write {path}:0.7"
            ) from None
        return value, None
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"--data {value}: the weight is {tail}; it must be a number above 0")
    return path, weight
