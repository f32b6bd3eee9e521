"""Runs that the machine or the flags leave no room for end with a sentence."""

from __future__ import annotations

import pytest
from training_runs import Train


@pytest.mark.faults("--epochs so small that there is no step", "refused")
def test_no_step(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", "1e-300") == 2
    assert "epochs is 1e-300, too few for a single step" in capsys.readouterr().err


@pytest.mark.faults("an output folder of 300 characters", "refused before the run")
def test_a_long_path(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--output_dir", "x" * 300) == 2
    assert "longer than 255 bytes" in capsys.readouterr().err


@pytest.mark.faults("more memory than there is (the allocator fails)", "the knobs, with the peak")
def test_too_little_memory(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes")

    from minimind.run import run as running

    monkeypatch.setattr(running, "build_trained", refuse)
    assert train("--max_steps", "2") == 1
    said = capsys.readouterr().err
    assert "the memory is full" in said
    assert "A step of this run holds 0." in said
    assert "micro_batch_size" in said
    assert "Traceback" not in said
