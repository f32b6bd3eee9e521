"""From the step times of bench.train_step to its JSON rows and its table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bench import harness
from bench.padded_rows import is_padded
from bench.train_runs import RowSpec
from bench.train_workers import StepTime

NOT_MEASURED: dict[str, Any] = {
    "live_bytes_between_steps": None, "peak_bytes": None, "peak_resident_bytes": None,
    "peak_reserved_bytes": None, "dispatched_operators": None, "sync_operators": None,
}  # fmt: skip
"""Of a row whose steps were timed, and no more."""
BASELINES = ("original", "plain_loop")
"""A row has ratios to these, measured or not, and to every other row that is not the engine's."""


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
    names = [spec.name for spec in specs]
    for name in dict.fromkeys([*BASELINES, *(n for n in names if n != "engine")]):
        base = names.index(name) if name in names else None
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
    run, pads = spec.run, is_padded(spec)
    seq_len = run.seq_len
    if pads:
        assert spec.documents is not None
        seq_len = spec.documents.max_tokens
    rate = harness.summarize(_rates(steps))
    return {
        "name": spec.name,
        "model": model,
        "stage": run.stage,
        "ds_config": spec.ds_config_name,
        "resolved_ds_config": run.ds_config if spec.ds_config_name else None,
        "world_size": 1,
        "seq_len": seq_len,
        "micro_batch": spec.original_batch if pads else run.micro_batch_size,
        "accumulation": spec.accumulation,
        **built,
        "useful_tokens_per_s": rate["median"],
        "useful_tokens_per_s_p10": rate["p10"],
        "useful_tokens_per_s_p90": rate["p90"],
        "useful_tokens_per_step": _tokens_per_step(steps),
        "targets_per_step": statistics.mean(step.num_targets for step in steps),
        **_of_answers(spec, steps),
        "padding_share": 1 - sum(s.num_tokens for s in steps) / sum(s.num_places for s in steps),
        "step_s": harness.summarize([step.seconds for step in steps]),
        **_flops(spec, seq_len, steps, rate["median"]),
        **measured,
        "step_seconds": [step.seconds for step in steps],
        "losses": [step.loss for step in steps],
    }


def _of_answers(spec: RowSpec, steps: Sequence[StepTime]) -> dict[str, Any]:
    """Answers/s of whole steps, and what the stage measured of them, by name."""
    if not (answers := getattr(spec.run.recipe, "num_generations", 0)):
        return {}
    answers *= spec.run.train_batch_size
    return {
        "samples_per_step": answers,
        "samples_per_s": statistics.median(answers / step.seconds for step in steps),
        "measured": {
            name: statistics.median(step.measured[name] for step in steps)
            for name in steps[0].measured
        },
    }


def _tokens_per_step(steps: Sequence[StepTime]) -> float:
    """Without padding."""
    return statistics.mean(step.num_tokens for step in steps)


def _rates(steps: Sequence[StepTime]) -> list[float]:
    """Useful tokens/s of each step, with the tokens of the mean step: how many a step happens to
    hold has next to no influence on its time (none, where it is padded)."""
    tokens = _tokens_per_step(steps)
    return [tokens / step.seconds for step in steps]


def _flops(
    spec: RowSpec, seq_len: int, steps: Sequence[StepTime], tokens_per_s: float
) -> dict[str, float | None]:
    """FLOP/s of the useful tokens, 6N + 12·L·D·T each where all is trained, less where weights are
    frozen, and their share of the device's peak: so, and with attention counted by what each token
    of a document sees. A second model beside the trained one is not counted, nor is generation."""
    run, config, peak = spec.run, spec.run.config, spec.run.device.peak_flops
    of_frozen = run.flops_per_token - config.flops_per_token(run.seq_len)
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    seen = sum(step.attended for step in steps) / sum(step.num_tokens for step in steps)
    a_token = config.flops_per_token(seq_len) + of_frozen
    a_token_causal = 6 * config.num_active_parameters + attention * seen + of_frozen
    if spec.name == "frozen":  # a forward is a third of a step
        a_token, a_token_causal = a_token / 3, a_token_causal / 3
    return {
        "flops_per_token_causal": a_token_causal,
        "model_flops_per_s": tokens_per_s * a_token,
        "mfu": tokens_per_s * a_token / peak if peak else None,
        "mfu_causal": tokens_per_s * a_token_causal / peak if peak else None,
    }


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table a reader looks at first."""
    bases = [name for name in dict.fromkeys(row["name"] for row in rows) if name != "engine"]
    answers = any("samples_per_s" in row for row in rows)
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "row": _title,
        "precision": lambda row: row["precision"],
        "useful tokens/s": lambda row: f"{row['useful_tokens_per_s']:,.0f}",
        "p10–p90": lambda row: (
            f"{row['useful_tokens_per_s_p10']:,.0f}–{row['useful_tokens_per_s_p90']:,.0f}"
        ),
        **{f"× {name.replace('_', ' ')}": partial(_ratio, name=name) for name in bases},
        **({"samples/s": lambda row: f"{row['samples_per_s']:.2f}"} if answers else {}),
        "padding": lambda row: f"{row['padding_share']:.1%}",
        "step s": lambda row: f"{row['step_s']['median']:.3f}",
        "peak MB": lambda row: _megabytes(row["peak_bytes"]),
        "resident MB": lambda row: _megabytes(row["peak_resident_bytes"]),
        "MFU": lambda row: "not known" if row["mfu"] is None else f"{row['mfu']:.1%}",
        "operators": lambda row: _count(row["dispatched_operators"]),
        "syncs": lambda row: _count(row["sync_operators"] and sum(row["sync_operators"].values())),
        "tensors": lambda row: f"{row['parameter_tensors']}",
    }
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return harness.format_table(list(columns), cells)


def _title(row: Mapping[str, Any]) -> str:
    name = f"{row['model']} {row['name']}"
    return f"{name} {row['ds_config']}" if row["ds_config"] else name


def _ratio(row: Mapping[str, Any], name: str) -> str:
    value, error = row[f"ratio_to_{name}"], row[f"ratio_to_{name}_error"]
    if value is None:
        return "not measured"
    digits = 2 if math.isfinite(value) and value >= 2 else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _count(value: int | None) -> str:
    return "not measured" if value is None else f"{value:,}"


def _megabytes(value: int | None) -> str:
    return "not measured" if value is None else f"{value / 1e6:,.0f}"
