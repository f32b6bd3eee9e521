"""Tries other tiles than the kernels' table has: `python -m bench.kernels.sweep --json FILE`.

It starts from a kernel's entry for this GPU and tries its candidates, and tiles with one number
halved or doubled. It goes on from a tile that is quicker over the presets, until no neighbour is
quicker. Prints the best, for the `Tiles` of the same names in kernels/minimind_kernels/triton_impl.
Without a GPU, the entry and its neighbours are compiled for `--arch`: this gives registers, shared
memory and spills, and no times.

Exit status: 0 done, 2 bad usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from minimind_kernels import OPS
from minimind_kernels.op import PRESETS, Case, Inputs, Op, Sizes
from minimind_kernels.triton_impl import config
from minimind_kernels.triton_impl.config import ProductTile, Tile, Tiles
from minimind_kernels.triton_impl.launch import laid_out_for

from bench import harness
from bench.kernels import compile_report
from bench.program import NUMBER, Options, parse_names, run_program
from minimind.runtime.devices import find_device

logger = logging.getLogger("bench.kernels.sweep")

_BOUNDS = {
    "elements": (256, 16384), "num_warps": (1, 16), "programs": (1, 16),
    "rows": (32, 256), "columns": (32, 256), "depth": (32, 128), "stages": (2, 6),
}  # fmt: skip
_USED = ("registers", "shared_bytes", "spills")
_BETTER = 0.99
"""The search goes on from a tile that takes at most this share of the time; noise is about half of
the difference to 1."""


@dataclass(frozen=True)
class TriedDevice(config.Device):
    """Presents a device with one entry of the table replaced."""

    entry: str
    tried: Tile | ProductTile

    def tile(self, tiles: Tiles[Any], dtype: torch.dtype | None = None) -> Any:
        return self.tried if tiles.name == self.entry else super().tile(tiles, dtype)


@dataclass(frozen=True)
class _AskedDevice(config.Device):
    """Records which entry is asked for."""

    asked: list[Tiles[Any]] = field(default_factory=list)

    def tile(self, tiles: Tiles[Any], dtype: torch.dtype | None = None) -> Any:
        self.asked.append(tiles)
        return super().tile(tiles, dtype)


@dataclass(slots=True)
class Entry:
    """Holds one kernel's tiles, and the cases that run them."""

    tiles: Tiles[Any]
    kernel: str
    """The name in the compile report."""
    direction: str
    op: Op
    sizes: list[Sizes] = field(default_factory=list)
    """The sizes at which `op` asks for it."""

    def build(self, sizes: Sizes, tokens: int, device: str) -> Case:
        return self.op.build(Inputs(sizes, tokens, torch.bfloat16, device))


def find_entries() -> dict[str, Entry]:
    """Finds the entries of the named operations. Running them on tensors without storage shows in
    which direction a tile is asked for, and which kernel is launched with it."""
    found: dict[str, Entry] = {}
    for op in OPS.values():
        for sizes in filter(op.runs_in, PRESETS) if op.tiles else ():
            case = op.build(Inputs(sizes, 4096, torch.bfloat16, "meta"))
            forward = [tiles.name for tiles, _ in _launched(lambda c=case: c.ours(*c.inputs))]
            for tiles, kernel in _launched(case.run):
                if tiles.name in op.tiles:
                    way = "forward" if tiles.name in forward else "backward"
                    entry = found.setdefault(tiles.name, Entry(tiles, kernel, way, op))
                    if sizes not in entry.sizes:
                        entry.sizes.append(sizes)
    return found


def _launched(run: Callable[[], Any]) -> list[tuple[Tiles[Any], str]]:
    """Collects the tiles that launchers ask for, each with the kernel that is launched next."""
    device = _AskedDevice("sm_90", 132)
    found: list[tuple[Tiles[Any], str]] = []

    def watch(kernel: Any, *_: Any) -> None:
        if device.asked:
            found.append((device.asked.pop(), compile_report.name_kernel(kernel)))

    with compile_report.launches_to(watch, device):
        run()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), sweep, argv)


def sweep(options: argparse.Namespace) -> None:
    """Tries tiles of each entry, and prints the best. Raises ConfigError for an unknown entry."""
    entries = _choose(options.kernels)
    device = config.device_of(torch.device("cuda")) if torch.cuda.is_available() else None
    end = time.monotonic() + options.limit_s
    rows: list[dict[str, Any]] = []
    machine = harness.describe_machine(find_device())
    for entry in entries:
        if device is None:
            rows += compile_near(entry, options)
        else:
            rows += descend(entry, device, options, end)
        harness.write_results(options.json, "sweep", machine, vars(options), rows)
    print(format_rows(rows))
    print(f"written: {options.json}")


