"""The tables of docs/performance.md that a benchmark makes itself: one for each of its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench.advise
import bench.data
import bench.memory
from bench.report_tables import NOT_MEASURED, describe
from bench.results import Results


def data_section(results: Results) -> str:
    """From text to batches."""
    return _tables(results, "data", "Tokenising, packing and loading", bench.data.format_rows)


def memory_section(results: Results) -> str:
    """What a rank holds, as predicted and as measured."""
    return _tables(results, "memory", "Predicted memory", bench.memory.format_rows)


def advice_section(results: Results) -> str:
    """What bench.advise tried."""
    return _tables(results, "advise", "DeepSpeed JSONs", bench.advise.format_rows)


def _tables(results: Results, benchmark: str, title: str, format_rows: Callable[[Any], str]) -> str:
    parts = [
        f"{describe(found['machine'])}:\n\n{format_rows(found['rows'])}"
        for found in results.oldest_first(benchmark)
    ]
    return "\n\n".join(parts) or f"{title}: {NOT_MEASURED}."
