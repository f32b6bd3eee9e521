"""Makes the tables of kernels/README.md from the code and the results files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from minimind_kernels import OPS
from minimind_kernels.op import PRESETS, Op

from bench.harness import format_table
from bench.results import Results


def kernel_table(results: Results) -> str:
    """Makes a line for each operation."""
    header = ["operation", "formula", "reference", "dtypes", "compiled for", "last measured"]
    lines = []
    for name, op in sorted(OPS.items()):
        module = op.function.__module__.rsplit(".", 1)[-1]
        lines.append([
            f"`{name}`", op.formula, f"`{module}.py`", "fp32, fp16, bf16", _sizes(op),
            _measured(op, results) or "not measured",
        ])  # fmt: skip
    return format_table(header, lines)


def step_count_table(results: Results) -> str:
    """Makes the table of the newest counts of a training step."""
    found = results.newest("step_counts")
    return build_step_table(found["rows"]) if found else "A step's counts: not measured"


def build_step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Makes the table of a training step's work for a GPU, as bench/train/step_counts.py rehearses
    it."""
    tokens = f"{rows[0]['tokens']:,}"
    header = [
        f"a step of {tokens} tokens", "PyTorch's operators on the GPU", "our launches",
        "waits for the GPU", "kept for the backward",
    ]  # fmt: skip
    lines = [
        [
            row["name"], f"{row['device_operators']:,}", str(row["kernel_launches"]),
            str(sum(row["sync_operators"].values())),
            f"{row['kept_bytes_per_token'] / 1e3:.0f} KB a token",
        ]
        for row in rows
    ]  # fmt: skip
    return format_table(header, lines)


def _sizes(op: Op) -> str:
    """Names the sizes in which the presets differ for this operation."""
    texts = []
    for title_and_form in op.compiled_for:
        title, _, form = title_and_form.partition(" ")
        found = [form.format(**asdict(sizes)) for sizes in filter(op.runs_in, PRESETS)]
        distinct = dict.fromkeys(found) if op.needs_experts else sorted(set(found))
        texts.append(f"{title} {', '.join(distinct)}")
    return "; ".join(texts)


def _measured(op: Op, results: Results) -> str:
    """Gives the newest median of our forward and backward in bf16 at the first preset that has it,
    and the device."""
    text, preset = "", next(filter(op.runs_in, PRESETS)).preset
    for measured in results.oldest_first("kernels"):
        times = [
            f"{row['direction']} {row['median_us']:.0f} µs"
            for row in measured["rows"]
            if row.get("contender") == "minimind"
            and row["preset"] == preset
            and row["name"].split(".")[0] in op.launches
            and row["median_us"] is not None
        ]
        if times:
            text = f"{', '.join(times)} on {measured['machine']['device']}"
    return text
