"""Tries other tiles than the kernels' table has: `python -m bench.sweep --json FILE`.

From a kernel's entry for this GPU, one number at a time is halved or doubled; what is quicker over
the presets is gone on from, until nothing near is. Prints the entries for
kernels/minimind_kernels/triton_impl/config.py. Without a GPU, the entry and what is near it are
compiled for `--arch`: registers, shared memory and spills, times not measured.

Exit status: 0 done, 2 bad usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from minimind_kernels.triton_impl import config
from minimind_kernels.triton_impl.config import ProductTile, Tile
from minimind_kernels.triton_impl.launch import laid_out_for

from bench import compile_report, harness
from bench.kernel_cases import PRESETS, Case, Sizes, build_cases
from minimind.errors import ConfigError
from minimind.runtime.devices import find_device

logger = logging.getLogger("bench.sweep")

CASES = {
    "norm_forward": ("add_rms_norm", "forward", "rms_norm.forward"),
    "norm_backward": ("add_rms_norm", "backward", "rms_norm.backward"),
    "column_sum": ("add_rms_norm", "backward", "column_sum.column_sum"),
    "rope_forward": ("rope", "forward", "rope.forward"),
    "rope_backward": ("rope", "backward", "rope.backward"),
    "norm_rope_backward": ("qk_norm_rope", "backward", "rope.backward"),
    "swiglu_forward": ("swiglu", "forward", "swiglu.forward"),
    "swiglu_backward": ("swiglu", "backward", "swiglu.backward"),
    "softmax": ("linear_cross_entropy", "forward", "cross_entropy.loss"),
    "moe_routing": ("moe_routing", "forward", "moe_routing.choose"),
    "expert_up": ("expert_ffn", "forward", "expert_gemm.up"),
    "expert_to_slots": ("expert_ffn", "forward", "expert_gemm.to_slots"),
    "expert_activation_grad": ("expert_ffn", "backward", "expert_gemm.activation_grad"),
    "expert_weight_grad": ("expert_ffn", "backward", "expert_weight_grad.weight_grad"),
}
"""Of each entry of the table: the case and direction that run it, and the kernel in the compile
report."""

_BOUNDS = {
    "elements": (256, 16384), "num_warps": (1, 16), "programs": (1, 16),
    "rows": (32, 256), "columns": (32, 256), "depth": (32, 128), "stages": (2, 6),
}  # fmt: skip
_BETTER = 0.99
"""A tile is gone on from where it takes at most this share of the time: noise is about half."""


@dataclass(frozen=True)
class TriedDevice(config.Device):
    """A device with one entry of the table replaced."""

    kernel: str
    tried: Tile | ProductTile

    def tile(self, kernel: str) -> Tile:
        if kernel == self.kernel and isinstance(self.tried, Tile):
            return self.tried
        return super().tile(kernel)

    def product_tile(self, kernel: str, dtype: torch.dtype) -> ProductTile:
        if kernel == self.kernel and isinstance(self.tried, ProductTile):
            return self.tried
        return super().product_tile(kernel, dtype)


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = build_parser().parse_args(argv)
    try:
        kernels = _names(options.kernels)
        harness.check_writable(options.json)
    except ConfigError as error:
        logger.error("error: %s", error)
        return 2
    device = config.device_of(torch.device("cuda")) if torch.cuda.is_available() else None
    end = time.monotonic() + options.limit_s
    rows: list[dict[str, Any]] = []
    machine = harness.describe_machine(find_device())
    for kernel in kernels:
        if device is None:
            rows += compile_near(kernel, options)
        else:
            rows += descend(kernel, device, options, end)
        harness.write_results(options.json, "sweep", machine, vars(options), rows)
    print(format_rows(rows))
    print(f"written: {options.json}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="results file")
    parser.add_argument("--kernels", default=",".join(CASES), help="entries of the table (all)")
    parser.add_argument("--tokens", type=int, default=16384, help="rows of every operation")
    parser.add_argument(
        "--arch", default="sm_90", choices=list(compile_report.TARGETS), help="without a GPU"
    )
    parser.add_argument(
        "--limit_s", type=float, default=1500, help="no further tile is tried after so many seconds"
    )
    return parser


def neighbours(tile: Tile | ProductTile) -> Iterator[Tile | ProductTile]:
    """One number halved or doubled, or one stage more or less, within bounds."""
    for field, value in dataclasses.asdict(tile).items():
        steps = (value - 1, value + 1) if field == "stages" else (value // 2, value * 2)
        least, most = _BOUNDS[field]
        for other in steps:
            if least <= other <= most:
                yield dataclasses.replace(tile, **{field: other})


def entry(kernel: str, device: config.Device) -> Tile | ProductTile:
    """What the table holds now, in 16 bits."""
    if kernel.startswith("expert_"):
        return device.product_tile(kernel, torch.bfloat16)
    return device.tile(kernel)


def descend(
    kernel: str, device: config.Device, options: argparse.Namespace, end: float
) -> list[dict[str, Any]]:
    """Measures tiles from the entry of the table on; a row for each."""
    measured: dict[Tile | ProductTile, dict[str, Any]] = {}

    def take(tile: Tile | ProductTile) -> float:
        """Its time over that of the entry, a mean over the presets; infinity where it fails."""
        if tile not in measured:
            times = _time_presets(kernel, TriedDevice(**_fields(device), kernel=kernel, tried=tile),
                                  options.tokens)  # fmt: skip
            first = next(iter(measured.values()))["median_us"] if measured else times
            ratio = float("inf")
            if times and first:
                ratio = statistics.geometric_mean([times[p] / first[p] for p in times])
            measured[tile] = {"median_us": times, "ratio_to_entry": ratio}
            logger.info("%s %s: %.3f", kernel, tile, ratio)
        return measured[tile]["ratio_to_entry"]

    best = start = entry(kernel, device)
    least, moved = take(best), True
    while moved:
        moved = False
        for near in neighbours(best):
            if time.monotonic() > end:
                break
            if take(near) < _BETTER * least:
                best, least, moved = near, measured[near]["ratio_to_entry"], True
                break
    return [
        {"name": kernel, "arch": device.arch, "tile": repr(tile), "is_entry": tile == start,
         "is_best": tile == best, **values}
        for tile, values in measured.items()
    ]  # fmt: skip


def compile_near(kernel: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the entry and its neighbours take when compiled for `--arch`."""
    target = compile_report.TARGETS[options.arch][1]
    start = entry(kernel, target)
    rows = []
    for tile in (start, *neighbours(start)):
        device = TriedDevice(**_fields(target), kernel=kernel, tried=tile)
        cases = [case for sizes in PRESETS if (case := _case(kernel, sizes, 4096, "meta"))]
        usages = [
            usage
            for _, usage in compile_report.compile_cases(
                options.arch, device, torch.bfloat16, cases
            )
            if usage.kernel == CASES[kernel][2]
        ]
        used = {f: max(getattr(u, f) for u in usages) for f in ("registers", "shared_bytes")}
        spills = max(u.spills for u in usages)
        rows.append({
            "name": kernel, "arch": options.arch, "tile": repr(tile), "is_entry": tile == start,
            "is_best": False, "median_us": None, **used, "spills": spills,
        })  # fmt: skip
        logger.info("%s %s: %s, spills %d", kernel, tile, used, spills)
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The best of each kernel as lines for the table; all of them where none was measured."""
    lines = [f'"{row["name"]}": {row["tile"]},' for row in rows if row["is_best"]]
    if lines:
        return "\n".join(lines)
    header = ("tile", "registers", "shared bytes", "spills", "median µs")
    cells = [
        (f"{row['name']} {row['tile']}", *(str(row[f]) for f in ("registers", "shared_bytes")),
         str(row["spills"]), "not measured")
        for row in rows
    ]  # fmt: skip
    return harness.format_table(header, cells)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CASES:
            raise ConfigError(f"--kernels {name}: no such entry; entries: {', '.join(CASES)}")
    return names


def _fields(device: config.Device) -> dict[str, Any]:
    return {"arch": device.arch, "num_multiprocessors": device.num_multiprocessors}


def _case(kernel: str, sizes: Sizes, tokens: int, device: str) -> Case | None:
    """What runs the kernel at these sizes."""
    cases = build_cases(sizes, tokens, torch.bfloat16, device)
    return next((case for case in cases if case.name == CASES[kernel][0]), None)


def _time_presets(kernel: str, device: config.Device, tokens: int) -> dict[str, float]:
    """Median µs by preset; empty where the tile does not fit the GPU."""
    from bench.kernel_timing import build_sets, directions, own_stream, time_calls

    times: dict[str, float] = {}
    for sizes in PRESETS:
        if _case(kernel, sizes, 2, "meta") is None:
            continue

        def build(sizes: Sizes = sizes) -> Case:
            return cast(Case, _case(kernel, sizes, tokens, "cuda"))

        try:
            with laid_out_for(device), own_stream():
                sets = build_sets(build)
                ways = directions(sets[0], [(case.ours, case.inputs) for case in sets])
                calls = dict(ways)[CASES[kernel][1]]
                times[sizes.preset] = time_calls(calls)["median_us"]
        except Exception as error:  # Triton has an error of its own for each way not to fit.
            logger.info("%s: %s", type(error).__name__, str(error).splitlines()[0])
            return {}
    return times


if __name__ == "__main__":
    sys.exit(main())
