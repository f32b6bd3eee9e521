"""The one style: its colours, and that no other module has one of its own."""

from __future__ import annotations

import ast
import itertools
import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image
from training_runs import ROOT

from minimind.pictures.style import COLORS, DASHES, INK, MARKERS, line_styles, pale, picture

SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
"""What a reader sees of linear RGB (Machado, Oliveira & Fernandes 2009, severity 1)."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

WEB_THEME = ROOT / "minimind" / "cli" / "web.py"
"""Has colours, and draws no picture."""


def linear(color: str) -> np.ndarray:
    srgb = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65."""
    white = TO_XYZ.sum(axis=1)
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in TO_XYZ @ rgb / white]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_every_reader_tells_the_colours_apart(sight: str) -> None:
    seen = [lab(np.clip(np.asarray(SIGHT[sight]) @ linear(color), 0, 1)) for color in COLORS]
    distances = [math.dist(a, b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) >= 20


def test_colours_are_seen_on_white() -> None:
    """WCAG 2.2 asks for 3 of lines and 4.5 of text."""
    for color, wanted in [*((color, 3) for color in COLORS), (INK, 4.5)]:
        luminance = TO_XYZ[1] @ linear(color)
        assert 1.05 / (luminance + 0.05) >= wanted, color


def test_lines_differ_without_colours() -> None:
    styles = list(line_styles(map(str, range(20))).values())
    assert [style["color"] for style in styles[:7]] == list(COLORS)
    looks = [(str(s["color"]), str(s["linestyle"]), s["marker"]) for s in styles]
    assert len(set(looks)) == 20
    assert len({look[1:] for look in looks[:7]}) == len(DASHES) == len(MARKERS) == 7
    assert list(line_styles(["a", "b", "a"])) == ["a", "b"]


def test_pale_colours() -> None:
    assert pale("#000000", 0.0) == "#000000"
    assert pale("#123456", 1.0) == "#ffffff"
    assert pale("#000000", 0.5) == "#808080"


def test_a_picture_is_a_white_card_whatever_matplotlibrc_says(tmp_path: Path) -> None:
    files = []
    for place, own in enumerate([{}, {"axes.facecolor": "black", "font.size": 30.0}]):
        with matplotlib.rc_context(own):
            before = dict(matplotlib.rcParams)
            with picture(tmp_path / "new" / f"{place}.png", 4, 3) as figure:
                figure.add_subplot().plot([1, 2], [3, 4])
            assert dict(matplotlib.rcParams) == before
        files.append((tmp_path / "new" / f"{place}.png").read_bytes())
    assert files[0] == files[1]
    image = np.asarray(Image.open(tmp_path / "new" / "0.png").convert("RGB"))
    margin = 12
    for edge in (image[:margin], image[-margin:], image[:, :margin], image[:, -margin:]):
        assert (edge == 255).all()
    assert (image < 255).any()


def test_a_broken_block_leaves_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png", 4, 3):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_no_other_module_has_a_style() -> None:
    """No import of matplotlib, no colour and no colour map by name outside minimind.pictures."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for folder in ("minimind", "bench", "launch", "kernels/minimind_kernels")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.parent != ROOT / "minimind" / "pictures" and path != WEB_THEME
        for line, what in styles_of_its_own(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def styles_of_its_own(source: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    if not re.search(r"matplotlib|cycler|cmap|color|\bc=|[\"']#", source):
        return found  # most files are not parsed
    for node in ast.walk(ast.parse(source)):
        names: list[Any] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name.partition(".")[0] in ("matplotlib", "cycler") for name in names):
            found.append((node.lineno, "imports matplotlib"))
        if isinstance(node, ast.Constant) and re.fullmatch(r"#[0-9a-fA-F]{6}", str(node.value)):
            found.append((node.lineno, f"the colour {node.value}"))
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            is_color = keyword.arg and re.search(r"colors?$|^cmap$|^c$", keyword.arg)
            if is_color and isinstance(keyword.value, ast.Constant):
                found.append((node.lineno, f"{keyword.arg}={keyword.value.value!r}"))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import matplotlib.pyplot as plt",
        "def f():\n    from matplotlib.figure import Figure",
        "A = '#1f4e8c'",
        "axes.plot(x, color='red')",
        "axes.imshow(x, cmap='jet')",
    ],
)
def test_a_style_of_its_own_is_found(source: str) -> None:
    assert len(styles_of_its_own(source)) == 1
