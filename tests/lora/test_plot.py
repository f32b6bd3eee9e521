"""The picture of an adapter."""

from __future__ import annotations

from pathlib import Path

from small_adapters import named, ranks_of
from small_models import random_model, small_config

from minimind.lora.model import add_adapters, collect_adapter
from minimind.lora.plot import plot_adapter


def test_the_picture_is_written_whole(tmp_path: Path):
    model = random_model(small_config())
    ranks = ranks_of(model.config, {"q_proj": 4, "up_proj": 2})
    add_adapters(model, ranks, dict.fromkeys(ranks, 8.0), seed=0)
    plot_adapter(collect_adapter(model, named(model)), tmp_path / "adapter.png")
    assert (tmp_path / "adapter.png").read_bytes().startswith(b"\x89PNG")
    plot_adapter({}, tmp_path / "none.png")  # logged, and no more
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".png"]
