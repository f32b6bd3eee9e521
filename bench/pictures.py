"""Draws pictures in one style."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimind.runtime.figures import save_figure

_STYLE: dict[Any, Any] = {
    "figure.dpi": 130, "figure.constrained_layout.use": True, "legend.frameon": False,
    "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


@contextlib.contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """Gives a figure of so many inches, and writes it as a PNG after the block."""
    # The object interface: pyplot would keep state and look for a display.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
