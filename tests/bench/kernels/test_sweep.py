"""bench.kernels.sweep: what is near a tile, what a tried one replaces, the run without a GPU."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from minimind_kernels import OPS
from minimind_kernels.triton_impl import config
from minimind_kernels.triton_impl.config import ProductTile, Tile, Tiles

from bench.kernels import sweep

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreting process compiles nothing"
)
SM_90 = config.Device("sm_90", 132)


def test_every_entry_of_the_table_can_be_tried() -> None:
    wanted = {name for op in OPS.values() for name in op.tiles}
    entries = sweep.find_entries()
    assert set(entries) == wanted
    for path in Path(config.__file__).parent.glob("*.py"):
        assert set(re.findall(r'Tiles\(\s*"(\w+)"', path.read_text())) <= wanted
    assert (entries["softmax"].kernel, entries["softmax"].direction) == (
        "cross_entropy.loss",
        "forward",
    )
    assert [sizes.preset for sizes in entries["norm_rope_backward"].sizes] == [
        "minimind3",
        "minimind3-moe",
    ]


def test_one_number_changes_at_a_time_and_stays_in_bounds() -> None:
    tile = ProductTile(256, 64, 32, num_warps=8, stages=2)
    assert set(sweep.neighbours(tile)) == {
        ProductTile(128, 64, 32, num_warps=8, stages=2),
        ProductTile(256, 32, 32, num_warps=8, stages=2),
        ProductTile(256, 128, 32, num_warps=8, stages=2),
        ProductTile(256, 64, 64, num_warps=8, stages=2),
        ProductTile(256, 64, 32, num_warps=4, stages=2),
        ProductTile(256, 64, 32, num_warps=16, stages=2),
        ProductTile(256, 64, 32, num_warps=8, stages=3),
    }


def test_a_tried_tile_replaces_its_own_entry_alone() -> None:
    tried = Tile(512, num_warps=2)
    device = sweep.TriedDevice("sm_90", 132, entry="mine", tried=tried)
    mine, other = (Tiles(name, Tile(2048, num_warps=4)) for name in ("mine", "other"))
    assert device.tile(mine) == tried
    assert device.tile(other) == SM_90.tile(other)


def test_descent_ends_at_the_quickest_tile_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On times made up: quickest at 512 elements and two warps, and 256 elements do not fit."""

    def time_presets(
        entry: sweep.Entry, device: sweep.TriedDevice, tokens: int
    ) -> dict[str, float]:
        tile = device.tile(entry.tiles)
        if tile.elements < 512:
            return {}
        return {"minimind2": tile.elements / 512 + abs(tile.num_warps - 2) + tile.programs / 99}

    monkeypatch.setattr(sweep, "_time_presets", time_presets)
    options = sweep.build_parser().parse_args(["--json", str(tmp_path / "sweep.json")])
    (entry,) = sweep._choose("swiglu_forward")
    rows = sweep.descend(entry, SM_90, options, end=float("inf"))
    (best,) = (row for row in rows if row["is_best"])
    assert best["tile"] == repr(Tile(elements=512, num_warps=2, programs=1))
    assert [row["is_entry"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert "swiglu_forward" in sweep.format_rows(rows)


def test_candidates_of_an_entry_are_tried_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ from it in more than one number, and no step towards them is quicker."""
    far = Tile(512, num_warps=1)
    tiles = Tiles("mine", Tile(2048, num_warps=4), candidates=(far,))

    def time_presets(
        entry: sweep.Entry, device: sweep.TriedDevice, tokens: int
    ) -> dict[str, float]:
        times = {tiles.on("sm_90"): 1.0, far: 0.5}
        return {"minimind2": times.get(device.tile(tiles), 2.0)}

    monkeypatch.setattr(sweep, "_time_presets", time_presets)
    options = sweep.build_parser().parse_args(["--json", str(tmp_path / "sweep.json")])
    entry = sweep.Entry(tiles, "kernel", "forward", OPS["swiglu"])
    rows = sweep.descend(entry, SM_90, options, end=float("inf"))
    assert [row["tile"] for row in rows[:2]] == [repr(tiles.on("sm_90")), repr(far)]
    assert [row["tile"] for row in rows if row["is_best"]] == [repr(far)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_a_gpu_it_compiles(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    assert sweep.main(["--json", str(path), "--kernels", "swiglu_forward"]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert rows[0]["is_entry"]
    assert all(row["median_us"] is None and row["registers"] > 0 for row in rows)


def test_an_unknown_entry_is_refused(tmp_path: Path) -> None:
    arguments = ["--json", str(tmp_path / "sweep.json"), "--kernels", "softmin"]
    assert sweep.main(arguments) == 2
