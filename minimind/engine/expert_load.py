"""Records how evenly the experts are used, in expert_load.csv and its heat map expert_load.png."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from minimind.pictures.axes import count_axis
from minimind.pictures.style import INK, PAPER, picture
from minimind.runtime.whole_files import write_whole

_STEPS_KEPT = 256
_MOST_LABELS = 40
"""The most layers that get a label in the picture, and the most experts (of all layers) that get a
number."""


class ExpertLoadLog:
    """Records, on rank 0, the share of its layer's tokens that each expert takes. In a long run it
    keeps every second step, then every fourth and so on, so that 128 to 256 steps make the
    picture."""

    def __init__(self, folder: Path, step: int) -> None:
        """Drops the rows of an earlier part of the run after `step`, as MetricsLog does, and a row
        that a killed process left incomplete."""
        self._path = folder / "expert_load.csv"
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        header, *whole = [line for line in lines if line.endswith("\n")] or [""]
        if not header:
            self._path.unlink()
            return
        kept = [line for line in whole if int(line.split(",")[0]) <= step]
        with write_whole(self._path) as new:
            new.write_text("".join([header, *kept]), encoding="utf-8")

    def write(self, step: int, load: Mapping[int, Sequence[float]]) -> None:
        """Writes one row per layer. `load` holds, for each layer, the experts' shares."""
        if not load or step % _stride(step):
            return
        lines = [
            ",".join([str(step), str(layer), *(f"{share:.5f}" for share in shares)]) + "\n"
            for layer, shares in load.items()
        ]
        if not self._path.exists():
            num_experts = len(next(iter(load.values())))
            names = [f"expert_{e}" for e in range(num_experts)]
            lines.insert(0, ",".join(["step", "layer", *names]) + "\n")
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(lines))

    def plot(self) -> None:
        """Draws the picture; does nothing where no load was recorded."""
        if load := read_expert_load(self._path):
            plot_expert_load(load, self._path.with_suffix(".png"))


def _stride(step: int) -> int:
    """Gives the distance between recorded steps: the smallest power of two that has at most
    _STEPS_KEPT multiples up to `step`."""
    return 1 << ((step - 1) // _STEPS_KEPT).bit_length()


def read_expert_load(path: Path) -> dict[int, dict[int, list[float]]]:
    """Gives the shares by step and layer, at evenly spaced steps; empty where there is no file."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    load: dict[int, dict[int, list[float]]] = {}
    stride = _stride(int(rows[-1][0])) if rows else 1
    for step, layer, *shares in rows:
        if int(step) % stride == 0:
            load.setdefault(int(step), {})[int(layer)] = [float(share) for share in shares]
    return load


def plot_expert_load(load: Mapping[int, Mapping[int, Sequence[float]]], path: Path) -> None:
    """Draws a row for each expert, ordered by layer; colour shows its share relative to an even
    share."""
    steps, layers = sorted(load), list(next(iter(load.values())))
    num_experts = len(load[steps[0]][layers[0]])
    grid = [
        [load[step][layer][expert] * num_experts for step in steps]
        for layer in layers
        for expert in range(num_experts)
    ]
    gap = steps[1] - steps[0] if len(steps) > 1 else 1
    height = min(12.0, max(3.0, 0.16 * len(grid) + 1.0))
    with picture(path, 8, height) as figure:
        axes = figure.add_subplot()
        # A column covers the steps since the previous column.
        edges = [steps[0] - gap, *steps]
        mesh = axes.pcolormesh(edges, range(len(grid) + 1), grid, vmin=0, vmax=2)
        for place in range(1, len(layers)):
            axes.axhline(place * num_experts, color=PAPER, linewidth=2)
        axes.invert_yaxis()
        axes.grid(visible=False)
        middles = [(place + 0.5) * num_experts for place in range(len(layers))]
        shown = range(0, len(layers), -(-len(layers) // _MOST_LABELS))
        axes.set_yticks([middles[i] for i in shown], [f"layer {layers[i]}" for i in shown])
        axes.tick_params(axis="y", length=0)
        if len(grid) <= _MOST_LABELS:
            numbers = [str(expert) for _ in layers for expert in range(num_experts)]
            axes.set_yticks([row + 0.5 for row in range(len(grid))], numbers, minor=True)
            axes.tick_params(axis="y", which="minor", labelsize=7, labelcolor=INK, length=2)
            axes.tick_params(axis="y", which="major", pad=18)
        axes.set_title("Experts' shares of their layer's tokens")
        count_axis(axes)
        bar = figure.colorbar(mesh, extend="max", aspect=max(20, 4 * height), extendfrac=0.02)
        bar.set_label(f"share of tokens × {num_experts} (1: even)")
