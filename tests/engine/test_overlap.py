"""Reductions beside the backward: streams wait for each other, and the host for none of them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from minimind.engine.overlap import wait_between_streams

said: list[str] = []


class Stream:
    """Stands for one of CUDA's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        said.append(f"{self.name} waits for {other.name}")


class Accelerator:
    """Stands for DeepSpeed's."""

    def __init__(self) -> None:
        self.stream = Stream("computation")

    def current_stream(self) -> Stream:
        return self.stream

    def synchronize(self) -> None:
        said.append("the host waits")


ACCELERATOR = Accelerator()


def get_accelerator() -> Any:
    return ACCELERATOR


class Optimizer:
    """Ends a backward as DeepSpeed's optimizer does."""

    def __init__(self, overlap_comm: bool = True, cpu_offload: bool = False) -> None:
        self.overlap_comm, self.cpu_offload = overlap_comm, cpu_offload
        self.reduction_stream = Stream("reductions")

    def independent_gradient_partition_epilogue(self) -> None:
        ACCELERATOR.stream = self.reduction_stream
        get_accelerator().synchronize()  # as within a bucket
        ACCELERATOR.stream = Stream("computation")
        get_accelerator().synchronize()
        if self.reduction_stream.name == "broken":
            raise RuntimeError("broken")


@pytest.fixture(autouse=True)
def _anew() -> None:
    said.clear()
    ACCELERATOR.stream = Stream("computation")


def test_the_computation_waits_for_the_reductions_and_the_host_does_not():
    optimizer = Optimizer()
    wait_between_streams(optimizer)
    for _ in range(2):
        optimizer.independent_gradient_partition_epilogue()
    assert said == ["computation waits for reductions"] * 4
    assert sys.modules[__name__].get_accelerator() is ACCELERATOR
    optimizer.reduction_stream.name = "broken"
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.independent_gradient_partition_epilogue()
    assert sys.modules[__name__].get_accelerator() is ACCELERATOR


@pytest.mark.parametrize("options", [{"overlap_comm": False}, {"cpu_offload": True}])
def test_others_are_left_as_they_are(options: dict[str, bool]):
    optimizer = Optimizer(**options)
    wait_between_streams(optimizer)
    assert "independent_gradient_partition_epilogue" not in vars(optimizer)
    wait_between_streams(object())
