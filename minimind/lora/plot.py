"""Draws how much an adapter changes each linear."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.lora.adapter import Adapter
from minimind.pictures.style import picture

logger = logging.getLogger(__name__)

_TILE, _GAP = 48, 4
"""The size in pixels of each matrix, whatever its shape, and of the gap between two."""
_MOST_INCHES, _MOST_LABELS = 16, 48
"""The greatest size of the field of matrices, and the most labels on a side."""


def plot_adapter(adapter: Adapter, path: Path) -> None:
    """Draws |alpha/r · B·A| of every linear as a PNG: layers from left to right, linears from top
    to bottom, each matrix averaged down to the same size. A failed plot is logged and does not end
    the run."""
    try:
        _plot(adapter, path)
    except Exception as error:
        logger.warning("%s was not drawn: %s", path, error)


def _plot(adapter: Adapter, path: Path) -> None:
    places = {name: _place(name) for name in adapter}
    layers = sorted({layer for layer, _ in places.values()})
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    step = _TILE + _GAP
    pixels = torch.full((len(kinds) * step - _GAP, len(layers) * step - _GAP), float("nan"))
    for name, (layer, kind) in places.items():
        top, left = kinds.index(kind) * step, layers.index(layer) * step
        pixels[top : top + _TILE, left : left + _TILE] = _tile(adapter[name].delta())
    cell = min(0.5, _MOST_INCHES / max(len(kinds), len(layers)))
    with picture(path, 3.5 + cell * len(layers), 1.8 + cell * len(kinds)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(pixels.numpy(), vmin=0.0, interpolation="nearest")
        axes.set_xticks(*_ticks([str(layer) for layer in layers], step))
        axes.set_yticks(*_ticks(kinds, step))
        axes.set_xlabel("layer")
        axes.set_title("What the adapter adds to each weight")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, label="mean of |alpha/r · B·A|")


def _ticks(labels: Sequence[str], step: int) -> tuple[list[float], list[str]]:
    """Gives the pixels of the tiles' middles and their labels, of every second tile or fewer where
    there are many."""
    shown = range(0, len(labels), -(-len(labels) // _MOST_LABELS))
    return [_TILE / 2 + step * place for place in shown], [labels[place] for place in shown]


def _place(name: str) -> tuple[int, str]:
    """Gives (layer, linear), such as (3, "self_attn.q_proj") for
    `model.layers.3.self_attn.q_proj`."""
    layer, _, kind = name.removeprefix("model.layers.").partition(".")
    return int(layer), kind


def _tile(delta_OI: Tensor) -> Tensor:
    return F.interpolate(delta_OI.abs()[None, None], size=(_TILE, _TILE), mode="area")[0, 0]
