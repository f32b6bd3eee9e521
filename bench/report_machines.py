"""The tables of docs/performance.md that a benchmark makes itself: one for each of its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bench.data
import bench.memory
from bench.harness import format_table
from bench.report_tables import NOT_MEASURED, describe
from bench.results import Results

Rows = Sequence[Mapping[str, Any]]


def data_section(results: Results) -> str:
    """From text to batches."""
    return _tables(results, "data", "Tokenising, packing and loading", bench.data.format_rows)


def memory_section(results: Results) -> str:
    """What a rank holds, as predicted and as measured."""
    return _tables(results, "memory", "Predicted memory", bench.memory.format_rows)


def advice_section(results: Results) -> str:
    """What bench.advise tried, the quickest first."""
    return _tables(results, "advise", "DeepSpeed JSONs", _format_trials)


def _tables(results: Results, benchmark: str, title: str, format_rows: Callable[[Any], str]) -> str:
    parts = [
        f"{describe(found['machine'])}:\n\n{format_rows(found['rows'])}"
        for found in results.oldest_first(benchmark)
    ]
    return "\n\n".join(parts) or f"{title}: {NOT_MEASURED}."


def _format_trials(rows: Rows) -> str:
    header = ("model", "ranks", "candidate", "useful tokens/s", "peak MB", "predicted MB")
    return format_table(
        header,
        [
            [
                row["model"],
                str(row["world_size"]),
                row["name"],
                f"{row['useful_tokens_per_s']:,.0f}",
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{row['predicted']['peak_bytes'] / 1e6:,.0f}",
            ]
            for row in sorted(rows, key=lambda row: -row["useful_tokens_per_s"])
        ],
    )
