"""Makes a stream, instead of the host, wait for the gradient reductions that run beside the
backward.

With `overlap_comm` DeepSpeed 0.19.8 reduces gradients on a second stream, and synchronises the
whole device after each backward before it frees them. It is enough that the computing stream waits
for the second one: freed memory is reused on the computing stream, or on the second stream after
the second stream has waited for the computing stream, as it does before each bucket.
"""

from __future__ import annotations

import sys
from typing import Any

from minimind.engine.replaced_names import replaced_names

_EPILOGUE = "independent_gradient_partition_epilogue"


class _StreamsWait:
    """Stands in for DeepSpeed's accelerator: `synchronize` makes the computing stream wait for the
    reduction stream, instead of the host for both."""

    def __init__(self, accelerator: Any, reductions: Any) -> None:
        self._accelerator, self._reductions = accelerator, reductions
        self._computation = accelerator.current_stream()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def synchronize(self, *_: Any) -> None:
        self._computation.wait_stream(self._reductions)


def wait_between_streams(optimizer: Any) -> None:
    """Makes DeepSpeed's optimizer of stages 1 and 2 end each backward with a wait between streams.
    An optimizer without overlap, with states on the CPU, or with other internal names is left
    unchanged."""
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