def build_parser() -> Options:
    parser = Options("kernels.sweep", __doc__)
    add = parser.add
    add("kernels", None, "names of tiles (default: all)", metavar="A,B")
    add("tokens", 16384, "rows of every operation", **NUMBER)
    add("arch", "sm_90", "without a GPU", choices=list(compile_report.TARGETS))
    add("limit_s", 1500.0, "no further tile is tried after so many seconds", type=float)
    return parser


def neighbours(tile: Tile | ProductTile) -> Iterator[Tile | ProductTile]:
    """Yields tiles with one number halved or doubled, or one stage more or less, within bounds."""
    for name, value in dataclasses.asdict(tile).items():
        steps = (value - 1, value + 1) if name == "stages" else (value // 2, value * 2)
        least, most = _BOUNDS[name]
        for other in steps:
            if least <= other <= most:
                yield dataclasses.replace(tile, **{name: other})


def descend(
    entry: Entry, device: config.Device, options: argparse.Namespace, end: float
) -> list[dict[str, Any]]:
    """Measures tiles, beginning with the table's entry; gives a row for each."""
    measured: dict[Tile | ProductTile, dict[str, Any]] = {}

    def take(tile: Tile | ProductTile) -> float:
        """Gives the ratio of the tile's time to the entry's time, as a mean over the presets;
        infinity where it fails."""
        if tile not in measured:
            tried = TriedDevice(device.arch, device.num_multiprocessors, entry.tiles.name, tile)
            times = _time_presets(entry, tried, options.tokens)
            first = next(iter(measured.values()))["median_us"] if measured else times
            ratio = float("inf")
            if times and first:
                ratio = statistics.geometric_mean([times[p] / first[p] for p in times])
            measured[tile] = {"median_us": times, "ratio_to_entry": ratio}
            logger.info("%s %s: %.3f", entry.tiles.name, tile, ratio)
        return measured[tile]["ratio_to_entry"]

    best = start = entry.tiles.on(device.arch)
    least, moved = take(best), True
    while moved:
        moved = False
        for near in (*entry.tiles.candidates, *neighbours(best)):
            if time.monotonic() > end:
                break
            if take(near) < _BETTER * least:
                best, least, moved = near, measured[near]["ratio_to_entry"], True
                break
    return [
        {"name": entry.tiles.name, "arch": device.arch, "tile": repr(tile),
         "is_entry": tile == start, "is_best": tile == best, **values}
        for tile, values in measured.items()
    ]  # fmt: skip


def compile_near(entry: Entry, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Gives the usage of the entry and its neighbours, compiled for `--arch`."""
    target = compile_report.TARGETS[options.arch].device
    start = entry.tiles.on(options.arch)
    rows = []
    for tile in dict.fromkeys((start, *entry.tiles.candidates, *neighbours(start))):
        device = TriedDevice(target.arch, target.num_multiprocessors, entry.tiles.name, tile)
        cases = [entry.build(sizes, 4096, "meta") for sizes in entry.sizes]
        usages = [
            usage
            for _, usage in compile_report.compile_cases(
                options.arch, device, torch.bfloat16, cases
            )
            if usage.kernel == entry.kernel
        ]
        used = {f: max(getattr(u, f) for u in usages) for f in _USED}
        rows.append({
            "name": entry.tiles.name, "arch": options.arch, "tile": repr(tile),
            "is_entry": tile == start, "is_best": False, "median_us": None, **used,
        })  # fmt: skip
        logger.info("%s %s: %s", entry.tiles.name, tile, used)
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the best tile of each kernel as lines for the table; all tiles where none was
    measured."""
    lines = [f'"{row["name"]}": {row["tile"]},' for row in rows if row["is_best"]]
    if lines:
        return "\n".join(lines)
    header = ("tile", "registers", "shared bytes", "spills", "median µs")
    cells = [
        (f"{row['name']} {row['tile']}", *(str(row[f]) for f in _USED), harness.NOT_MEASURED)
        for row in rows
    ]
    return harness.format_table(header, cells)


def _choose(text: str | None) -> list[Entry]:
    entries = find_entries()
    names = parse_names(text, "--kernels", list(entries)) if text else entries
    return [entries[name] for name in names]


def _time_presets(entry: Entry, device: config.Device, tokens: int) -> dict[str, float]:
    """Gives the median µs by preset; nothing where the tile does not fit the GPU."""
    from bench.kernels.timing import build_sets, directions, own_stream, time_calls

    times: dict[str, float] = {}
    for sizes in entry.sizes:
        try:
            with laid_out_for(device), own_stream():
                sets = build_sets(partial(entry.build, sizes, tokens, "cuda"))
                ways = directions(sets[0], [(case.ours, case.inputs) for case in sets])
                calls = dict(ways)[entry.direction]
                times[sizes.preset] = time_calls(calls)["median_us"]
        except Exception as error:  # Triton raises another error for each limit.
            logger.info("%s: %s", type(error).__name__, str(error).splitlines()[0])
            return {}
    return times


if __name__ == "__main__":
    sys.exit(main())
