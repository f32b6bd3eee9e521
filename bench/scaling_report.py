"""From what the ranks of bench.scaling found to its rows and its table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench import harness
from bench.scaling_model import Link, StepModel
from bench.step_parts import PARTS
from minimind.rehearsal.report import Rehearsal
from minimind.runtime.devices import Device

_NOT_MEASURED = "not measured"


def build_row(
    mode: str, num_rows: int, found: Mapping[str, Any], device: Device,
    base: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """A measured count. `found` is bench.scaling_rank's; `base` the smallest count's row."""
    ranks = found["ranks"]
    # Ranks wait for each other, so a step is as long as on the slowest.
    seconds = [max(step) for step in zip(*(rank["step_seconds"] for rank in ranks), strict=True)]
    per_step = [sum(step) for step in zip(*(rank["num_tokens"] for rank in ranks), strict=True)]
    tokens = statistics.mean(per_step)
    rate = harness.summarize([tokens / s for s in seconds])
    world_size = found["world_size"]
    parts = {part: statistics.mean(rank["step_parts_s"][part] for rank in ranks) for part in PARTS}
    peak = device.peak_flops * world_size if device.peak_flops else None
    seen = sum(rank["attended"] for rank in ranks) / sum(per_step)
    causal = found["flops_per_token_unattended"] + found["flops_per_attended"] * seen
    row = {
        "name": mode,
        "model": found["model"],
        "ds_config": found["ds_config"],
        "resolved_ds_config": found["resolved_ds_config"],
        "world_size": world_size,
        "hosts": len({rank["host"] for rank in ranks}),
        "predicted": False,
        "rows_per_step": num_rows,
        "micro_batch": found["micro_batch"],
        "micro_batches": num_rows // (found["micro_batch"] * world_size),
        "seq_len": found["seq_len"],
        "parameters": found["parameters"],
        "threads": found["threads"],
        "padding_share": found["padding_share"],
        "useful_tokens_per_s": rate["median"],
        "useful_tokens_per_s_p10": rate["p10"],
        "useful_tokens_per_s_p90": rate["p90"],
        "useful_tokens_per_step": tokens,
        "step_s": harness.summarize(seconds),
        "step_seconds": seconds,
        "step_parts_s": parts,
        "collectives": ranks[0]["collectives"],
        "communication_share": parts["communication"] / sum(parts.values()),
        "mfu": rate["median"] * found["flops_per_token"] / peak if peak else None,
        "mfu_causal": rate["median"] * causal / peak if peak else None,
        "link": found["link"],
    }
    for name in ("peak_bytes", "peak_reserved_bytes", "peak_resident_bytes"):
        by_rank = [rank[name] for rank in ranks]
        row[name] = max(by_rank) if None not in by_rank else None
        if name != "peak_resident_bytes":
            row[f"{name}_per_rank"] = by_rank if world_size > 1 else None
    return row | {"efficiency": _efficiency(row["useful_tokens_per_s"], world_size, base)}


def predict_row(
    rows: list[dict[str, Any]],
    model: StepModel,
    link: Link,
    mode: str,
    world_size: int,
    micro_batches: int,
    rehearsed: Rehearsal,
) -> None:
    """Adds to the measured row of this mode and count what the model says of it; where there is
    none, appends a row that holds nothing else."""
    base = next(row for row in rows if row["world_size"] == model.world_size)
    step_s = model.step_s(world_size, micro_batches, link, rehearsed.collectives)
    per_rank = base["useful_tokens_per_step"] / (model.world_size * model.micro_batches)
    tokens_per_s = per_rank * micro_batches * world_size / step_s
    compute_s = model.compute_s * micro_batches / model.micro_batches
    prediction = {
        "useful_tokens_per_s": tokens_per_s,
        "step_s": step_s,
        "communication_s": model.communication_s(
            world_size, link, rehearsed.collectives, compute_s
        ),
        "peak_bytes": rehearsed.peak_bytes,
        "efficiency": _efficiency(tokens_per_s, world_size, base),
        "link_bytes_per_s": link.bytes_per_s,
        "link_latency_s": link.latency_s,
        "link_origin": link.origin,
    }
    for row in rows:
        if (row["name"], row["world_size"]) == (mode, world_size):
            row["prediction"] = prediction
            row["prediction_error"] = {
                name: prediction[name] / row[name] - 1 if row[name] else None
                for name in ("useful_tokens_per_s", "peak_bytes")
            }
            return
    kept = ("model", "ds_config", "micro_batch", "seq_len", "parameters")
    rows.append({
        "name": mode, "world_size": world_size, "predicted": True, "prediction": prediction,
        "micro_batches": micro_batches, **{name: base[name] for name in kept},
    })  # fmt: skip


def _efficiency(rate: float, world_size: int, base: Mapping[str, Any] | None) -> float:
    """Tokens/s of a rank beside those of a rank at the smallest count."""
    if base is None:
        return 1.0
    return rate / world_size / (base["useful_tokens_per_s"] / base["world_size"])


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Predictions carry a sign and have columns of their own, with their error where the count was
    measured."""
    header = (
        "scaling", "ranks", "useful tokens/s", "p10–p90", "efficiency", "step s",
        "communication s", "peak MB a rank", "predicted tokens/s", "predicted efficiency",
        "predicted MB",
    )  # fmt: skip
    return harness.format_table(header, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    measured = [_NOT_MEASURED] * 6
    if not row["predicted"]:
        measured = [
            f"{row['useful_tokens_per_s']:,.0f}",
            f"{row['useful_tokens_per_s_p10']:,.0f}–{row['useful_tokens_per_s_p90']:,.0f}",
            f"{row['efficiency']:.0%}",
            f"{row['step_s']['median']:.2f}",
            f"{row['step_parts_s']['communication']:.2f}",
            _NOT_MEASURED if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
        ]
    return [row["name"], str(row["world_size"]), *measured, *_predictions(row)]


def _predictions(row: Mapping[str, Any]) -> list[str]:
    prediction, errors = row.get("prediction"), row.get("prediction_error") or {}
    if not prediction:
        return ["not predicted"] * 3

    def apart(name: str) -> str:
        return "" if errors.get(name) is None else f" ({errors[name]:+.1%})"

    return [
        f"~{prediction['useful_tokens_per_s']:,.0f}{apart('useful_tokens_per_s')}",
        f"~{prediction['efficiency']:.0%}",
        f"~{prediction['peak_bytes'] / 1e6:,.0f}{apart('peak_bytes')}",
    ]
