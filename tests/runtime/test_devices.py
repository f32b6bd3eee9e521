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
from minimind.runtime.devices import Device, check_kernels, cpu_has_bf16, find_device
from minimind.runtime.gpus import GPUS

pytestmark = pytest.mark.usefixtures("own_precision")


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


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Changes what PyTorch says of GPUs that need not be there."""
    gpu = SimpleNamespace(
        name="some GPU", count=2, capability=(9, 0), architectures=["sm_75", "sm_80", "sm_90"]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpu.count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: gpu.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpu.capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: gpu.architectures)
    memory = SimpleNamespace(total_memory=1 << 34)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: memory)
    monkeypatch.setattr(torch.version, "hip", None)
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return gpu


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
        ("Tesla T4", (7, 5), False, 65e12),
        ("NVIDIA H100 PCIe", (9, 0), True, 756e12),
        ("NVIDIA A10G", (8, 6), True, None),
        ("NVIDIA RTX A1000", (8, 6), True, None),
        ("NVIDIA L40", (8, 9), True, None),
        ("NVIDIA H200 MIG 1g.18gb", (9, 0), True, None),
    ],
)
def test_a_gpu_by_its_name(
    two_gpus: SimpleNamespace,
    name: str,
    capability: tuple[int, int],
    bf16: bool,
    peak: float | None,
):
    two_gpus.name, two_gpus.capability = name, capability
    device = find_device(1)
    assert device.torch_device == torch.device("cuda", 1)
    assert (device.kind, device.name) == ("gpu", name)
    assert (device.supports_bf16, device.peak_flops) == (bf16, peak)
    assert device.precision == ("bf16" if bf16 else "fp16")
    assert bool(device.why_not_bf16) is not bf16


def test_more_ranks_than_gpus(two_gpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    assert [find_device(rank).torch_device.index for rank in (0, 1)] == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    message = r"rank 2 .* sees 2 [(]CUDA_VISIBLE_DEVICES=4,5[)].*--num_gpus 2.*--nproc_per_node 2"
    with pytest.raises(ConfigError, match=message):
        find_device(2)


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "LOCAL_SIZE", ""])
def test_one_gpu_that_every_rank_sees(
    two_gpus: SimpleNamespace, launcher: str, monkeypatch: pytest.MonkeyPatch
):
    """A scheduler gives each rank its own; torchrun and deepspeed show all of them the same."""
    two_gpus.count = 1
    if not launcher:
        assert find_device(3).torch_device.index == 0
        return
    monkeypatch.setenv(launcher, "2")
    with pytest.raises(ConfigError, match="rank 1 of this machine has no GPU: PyTorch sees 1"):
        find_device(1)


@pytest.mark.parametrize(
    ("capability", "architectures", "has"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((7, 5), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_90", "sm_100", "sm_120"], True),
        ((12, 0), ["sm_100"], False),
        ((7, 5), ["compute_90"], False),
    ],
)
def test_code_for_a_gpu(
    two_gpus: SimpleNamespace, capability: tuple[int, int], architectures: list[str], has: bool
):
    assert devices.has_code_for(capability, architectures) is has
    two_gpus.capability, two_gpus.architectures = capability, architectures
    if has:
        assert find_device().kind == "gpu"
    else:
        with pytest.raises(ConfigError, match=r"has no code for some GPU .*pytorch[.]org"):
            find_device()


def test_peaks_are_of_dense_products():
    assert all(5e13 < gpu.flops < 3e15 for gpu in GPUS.values())


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


@pytest.mark.parametrize(
    ("given", "release", "cuda", "expected"),
    [
        ({}, "6.8.0", "13.0", "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "6.8.0", "13.0", "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "6.8.0", "13.0", None),
        ({}, "5.15.0-microsoft-standard-WSL2", "13.0", None),
        ({}, "6.8.0", None, None),
    ],
)
def test_blocks_of_gpu_memory_grow_where_nobody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    release: str,
    cuda: str | None,
    expected: str | None,
):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    find_device()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == given.get("PYTORCH_ALLOC_CONF")
    devices._prefer_expandable_segments()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected
