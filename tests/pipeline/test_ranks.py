"""Pipelines whose trainings have two ranks, each in a process of its own, as a launcher starts
them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_recipes import STEPS, Write

from minimind.cli.pipeline import main


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
@pytest.mark.usefixtures("no_launcher", "unrehearsed")
def test_a_pipeline_trains_on_two_ranks(
    launcher: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = write([STEPS[1]], ranks=2, launcher=launcher)
    assert main([str(recipe), "--output_dir", str(tmp_path / "made")]) == 0
    shards = (tmp_path / "made" / "text" / "checkpoints" / "latest" / "engine").rglob("*optim*.pt")
    assert len(list(shards)) == 2
    # Another number of ranks makes nothing again.
    assert main([str(recipe), "--output_dir", str(tmp_path / "made"), "--ranks", "1",
                 "--launcher", "python"]) == 0  # fmt: skip
    assert len([path for path in (tmp_path / "made").glob("text-*") if path.is_dir()]) == 1
