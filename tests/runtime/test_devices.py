"""Devices: what they are called, what they can do."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from minimind_kernels import backend

from minimind.errors import ConfigError
from minimind.runtime import devices
from minimind.runtime.devices import (
    BF16_PEAK_FLOPS,
    Device,
    check_kernels,
    cpu_has_bf16,
    find_device,
)


@pytest.fixture(autouse=True)
def _auto_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIMIND_PRECISION", raising=False)


def test_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = find_device(3)
    assert (device.kind, device.torch_device.type) == ("cpu", "cpu")
    assert device.name
    assert device.peak_flops is None
    assert device.supports_bf16 == cpu_has_bf16()
    assert device.precision == ("bf16" if device.supports_bf16 else "fp32")
    assert bool(device.why_not_bf16) != device.supports_bf16


@pytest.mark.parametrize("has", [False, True])
def test_a_variable_says_what_auto_means(monkeypatch: pytest.MonkeyPatch, has: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has)
    for value, expected in (("bf16", "bf16"), ("fp32", "fp32"), ("", find_device().precision)):
        monkeypatch.setenv("MINIMIND_PRECISION", value)
        device = find_device()
        assert (device.precision, device.supports_bf16) == (expected, has)
        assert bool(device.why_not_bf16) == (expected != "bf16")
    monkeypatch.setenv("MINIMIND_PRECISION", "fp8")
    with pytest.raises(ConfigError, match=r"MINIMIND_PRECISION='fp8' is not known; use auto, bf16"):
        find_device()


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 sse", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 sve", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("flags\t\t: fpu notbf16", False),
        ("", False),
    ],
)
def test_bf16_is_read_off_the_cpus_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, has: bool
):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: Some CPU\n{flags}\n")
    real = open
    monkeypatch.setattr(
        devices,
        "open",
        lambda path, **options: real(file if path == "/proc/cpuinfo" else path, **options),
        raising=False,
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cpu_has_bf16() is has
    assert find_device().name == "Some CPU"
    assert ("no bf16" in find_device().why_not_bf16) is not has


@pytest.mark.parametrize(
    ("name", "capability", "bf16", "peak"),
    [
        ("NVIDIA H200", (9, 0), True, 989.5e12),
        ("NVIDIA H200 NVL", (9, 0), True, 835.5e12),
        ("NVIDIA GH200 480GB", (9, 0), True, 989.5e12),
        ("NVIDIA H100 NVL", (9, 0), True, 835.5e12),
        ("NVIDIA H100 80GB HBM3", (9, 0), True, 989.5e12),
        ("NVIDIA A100-SXM4-80GB", (8, 0), True, 312e12),
        ("NVIDIA L40S", (8, 9), True, 362e12),
        ("NVIDIA L4", (8, 9), True, 121e12),
        ("NVIDIA A10", (8, 6), True, 125e12),
        ("NVIDIA GeForce RTX 3090", (8, 6), True, 71e12),
        ("Tesla T4", (7, 5), False, None),
        ("NVIDIA H100 PCIe", (9, 0), True, 756e12),
        ("NVIDIA A10G", (8, 6), True, None),
        ("NVIDIA RTX A1000", (8, 6), True, None),
        ("NVIDIA L40", (8, 9), True, None),
        ("NVIDIA H200 MIG 1g.18gb", (9, 0), True, None),
    ],
)
def test_a_gpu_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capability: tuple[int, int],
    bf16: bool,
    peak: float | None,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    memory = SimpleNamespace(total_memory=1 << 34)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: memory)
    monkeypatch.setattr(torch.version, "hip", None)
    device = find_device(3)
    assert device.torch_device == torch.device("cuda", 1)
    assert (device.kind, device.name) == ("gpu", name)
    assert (device.supports_bf16, device.peak_flops) == (bf16, peak)
    assert device.precision == ("bf16" if bf16 else "fp16")
    assert bool(device.why_not_bf16) is not bf16


def test_peaks_are_of_dense_products():
    assert all(5e13 < peak < 3e15 for peak in BF16_PEAK_FLOPS.values())


def test_threads_are_shared_unless_the_user_says(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for ranks in (1, 2, 3, 16):
        devices.limit_threads(ranks)
    assert asked == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    devices.limit_threads(2)
    assert len(asked) == 4


def test_a_device_is_a_value():
    cpu = Device(torch.device("cpu"), "a", True, "bf16", "", None)
    assert cpu == Device(torch.device("cpu"), "a", True, "bf16", "", None)
    assert cpu.kind == "cpu"


@pytest.mark.parametrize("error", [ValueError("no such value"), RuntimeError("no such value")])
def test_kernels_that_cannot_run_are_the_users_to_mend(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def refuse(device: torch.device) -> None:
        raise error

    check_kernels(Device(torch.device("cpu"), "some CPU", True, "bf16", "", None))
    monkeypatch.setattr(backend, "check_settings", refuse)
    with pytest.raises(ConfigError, match="no such value"):
        check_kernels(Device(torch.device("cpu"), "some CPU", True, "bf16", "", None))
