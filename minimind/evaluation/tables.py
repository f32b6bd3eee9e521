"""Arranges the results of evaluated checkpoints as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def result_tables(results: Mapping[str, dict[str, Any]]) -> dict[str, Rows]:
    """Gives the rows of a table for each kind of measure that was taken, by the kind's name.
    `results` is the content of a file of `minimind evaluate --json`, by checkpoint."""
    perplexities = [
        {
            "checkpoint": name,
            "data": Path(row["data"]).name,
            "loss": f"{row['loss']:.4f}",
            "perplexity": f"{row['perplexity']:.2f}",
            "bits per byte": f"{row['bits_per_byte']:.4f}",
            "tokens": f"{row['num_tokens']:,}",
        }
        for name, found in results.items()
        for row in found.get("perplexity", ())
    ]
    choices = [
        {
            "checkpoint": name,
            "subject": subject,
            "questions": row["num_questions"],
            "by letter": f"{row['letter']:.2%}",
            "by text": f"{row['text']:.2%}",
            "by text, normalised": f"{row['text_normalised']:.2%}",
        }
        for name, found in results.items()
        for subject, row in found.get("choices", {}).items()
    ]
    tasks = [
        {
            "checkpoint": name,
            "task": task,
            "metric": key.removesuffix(",none"),
            "value": f"{value:.4f}",
            "standard error": _standard_error(row, key),
        }
        for name, found in results.items()
        for task, row in found.get("tasks", {}).items()
        for key, value in row.items()
        if isinstance(value, float) and "_stderr," not in key
    ]
    tables = {"perplexity": perplexities, "multiple choice": choices, "tasks": tasks}
    return {name: rows for name, rows in tables.items() if rows}


def _standard_error(row: dict[str, Any], key: str) -> str:
    """Gives the standard error of a measure: for "acc,none" the harness has "acc_stderr,none"."""
    error = row.get(key.replace(",", "_stderr,", 1))
    return f"{error:.4f}" if isinstance(error, float) else "not measured"
