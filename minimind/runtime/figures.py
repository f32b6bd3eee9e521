"""Pictures as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def save_figure(figure: Any, path: Path) -> None:
    """Draws a matplotlib figure as a PNG, whole or not at all."""
    # Not through pyplot, which would keep state and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fresh = path.with_suffix(".new.png")
    FigureCanvasAgg(figure).print_png(str(fresh))
    os.replace(fresh, path)
