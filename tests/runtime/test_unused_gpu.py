"""A GPU that PyTorch cannot use is said once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from minimind.runtime import devices
from minimind.runtime.devices import find_device

pytestmark = pytest.mark.usefixtures("own_precision")


@pytest.fixture
def unused_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """What the driver says of a GPU that PyTorch does not see."""
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(devices, "_DRIVERS_GPUS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices._say_why_no_gpu.cache_clear()
    yield tmp_path
    devices._say_why_no_gpu.cache_clear()


def test_a_gpu_that_pytorch_cannot_use_is_said_once(
    unused_gpu: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n…")

    monkeypatch.setattr(torch.cuda, "init", fail)
    assert [find_device().kind for _ in range(2)] == ["cpu", "cpu"]
    (message,) = caplog.messages
    assert "cannot use it: The NVIDIA driver on your system is too old (found" in message
    assert message.endswith("The CPU is used")


def test_a_pytorch_without_cuda_says_so(
    unused_gpu: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(torch.version, "cuda", None)
    find_device()
    assert "it was built without CUDA: install the build for your driver" in caplog.text


@pytest.mark.parametrize("reason", ["hidden", "hidden too", "no GPU", "no driver"])
def test_nothing_is_said_of_a_gpu_that_is_not_there(
    unused_gpu: Path,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    if reason.startswith("hidden"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "" if reason == "hidden" else "-1")
    if reason == "no GPU":
        next(unused_gpu.iterdir()).rmdir()
    if reason == "no driver":
        monkeypatch.setattr(devices, "_DRIVERS_GPUS", unused_gpu / "none")
    assert find_device().kind == "cpu"
    assert caplog.messages == []
