"""Draws how much an adapter changes each linear."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.lora.adapter import Adapter
from minimind.runtime.figures import save_figure

logger = logging.getLogger(__name__)

_TILE, _GAP = 48, 4
"""The size in pixels of each matrix, whatever its shape, and of the gap between two."""


def plot_adapter(adapter: Adapter, path: Path) -> None:
    """Draws |alpha/r · B·A| of every linear as a PNG: layers from left to right, linears from top
    to bottom, each matrix averaged down to the same size. A failed plot is logged and does not end
    the run."""
    try:
        _plot(adapter, path)
    except Exception as error:
        logger.warning("%s was not drawn: %s", path, error)


def _plot(adapter: Adapter, path: Path) -> None:
    # The object interface is used because pyplot keeps state and looks for a display.
    from matplotlib.figure import Figure

    places = {name: _place(name) for name in adapter}
    layers = sorted({layer for layer, _ in places.values()})
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    step = _TILE + _GAP
    pixels = torch.full((len(kinds) * step - _GAP, len(layers) * step - _GAP), float("nan"))
    for name, (layer, kind) in places.items():
        top, left = kinds.index(kind) * step, layers.index(layer) * step
        pixels[top : top + _TILE, left : left + _TILE] = _tile(adapter[name].delta())
    figure = Figure(
        figsize=(3 + 0.5 * len(layers), 1.5 + 0.5 * len(kinds)), dpi=120, layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(pixels.numpy(), cmap="magma", vmin=0.0, interpolation="nearest")
    axes.set_xticks([_TILE / 2 + step * i for i in range(len(layers))], [str(x) for x in layers])
    axes.set_yticks([_TILE / 2 + step * i for i in range(len(kinds))], kinds)
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    figure.colorbar(image, label="mean of |alpha/r · B·A|")
    save_figure(figure, path)


def _place(name: str) -> tuple[int, str]:
    """Gives (layer, linear), such as (3, "self_attn.q_proj") for
    `model.layers.3.self_attn.q_proj`."""
    layer, _, kind = name.removeprefix("model.layers.").partition(".")
    return int(layer), kind


def _tile(delta_OI: Tensor) -> Tensor:
    return F.interpolate(delta_OI.abs()[None, None], size=(_TILE, _TILE), mode="area")[0, 0]
