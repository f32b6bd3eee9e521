"""The tables of kernels/README.md: from the code, and from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import minimind_kernels as K

from bench.harness import format_table
from bench.kernel_cases import PRESETS
from bench.results import Results

_FORMULAS = {
    "rms_norm": "x / rms(x) · w",
    "add_rms_norm": "s = x + residual; s, s / rms(s) · w",
    "qk_rope": "split QKV, norm q and k by head (optional), rotate them",
    "swiglu": "silu(gate) · up",
    "swiglu_linear": "(silu(gate) · up)·Wᵀ, the activation rebuilt for W's gradient",
    "linear_cross_entropy": "logsumexp(h·Wᵀ) - (h·Wᵀ)[label]",
    "linear_log_prob": "(h·Wᵀ)[id] - logsumexp(h·Wᵀ)",
    "linear_token_loss": "f(log-probability of id), logits made once",
    "linear_distillation": "α·cross-entropy + (1 - α)·T²·KL, logits made once",
    "linear_kl": "Σ p·(log p - log q), p and q from h·Wᵀ / T",
    "moe_routing": "softmax, the largest S, E·Σ share·mean(p), order by expert",
    "expert_ffn": "Σ_s w_s · down_e(silu(gate_e x) · up_e x)",
}
_HELPERS = ("rope_rows",)
"""Public, and no operation: what a caller prepares for one."""
_MOE = ("moe_routing", "expert_ffn")
_CASES = {
    "qk_rope": ("rope", "qk_norm_rope"),
    "linear_log_prob": ("linear_cross_entropy_any_grad",),
}


def kernel_table(results: Results) -> str:
    """A line for each public operation."""
    measured = _measured(results)
    header = ["operation", "formula", "reference", "dtypes", "compiled for", "last measured"]
    lines = []
    for name in K.__all__:
        operation = getattr(K, name)
        if isinstance(operation, type) or name in _HELPERS:
            continue
        module = operation.__module__.rsplit(".", 1)[-1]
        lines.append([
            f"`{name}`", _FORMULAS[name], f"`{module}.py`", "fp32, fp16, bf16", _sizes(name),
            measured.get(name, "not measured"),
        ])  # fmt: skip
    return format_table(header, lines)


def step_count_table(results: Results) -> str:
    """The newest counts."""
    found = results.newest("step_counts")
    return build_step_table(found["rows"]) if found else "A step's counts: not measured"


def build_step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Says what a training step asks of a GPU, rehearsed by bench/step_counts.py."""
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


def _sizes(name: str) -> str:
    """What distinguishes the presets to this operation."""
    if name.endswith("rms_norm"):
        return "D " + ", ".join(sorted({str(s.hidden) for s in PRESETS}))
    if name == "qk_rope":
        return "N/K/H " + ", ".join(
            sorted({f"{s.heads}/{s.kv_heads}/{s.head_size}" for s in PRESETS})
        )
    if name in _MOE:
        moe = [s for s in PRESETS if s.experts]
        sizes = "E/S " + ", ".join(f"{s.experts}/{s.experts_per_token}" for s in moe)
        if name == "expert_ffn":
            sizes += "; D/F " + ", ".join(f"{s.hidden}/{s.ffn}" for s in moe)
        return sizes
    if name.startswith("swiglu"):
        return "F " + ", ".join(sorted({str(s.ffn) for s in PRESETS}))
    return "V " + ", ".join(sorted({str(s.vocab) for s in PRESETS}))


def _measured(results: Results) -> dict[str, str]:
    """The newest median of our forward and backward in bf16 at minimind2-small or, of experts,
    minimind2-moe, and the device."""
    found: dict[str, str] = {}
    for measured in results.oldest_first("kernels"):
        rows = [row for row in measured["rows"] if row.get("contender") == "minimind"]
        for name in K.__all__:
            cases = _CASES.get(name, (name,))
            preset = "minimind2-moe" if name in _MOE else "minimind2-small"
            times = [
                f"{row['direction']} {row['median_us']:.0f} µs"
                for row in rows
                if row["preset"] == preset
                and row["name"].split(".")[0] in cases
                and row["median_us"] is not None
            ]
            if times:
                found[name] = f"{', '.join(times)} on {measured['machine']['device']}"
    return found
