"""Peak memory on a CPU against allocations whose peak is known."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from minimind.runtime.memory import (
    PeakMemory,
    freeze_objects,
    live_tensor_bytes,
    peak_of_allocations,
)

MIB = 1 << 20
CPU = torch.device("cpu")


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def test_live_bytes_count_each_storage_once():
    before = live_tensor_bytes()
    whole = block(8)
    views = [whole[:100], whole.view(-1, 2), whole.detach()]
    assert live_tensor_bytes() - before == 8 * MIB
    other = block(3)
    assert live_tensor_bytes() - before == 11 * MIB
    del whole, views, other
    assert live_tensor_bytes() == before


@pytest.mark.filterwarnings("error")
def test_fake_tensors_have_no_bytes():
    before = live_tensor_bytes()
    with FakeTensorMode():
        fake = block(8)
    assert live_tensor_bytes() == before
    assert fake.device == CPU


def test_what_a_run_froze_is_alive_too():
    before = live_tensor_bytes()
    kept = block(8)
    try:
        for _ in range(2):
            freeze_objects()
            assert not any(thing is kept for thing in gc.get_objects())
            assert live_tensor_bytes() - before == 8 * MIB
        del kept
        assert live_tensor_bytes() == before
    finally:
        gc.unfreeze()


def test_the_peak_is_that_of_what_lives_at_once():
    memory = PeakMemory(CPU)
    assert memory.peak_bytes == 0
    kept = block(16)
    start = live_tensor_bytes()
    with memory.measured():
        first = block(10)
        second = block(20)
        del first
        third = block(5)
        del second, third
        last = block(12)
        del last
    # 16 before, then at most 10 + 20 at once.
    assert memory.peak_bytes - start == pytest.approx(30 * MIB, rel=0.02)
    del kept


def test_the_peak_of_a_training_step():
    """A layer's activations live until its backward has used them: here as many as are known."""
    memory = PeakMemory(CPU)
    x = torch.randn(512, 256, requires_grad=True)
    start = live_tensor_bytes()
    size = x.numel() * 4
    with memory.measured():
        y = x
        for _ in range(8):
            y = y.exp()  # keeps its output
        y.sum().backward()
    # 8 outputs, the gradient going back and the one being made.
    held = memory.peak_bytes - start
    assert 8 * size <= held <= 12 * size


def test_the_largest_of_several_measurements_stays():
    memory = PeakMemory(CPU)
    for mib in (4, 32, 8):
        with memory.measured():
            block(mib)
    start = live_tensor_bytes()
    assert memory.peak_bytes - start == pytest.approx(32 * MIB, rel=0.05)


def test_what_nobody_saw_freed_does_not_add_up():
    """As Gloo's threads do after a collective."""
    bucket, copy = (0x1000, 25), (0x2000, 20)
    freed = [bucket, copy, (0x2000, -20), (0x1000, -25)]
    unseen = [bucket, copy, (0x1000, -25)]
    assert peak_of_allocations(freed * 8) == 45
    assert peak_of_allocations(unseen * 8) == 45
    assert peak_of_allocations([(0x3000, -5), bucket]) == 20
    overlapping = [(10, 10), (30, 10), (50, 10), (15, 20), (60, 1), (15, -20), (60, -1), (50, -10)]
    assert peak_of_allocations(overlapping) == 31
    assert peak_of_allocations([*overlapping, (0, 30)]) == 31


def test_resident_memory_is_what_the_system_counts():
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in status if line.startswith("VmRSS:"))
    counted = int(line.split()[1]) * 1024
    assert PeakMemory(CPU).resident_bytes == pytest.approx(counted, abs=16 * MIB)


@pytest.mark.gpu
def test_the_peak_on_a_gpu():
    device = torch.device("cuda")
    memory = PeakMemory(device)
    start = memory.peak_bytes
    with memory.measured():
        kept = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
        del kept
    assert memory.peak_bytes - start >= 64 * MIB
