"""Runs reductions beside the backward, so that one stream waits for them and not the host.

With `overlap_comm` DeepSpeed 0.19.8 reduces gradients on a second stream, and synchronises the
whole device after each backward, before it frees them. It is enough that the computation's stream
waits for the second one: freed memory is reused on the first stream, or on the second after it has
waited for the first, as it does before each bucket.
"""

from __future__ import annotations

import sys
from typing import Any

from minimind.engine.replaced_names import replaced_names

_EPILOGUE = "independent_gradient_partition_epilogue"


class _StreamsWait:
    """Stands for DeepSpeed's accelerator: where the host would wait for both streams, the
    computation's stream waits for that of the reductions."""

    def __init__(self, accelerator: Any, reductions: Any) -> None:
        self._accelerator, self._reductions = accelerator, reductions
        self._computation = accelerator.current_stream()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def synchronize(self, *_: Any) -> None:
        self._computation.wait_stream(self._reductions)


def wait_between_streams(optimizer: Any) -> None:
    """Has DeepSpeed's optimizer of stages 1 and 2 end each backward in this way. An optimizer
    without overlap, with states on the CPU, or with parts of other names is left unchanged."""
    module: Any = sys.modules[type(optimizer).__module__]
    streams = (
        getattr(optimizer, "overlap_comm", False),
        getattr(optimizer, "reduction_stream", None),
    )
    is_known = hasattr(optimizer, _EPILOGUE) and hasattr(module, "get_accelerator")
    if not all(streams) or not is_known or getattr(optimizer, "cpu_offload", True):
        return
    epilogue = getattr(optimizer, _EPILOGUE)

    def ending() -> None:
        accelerator = _StreamsWait(module.get_accelerator(), optimizer.reduction_stream)
        with replaced_names(module, {"get_accelerator": lambda: accelerator}):
            epilogue()

    setattr(optimizer, _EPILOGUE, ending)
