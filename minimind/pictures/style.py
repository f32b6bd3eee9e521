"""Defines the style of all pictures, and the block that draws one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minimind.pictures.axes import format_axes
from minimind.pictures.fonts import make_drawable, without_font_warnings
from minimind.runtime.whole_files import write_whole

COLORS = ("#1a5fa8", "#c03810", "#049d5d", "#833856", "#de7a00", "#8466ea", "#16360c")
"""Colours of lines and bars. Each has a contrast of 3 or more to white. Any two differ by 20 or
more in CIELAB for readers with normal sight, protanopia, deuteranopia or tritanopia."""
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (9, 2)), (0, (2, 1)))
"""Lines differ in dashes and markers too, for print in grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6b7077"
"""The colour of lines that are no data: a limit, a goal, an ideal."""
INK = "#24292f"
PAPER = "#ffffff"
GRID = "#d9dce0"
HEAT = "cividis"
"""The colour map of heat maps: it grows lighter steadily, also in grey and for colour-blind readers
(Nuñez et al. 2018)."""
_DPI = 150
_MARGIN_IN = 0.1


def _rc_params() -> dict[Any, Any]:
    from cycler import cycler

    return {
        # A white card with a margin is readable on white pages and on dark ones.
        "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "figure.dpi": _DPI,
        "figure.constrained_layout.use": True,
        "font.family": ["DejaVu Sans"], "font.size": 10, "axes.labelsize": 10,
        "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "figure.titlesize": 11, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
        "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK,
        "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "axes.edgecolor": GREY, "axes.linewidth": 0.8, "lines.linewidth": 1.8,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6,
        "axes.xmargin": 0.02,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=DASHES),
        "image.cmap": HEAT,
        # Longer lines than this are drawn in pieces: the renderer's memory for one is limited.
        "agg.path.chunksize": 20_000,
        # A "$" in the name of a run or a reward is a dollar sign.
        "text.parse_math": False,
    }  # fmt: skip


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yields a matplotlib Figure of `width` x `height` inches in the project's style, and writes it
    as a PNG after the block, complete or not at all.

    Numbers on axes get thousands separators. Characters that no installed font has are replaced by
    their code points (minimind.pictures.fonts). Raises OSError that names `path`.
    """
    # pyplot is avoided because it keeps state and looks for a display.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        # A user's matplotlibrc does not change the pictures.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_rc_params())
        figure = Figure(figsize=(width, height))
        yield figure
        save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Draws a figure as a PNG, which is complete or absent, with readable numbers and words."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    canvas = FigureCanvasAgg(figure)
    with without_font_warnings():
        make_drawable(figure, format_axes(figure))
        canvas.draw()
    margin = (round(_MARGIN_IN * _DPI),) * 2
    rgb = np.asarray(canvas.buffer_rgba())[..., :3]
    card = np.pad(rgb, (margin, margin, (0, 0)), constant_values=255)
    # Without the version of matplotlib equal pictures are equal files.
    metadata: Any = {"Software": None}
    with write_whole(path) as new:
        imsave(str(new), card, format="png", dpi=_DPI, metadata=metadata)


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Gives each name the color, linestyle and marker that `axes.plot` takes. The eighth name has
    the first colour again, with another dash."""
    return {
        name: {
            "color": COLORS[place % len(COLORS)],
            "linestyle": DASHES[(place + place // len(COLORS)) % len(DASHES)],
            "marker": MARKERS[(place + place // len(COLORS)) % len(MARKERS)],
        }
        for place, name in enumerate(dict.fromkeys(names))
    }


def pale(color: str, share: float = 0.6) -> str:
    """Gives `color` mixed with `share` of white."""
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)
