"""From the step times of bench.train_step to its JSON rows and its table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import harness
from bench.train_rows import RowSpec
from bench.train_workers import StepTime

BASELINES = ("original", "plain_loop")


def build_rows(
    model: str,
    specs: Sequence[RowSpec],
    built: Sequence[Mapping[str, Any]],
    times: Sequence[Sequence[StepTime]],
    measured: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row for each spec; all arguments are in the order of `specs`."""
    rows = [
        _build_row(model, *of_row) for of_row in zip(specs, built, times, measured, strict=True)
    ]
    for name in BASELINES:
        base = next((i for i, spec in enumerate(specs) if spec.name == name), None)
        for row, steps in zip(rows, times, strict=True):
            # A ratio between precisions says nothing about the engine.
            comparable = name == "original" or (
                base is not None and row["precision"] == rows[base]["precision"]
            )
            ratio = {"median": None, "standard_error": None}
            if base is not None and comparable:
                ratio = harness.paired_ratio(_rates(steps), _rates(times[base]))
            row[f"ratio_to_{name}"] = ratio["median"]
            row[f"ratio_to_{name}_error"] = ratio["standard_error"]
    return rows


def _build_row(
    model: str,
    spec: RowSpec,
    built: Mapping[str, Any],
    steps: Sequence[StepTime],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    run, is_original = spec.run, spec.name == "original"
    seq_len = spec.documents.max_tokens if is_original else run.seq_len
    rate = harness.summarize(_rates(steps))
    return {
        "name": spec.name,
        "model": model,
        "ds_config": spec.ds_config_name,
        "resolved_ds_config": run.ds_config if spec.ds_config_name else None,
        "world_size": 1,
        "seq_len": seq_len,
        "micro_batch": spec.original_batch if is_original else run.micro_batch_size,
        "accumulation": spec.accumulation,
        **built,
        "useful_tokens_per_s": rate["median"],
        "useful_tokens_per_s_p10": rate["p10"],
        "useful_tokens_per_s_p90": rate["p90"],
        "useful_tokens_per_step": _targets_per_step(steps),
        "padding_share": 1 - sum(s.num_tokens for s in steps) / sum(s.num_places for s in steps),
        "step_s": harness.summarize([step.seconds for step in steps]),
        **_flops(spec, seq_len, steps, rate["median"]),
        **measured,
        "step_seconds": [step.seconds for step in steps],
        "losses": [step.loss for step in steps],
    }


def _targets_per_step(steps: Sequence[StepTime]) -> float:
    return statistics.mean(step.num_targets for step in steps)


def _rates(steps: Sequence[StepTime]) -> list[float]:
    """Useful tokens/s of each step, with the targets of the mean step: how many a step happens to
    hold has next to no influence on its time (none, where it is padded)."""
    targets = _targets_per_step(steps)
    return [targets / step.seconds for step in steps]


def _flops(
    spec: RowSpec, seq_len: int, steps: Sequence[StepTime], tokens_per_s: float
) -> dict[str, float | None]:
    """Model FLOP/s of the useful tokens, 6N + 12·L·D·T each, and their share of the device's peak:
    so, and with attention counted by what each token of a document sees."""
    config, peak = spec.run.config, spec.run.device.peak_flops
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    seen = sum(step.attended for step in steps) / sum(step.num_tokens for step in steps)
    usual = tokens_per_s * config.flops_per_token(seq_len)
    causal = tokens_per_s * (6 * config.num_active_parameters + attention * seen)
    return {
        "model_flops_per_s": usual,
        "mfu": usual / peak if peak else None,
        "mfu_causal": causal / peak if peak else None,
    }


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table a reader looks at first."""
    header = (
        "row", "precision", "useful tokens/s", "p10–p90", "× original", "× plain loop", "padding",
        "step s", "peak MB", "resident MB", "MFU", "operators", "syncs", "tensors",
    )  # fmt: skip
    return harness.format_table(header, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['model']} {row['name']}"
    return [
        f"{name} {row['ds_config']}" if row["ds_config"] else name,
        row["precision"],
        f"{row['useful_tokens_per_s']:,.0f}",
        f"{row['useful_tokens_per_s_p10']:,.0f}–{row['useful_tokens_per_s_p90']:,.0f}",
        _ratio(row, "original"),
        _ratio(row, "plain_loop"),
        f"{row['padding_share']:.1%}",
        f"{row['step_s']['median']:.3f}",
        _megabytes(row["peak_bytes"]),
        _megabytes(row["peak_resident_bytes"]),
        "not known" if row["mfu"] is None else f"{row['mfu']:.1%}",
        f"{row['dispatched_operators']:,}",
        f"{sum(row['sync_operators'].values()):,}",
        f"{row['parameter_tensors']}",
    ]


def _ratio(row: Mapping[str, Any], name: str) -> str:
    value, error = row[f"ratio_to_{name}"], row[f"ratio_to_{name}_error"]
    if value is None:
        return "–"
    digits = 2 if math.isfinite(value) and value >= 2 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _megabytes(value: int | None) -> str:
    return "not measured" if value is None else f"{value / 1e6:,.0f}"
