"""Makes the JSON rows and the table of bench.train from the times of steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bench import harness
from bench.harness import Columns, Row, shown, with_error
from bench.train.padded import is_padded
from bench.train.specs import RowSpec
from bench.train.worker import StepTime
from minimind.config.model import ModelConfig

NOT_MEASURED: dict[str, Any] = dict.fromkeys(
    ("live_bytes_between_steps", "peak_bytes", "peak_resident_bytes", "peak_reserved_bytes",
     "dispatched_operators", "sync_operators")
)  # fmt: skip
"""The values of a row that broke after its timed steps."""
BASELINES = ("original", "plain_loop")
"""Every row has a ratio to these, null where they were not measured, and to each other row that is
not the engine's."""


def build_rows(
    model: str,
    specs: Sequence[RowSpec],
    built: Sequence[Row],
    times: Sequence[Sequence[StepTime]],
    measured: Sequence[Row],
) -> list[dict[str, Any]]:
    """Gives one row for each spec; all arguments are in the order of `specs`."""
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
    model: str, spec: RowSpec, built: Row, steps: Sequence[StepTime], measured: Row
) -> dict[str, Any]:
    run, seq_len = spec.run, spec.run.seq_len
    if pads := is_padded(spec):
        assert spec.documents is not None
        seq_len = spec.documents.max_tokens
    rate, sizes = harness.rates("useful_tokens_per_s", _rates(steps)), [s.data for s in steps]
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
        **rate,
        "useful_tokens_per_step": _tokens_per_step(steps),
        **_of_answers(spec, steps),
        "padding_share": 1 - sum(d.num_tokens for d in sizes) / sum(d.num_places for d in sizes),
        "step_s": harness.summarize([step.seconds for step in steps]),
        **_flops(spec, seq_len, steps, rate["useful_tokens_per_s"]),
        **measured,
        "step_seconds": [step.seconds for step in steps],
        "losses": [step.loss for step in steps],
    }


def _of_answers(spec: RowSpec, steps: Sequence[StepTime]) -> dict[str, Any]:
    """Gives the answers/s of whole steps, for a stage that makes answers."""
    answers = spec.run.train_batch_size * getattr(spec.run.recipe, "num_generations", 0)
    if not answers:
        return {}
    return {"samples_per_s": statistics.median(answers / step.seconds for step in steps)}


def _tokens_per_step(steps: Sequence[StepTime]) -> float:
    return statistics.mean(step.data.num_tokens for step in steps)


def _rates(steps: Sequence[StepTime]) -> list[float]:
    """Gives the tokens/s of each step, without padding, as if every step held the mean number of
    tokens: the number of tokens of a step hardly changes its time (not at all, where rows are
    padded)."""
    tokens = _tokens_per_step(steps)
    return [tokens / step.seconds for step in steps]


def _flops(
    spec: RowSpec, seq_len: int, steps: Sequence[StepTime], tokens_per_s: float
) -> dict[str, float | None]:
    """Gives the share of the device's peak that the useful tokens take: with 6N + 12·L·D·T FLOP
    for each token (less where weights are frozen), and with attention counted by what each token of
    a document sees. A second model beside the trained one is not counted, nor is generation."""
    run, config, peak = spec.run, spec.run.config, spec.run.device.peak_flops
    of_frozen = run.flops_per_token - config.flops_per_token(run.seq_len)
    seen = sum(s.data.attended for s in steps) / sum(s.data.num_tokens for s in steps)
    a_token = config.flops_per_token(seq_len) + of_frozen
    a_token_causal = causal_flops(config, seen) + of_frozen
    if spec.name == "frozen":  # a forward is a third of a step
        a_token, a_token_causal = a_token / 3, a_token_causal / 3
    return {
        "flops_per_token_causal": a_token_causal,
        "mfu": tokens_per_s * a_token / peak if peak else None,
        "mfu_causal": tokens_per_s * a_token_causal / peak if peak else None,
    }


def causal_flops(config: ModelConfig, seen: float) -> float:
    """Gives the FLOP of a token that is trained on, where tokens see `seen` tokens in the mean."""
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 6 * config.num_active_parameters + attention * seen


def format_rows(rows: Sequence[Row]) -> str:
    """Makes the table that the command prints."""
    bases = [name for name in dict.fromkeys(row["name"] for row in rows) if name != "engine"]
    answers = any("samples_per_s" in row for row in rows)
    columns: Columns = {
        "row": lambda row: " ".join(filter(None, (row["model"], row["name"], row["ds_config"]))),
        "precision": lambda row: row["precision"],
        "useful tokens/s": lambda row: shown(row["useful_tokens_per_s"]),
        "p10–p90": harness.rate_range,
        **{f"× {name.replace('_', ' ')}": partial(_ratio, name) for name in bases},
        **({"samples/s": lambda row: shown(row["samples_per_s"], ".2f")} if answers else {}),
        "padding": lambda row: shown(row["padding_share"], ".1%"),
        "step s": lambda row: shown(row["step_s"]["median"], ".3f"),
        "peak MB": lambda row: shown(row["peak_bytes"], per=1e6),
        "resident MB": lambda row: shown(row["peak_resident_bytes"], per=1e6),
        "MFU": lambda row: shown(row["mfu"], ".1%", missing="not known"),
        "operators": lambda row: shown(row["dispatched_operators"]),
        "syncs": lambda row: shown(row["sync_operators"] and sum(row["sync_operators"].values())),
        "tensors": lambda row: shown(row["parameter_tensors"], "d"),
    }
    return harness.format_rows(rows, columns)


def _ratio(name: str, row: Mapping[str, Any]) -> str:
    value, error = row[f"ratio_to_{name}"], row[f"ratio_to_{name}_error"]
    return with_error(value, error, digits=2 if value is not None and value >= 2 else 3)
