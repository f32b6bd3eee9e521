"""Counts the bytes of live tensors on a device, by holder, and their peak."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_BLOCK = 512
"""CUDA's allocator rounds every allocation up to a multiple of this many bytes."""


class LiveBytes:
    """Counts every storage on one type of device, from its first tensor until it is freed."""

    def __init__(self, device_type: str) -> None:
        self.peak: Counter[str] = Counter()
        """The bytes by holder at the moment when their sum was largest."""
        self._device_type = device_type
        self._live: dict[int, tuple[int, str]] = {}
        self._by_holder: Counter[str] = Counter()
        self._total = self._most = 0
        self._pool: Counter[str] = Counter()
        """The bytes by holder that the pool of captured CUDA graphs keeps."""
        self._hidden = 0
        self._lock = threading.RLock()  # a backward for a GPU runs in a thread of its own

    def see(self, tensor: Tensor, holder: str) -> None:
        """Counts the tensor's storage for `holder`, unless it is counted already."""
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        if self._hidden or device.type != self._device_type:
            return
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        if self._device_type == "cuda":
            num_bytes = -(-num_bytes // _BLOCK) * _BLOCK
        with self._lock:
            self._live[key] = num_bytes, holder
            self._by_holder[holder] += num_bytes
            self._total += num_bytes
            if self._total > self._most:
                self._most, self.peak = self._total, self._by_holder.copy()
        weakref.finalize(storage, self._forget, key).atexit = False

    def rename(self, tensor: Tensor, holder: str) -> None:
        """Changes the holder of a tensor that is counted already."""
        key = tensor.untyped_storage()._cdata
        with self._lock:
            if key in self._live:
                num_bytes, before = self._live[key]
                self._live[key] = num_bytes, holder
                self._by_holder[before] -= num_bytes
                self._by_holder[holder] += num_bytes

    def start(self) -> None:
        """Starts a new peak from the bytes live now."""
        with self._lock:
            self._most, self.peak = self._total, self._by_holder.copy()

    def begin_capture(self) -> None:
        """Starts to measure the peak during the capture of a CUDA graph, whose memory pool keeps
        that much for good."""
        with self._lock:
            self._by_holder -= self._pool
            self._total -= self._pool.total()
            self.start()

    def end_capture(self) -> None:
        """Adds to the live bytes what the graph's pool keeps beyond tensors still alive. All graphs
        share one pool, since they run one at a time, so the largest counts."""
        with self._lock:
            beside = self.peak - self._by_holder
            self._pool = max(self._pool, beside, key=Counter.total)
            self._by_holder += self._pool
            self._total += self._pool.total()
            self.start()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Counts no tensors made inside the block: they stand for values that generated code keeps
        in registers."""
        self._hidden += 1
        try:
            yield
        finally:
            self._hidden -= 1

    def _forget(self, key: int) -> None:
        with self._lock:
            num_bytes, holder = self._live.pop(key)
            self._by_holder[holder] -= num_bytes
            self._total -= num_bytes


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def num_bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def moved_bytes(tensors: Iterable[Tensor]) -> int:
    """Sums the bytes of tensors; of those in one storage, one counts."""
    return sum({t.untyped_storage()._cdata: num_bytes_of(t) for t in tensors}.values())
