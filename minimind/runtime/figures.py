"""Writes pictures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minimind.runtime.whole_files import write_whole


def save_figure(figure: Any, path: Path) -> None:
    """Draws a matplotlib figure as a PNG, which is complete or absent."""
    # pyplot is avoided because it keeps state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with write_whole(path) as new:
        FigureCanvasAgg(figure).print_png(str(new))
