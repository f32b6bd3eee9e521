"""What the console says of a step."""

import logging

import pytest

from minimind.engine.progress import Progress
from minimind.types import StepStats


@pytest.mark.parametrize("peak_bytes", [0, 3 << 28])
def test_memory_is_told_once_its_peak_is_known(
    peak_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stats = StepStats(
        step=1, loss=2.0, grad_norm=1.0, learning_rate=1e-3, tokens=8, tokens_per_s=1.0,
        peak_bytes=peak_bytes, resident_bytes=1 << 32,
    )  # fmt: skip
    progress = Progress(is_main=True, first_step=0, total_steps=9, log_every=1)

    progress.update(stats, 1.0)
    progress.close()

    assert ("mem 0.75 GiB" in caplog.text) == bool(peak_bytes)
    assert "GiB" in caplog.text or not peak_bytes
    assert "4.00 GiB" not in caplog.text
