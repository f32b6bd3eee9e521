"""Makes the rows and the table of bench.scaling from the results of the ranks, and predicts the
time of a step at another number of ranks.

The prediction divides the compute time of the smallest measured number of ranks among the new
number, and adds the time in which the link sends the bytes of the ZeRO stage. A rehearsal gives
these bytes, and the memory of a rank.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import harness
from bench.harness import NOT_MEASURED, Columns, Row, shown
from bench.train.step_parts import PARTS
from minimind.rehearsal.report import Rehearsal
from minimind.rehearsal.roofline import sent_share
from minimind.runtime.devices import Device

Collectives = Mapping[str, tuple[int, int]]
"""The number of collectives of a step and the bytes of their larger sides, by kind."""


@dataclass(frozen=True, slots=True)
class Link:
    """Describes the link between ranks."""

    bytes_per_s: float
    """The bytes that each rank sends in a second while all ranks send."""
    latency_s: float
    """The seconds of the smallest collective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Describes a step measured at `world_size` ranks by its parts."""

    world_size: int
    micro_batches: int
    """The number of micro-batches of each rank in a step."""
    compute_s: float
    """The seconds of forward and backward of all micro-batches."""
    update_s: float
    """The seconds of the optimizer, and of what else happens once a step."""
    data_wait_s: float
    zero: Mapping[str, Any]
    """The section `zero_optimization` of the JSON."""

    @classmethod
    def of(cls, measured: Row) -> StepModel:
        """Makes the model from the row of the smallest measured number of ranks."""
        parts = measured["step_parts_s"]
        # Watched steps may take longer than timed ones; the shares are what counts.
        factor = measured["step_s"]["median"] / sum(parts.values())
        return cls(
            world_size=measured["world_size"],
            micro_batches=measured["micro_batches"],
            compute_s=factor * (parts["forward"] + parts["backward"]),
            update_s=factor * (parts["engine"] + parts["optimizer"]),
            data_wait_s=factor * parts["data_wait"],
            zero=measured["resolved_ds_config"].get("zero_optimization") or {},
        )

    def step_s(
        self, world_size: int, micro_batches: int, link: Link | None, collectives: Collectives
    ) -> float:
        """Gives the seconds of a step with `micro_batches` on each of `world_size` ranks."""
        compute = self.compute_s * micro_batches / self.micro_batches
        shards = world_size / self.world_size if self.zero.get("stage") else 1
        return (
            compute
            + self.update_s / shards
            + self.data_wait_s
            + self.communication_s(world_size, link, collectives, compute)
        )

    def communication_s(
        self, world_size: int, link: Link | None, collectives: Collectives, compute_s: float
    ) -> float:
        """Gives the seconds of communication that the step waits for; none of one rank, which needs
        no link."""
        if world_size == 1:
            return 0.0
        assert link is not None
        gradients = weights = 0.0
        for kind, (count, payload) in collectives.items():
            seconds = payload * sent_share(kind, world_size) / link.bytes_per_s
            if kind in ("all_reduce", "reduce_scatter"):
                gradients += seconds
            else:
                weights += seconds
            weights += count * link.latency_s
        if self.zero.get("overlap_comm"):
            # Gradients leave while the backward pass, two thirds of the compute, goes on.
            gradients = max(0.0, gradients - compute_s * 2 / 3)
        return gradients + weights


def build_row(
    mode: str, num_rows: int, found: Mapping[str, Any], device: Device,
    base: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Gives the row of a measured number of ranks. `found` is the result that bench.scaling.rank
    wrote; `base` is the row of the smallest number of ranks, to which the efficiency is relative,
    or None where this row is that one."""
    ranks = found["ranks"]
    # Ranks wait for each other, so a step is as long as on the slowest.
    seconds = [max(step) for step in zip(*(rank["step_seconds"] for rank in ranks), strict=True)]
    per_step = [sum(step) for step in zip(*(rank["num_tokens"] for rank in ranks), strict=True)]
    tokens = statistics.mean(per_step)
    rate = harness.rates("useful_tokens_per_s", [tokens / s for s in seconds])
    world_size, tokens_per_s = found["world_size"], rate["useful_tokens_per_s"]
    parts = {part: statistics.mean(rank["step_parts_s"][part] for rank in ranks) for part in PARTS}
    peak = device.peak_flops * world_size if device.peak_flops else None
    row = {
        "name": mode,
        "model": found["model"],
        "ds_config": found["ds_config"],
        "resolved_ds_config": found["resolved_ds_config"],
        "world_size": world_size,
        "predicted": False,
        "micro_batch": found["micro_batch"],
        "micro_batches": num_rows // (found["micro_batch"] * world_size),
        "seq_len": found["seq_len"],
        "parameters": found["parameters"],
        "threads": found["threads"],
        **rate,
        "useful_tokens_per_step": tokens,
        "step_s": harness.summarize(seconds),
        "step_seconds": seconds,
        "step_parts_s": parts,
        "collectives": ranks[0]["collectives"],
        "mfu": tokens_per_s * found["flops_per_token"] / peak if peak else None,
        "mfu_causal": tokens_per_s * found["flops_per_token_causal"] / peak if peak else None,
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
    link: Link | None,
    mode: str,
    world_size: int,
    micro_batches: int,
    rehearsed: Rehearsal,
) -> None:
    """Adds a prediction to the measured row of this mode and number of ranks. Where that was not
    measured, appends a row with the prediction alone."""
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
        "holders": dict(rehearsed.peak),
        "efficiency": _efficiency(tokens_per_s, world_size, base),
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
    """Gives the tokens/s of a rank over the tokens/s of a rank at the smallest measured number of
    ranks."""
    if base is None:
        return 1.0
    return rate / world_size / (base["useful_tokens_per_s"] / base["world_size"])


def format_rows(rows: Sequence[Row]) -> str:
    """Makes the table. Predictions carry a `~` and have columns of their own, with their error
    where the number of ranks was measured, too."""

    def predicted(name: str, form: str = ",.0f", per: float = 1) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            if not (prediction := row.get("prediction")):
                return "not predicted"
            error = (row.get("prediction_error") or {}).get(name)
            apart = "" if error is None else f" ({error:+.1%})"
            return f"~{shown(prediction[name], form, per)}{apart}"

        return cell

    columns: Columns = {
        "useful tokens/s": lambda row: shown(row["useful_tokens_per_s"]),
        "p10–p90": harness.rate_range,
        "efficiency": lambda row: shown(row["efficiency"], ".0%"),
        "step s": lambda row: shown(row["step_s"]["median"], ".2f"),
        "communication s": lambda row: shown(row["step_parts_s"]["communication"], ".2f"),
        "peak MB a rank": lambda row: shown(row["peak_bytes"], per=1e6),
    }
    measured = {
        name: lambda row, cell=cell: NOT_MEASURED if row["predicted"] else cell(row)
        for name, cell in columns.items()
    }
    has_several = len({row["ds_config"] for row in rows}) > 1
    return harness.format_rows(
        rows,
        {
            "scaling": lambda row: row["name"],
            **({"JSON": lambda row: row["ds_config"]} if has_several else {}),
            "ranks": lambda row: str(row["world_size"]),
            **measured,
            "predicted tokens/s": predicted("useful_tokens_per_s"),
            "predicted efficiency": predicted("efficiency", ".0%"),
            "predicted MB": predicted("peak_bytes", per=1e6),
        },
    )
