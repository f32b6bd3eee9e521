"""Replaces `torch.cuda` for a GPU that is not there: it answers as the GPU would, and reports every
wait for the GPU."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from minimind.rehearsal.watch import Watch
from minimind.runtime.gpus import Gpu

_NOTHING = (
    *("_lazy_init", "init", "set_device", "empty_cache", "ipc_collect"),
    *("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"),
    *("manual_seed", "manual_seed_all", "seed", "seed_all"),
    *("set_rng_state", "set_rng_state_all"),
)
_ZERO = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")


class FakeCuda:
    """Stands for the GPUs of this process, each a `gpu` called `name`. `watch` gives the present
    Watch, to which waits and graphs are reported."""

    def __init__(self, name: str, gpu: Gpu, num_devices: int, watch: Callable[[], Watch]) -> None:
        self._name, self._gpu, self._num_devices = name, gpu, num_devices
        self._watch = watch
        self._is_capturing = False

    def install(self) -> None:
        """Replaces `torch.cuda` for the rest of the process."""
        cuda: Any = torch.cuda
        torch.version.cuda = torch.version.cuda or "13.0"
        for name in _NOTHING:
            setattr(cuda, name, _give(None))
        for name in _ZERO:
            setattr(cuda, name, _give(0))
        stream = _stream_class(self._wait)
        answers = {
            "is_available": _give(True),
            "is_initialized": _give(True),
            "is_bf16_supported": lambda *_, **__: self._gpu.capability >= (8, 0),
            "device_count": lambda: self._num_devices,
            "current_device": _give(0),
            "get_arch_list": list,
            "get_device_name": lambda *_: self._name,
            "get_device_capability": lambda *_: self._gpu.capability,
            "get_device_properties": lambda *_: self._properties,
            "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
            "memory_stats": lambda *_: collections.defaultdict(int),
            "mem_get_info": lambda *_: (self._memory_bytes, self._memory_bytes),
            "synchronize": lambda *_: self._wait("device.synchronize"),
            "Stream": stream,
            "Event": _event_class(self._wait),
            "current_stream": _give(stream()),
            "default_stream": _give(stream()),
            "stream": _entered,
            "device": _entered,
            "graph": self._capture,
            "CUDAGraph": lambda *_, **__: _Graph(self._watch),
            "graph_pool_handle": _give((0, 0)),
            "is_current_stream_capturing": lambda: self._is_capturing,
            "nvtx": SimpleNamespace(range_push=_give(None), range_pop=_give(None)),
        }
        for name, answer in answers.items():
            setattr(cuda, name, answer)
        torch.Tensor.record_stream = _give(None)  # type: ignore[method-assign]
        if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
            torch._C._cuda_getCurrentRawStream = _give(0)  # type: ignore[attr-defined]

    @property
    def _memory_bytes(self) -> int:
        return int(self._gpu.memory_gib * 2**30)

    @property
    def _properties(self) -> SimpleNamespace:
        major, minor = self._gpu.capability
        return SimpleNamespace(
            name=self._name,
            major=major,
            minor=minor,
            total_memory=self._memory_bytes,
            multi_processor_count=self._gpu.multiprocessors,
            gcnArchName="",
        )

    def _wait(self, kind: str) -> None:
        self._watch().wait(kind)

    @contextlib.contextmanager
    def _capture(self, graph: _Graph, *_: Any, **__: Any) -> Iterator[None]:
        self._is_capturing = True
        self._watch().begin_capture()
        try:
            yield
        finally:
            self._is_capturing = False
            graph.captured = self._watch().end_capture()


def _give(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@contextlib.contextmanager
def _entered(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _stream_class(waits: Callable[[str], None]) -> type:
    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.cuda_stream = self.stream_id = id(self)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            return

        wait_stream = wait_event = lambda self, other: None
        query = lambda self: True  # noqa: E731

        def record_event(self, event: Any = None) -> Any:
            return event or torch.cuda.Event()

        def synchronize(self) -> None:
            waits("stream.synchronize")

    return Stream


def _event_class(waits: Callable[[str], None]) -> type:
    class Event:
        def __init__(self, *_: Any, **__: Any) -> None:
            return

        record = wait = lambda self, stream=None: None
        query = lambda self: True  # noqa: E731

        def elapsed_time(self, _: Any) -> float:
            return 1.0

        def synchronize(self) -> None:
            waits("event.synchronize")

    return Event


class _Graph:
    """Stands for a CUDA graph: `replay` reports the captured work as one launch of the host."""

    def __init__(self, watch: Callable[[], Watch]) -> None:
        self._watch = watch
        self.captured: Any = None

    reset = register_generator_state = lambda self, *_: None

    def replay(self) -> None:
        self._watch().replay(self.captured)

    def pool(self) -> tuple[int, int]:
        return (0, 0)
