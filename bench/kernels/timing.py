"""Times kernels on a GPU by replayed CUDA graphs with a cold L2 cache, beside the ceilings of the
same session."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from minimind_kernels.op import BOTH, Case, Function, Rival
from torch import Tensor
from torch._functorch import config as functorch_config

from bench.kernels.rivals import Exact, load_rival, rival_inputs

logger = logging.getLogger(__name__)

Call = tuple[Function, tuple[Tensor, ...]]
"""Holds an operation and its inputs."""

_WARM_UP_MS, _MEASURE_MS = 40.0, 200.0
_COLD_BYTES = 4
"""Input sets take at least this many times the L2 cache together."""
_MAX_SETS = 16
TOGETHER = "both"
"""The direction of a row whose forward and backward pass are timed as one."""
_COMPILED_PRESETS = ("minimind2-small", "minimind3")
"""Where torch.compile is a contender: compiling takes longer than all the measuring."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Describes what a case is timed with."""

    name: str
    choose: Callable[[Case], Call]
    """Gives the function and its inputs."""
    rival: Rival | None = None


def measure_case(
    build: Callable[[], Case], ceilings: Mapping[str, float], *, compiled: bool
) -> Iterator[dict[str, Any]]:
    """Yields the rows of one case, forward and backward, for each contender: with `compiled`
    torch.compile's alone, else all but these. A contender's results are compared with the exact
    ones before it is timed. A contender that breaks has a row that says how."""
    sets = build_sets(build)
    exact: Exact | None = None
    for contender in contenders(sets[0], compiled=compiled):
        try:
            exact = exact or Exact(sets[0])
            with own_stream():
                yield from list(_measure_contender(contender, sets, exact, ceilings))
        except Exception as error:  # Each library raises its own errors.
            text = f"{type(error).__name__}: {error}"
            yield {
                "contender": contender.name, "direction": TOGETHER, "median_us": None,
                "error": text[:2000],
            }  # fmt: skip


@contextlib.contextmanager
def own_stream() -> Iterator[None]:
    """Runs the block on a new stream, so that a CUDA graph can record it, its backward included:
    autograd runs a backward on the stream of its forward, and the default stream cannot be
    recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _measure_contender(
    contender: Contender, sets: Sequence[Case], exact: Exact, ceilings: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    first, rival = sets[0], contender.rival
    errors = exact.errors(contender.choose(first)[0], rival)
    waits = rival is not None and rival.waits
    ways = (*BOTH, TOGETHER) if first.uniform_grad else BOTH
    if rival is not None and rival.backward_once:
        ways = ("forward", TOGETHER)
    for direction, calls in directions(first, [contender.choose(case) for case in sets], ways):
        times = time_calls(calls, in_a_graph=not waits)
        parts = BOTH if direction == TOGETHER else (direction,)
        moved = sum(getattr(first, f"{part}_bytes") for part in parts)
        flops = sum(getattr(first, f"{part}_flops") for part in parts)
        per_s = 1e6 / times["median_us"]
        floor_us = max(
            moved / ceilings["copy_bytes_per_s"], flops / ceilings["product_flops_per_s"]
        ) * 1e6  # fmt: skip
        yield {
            "contender": contender.name,
            "direction": direction,
            **times,
            "relative_error": max(errors.of(direction)),
            "eager_relative_error": max(exact.plain.of(direction)),
            "differs": exact.differs(errors, direction),
            "host_us": _host_us(calls[0]),
            "bytes_per_s": moved * per_s,
            "flops_per_s": flops * per_s,
            "floor_us": floor_us,
            "share_of_ceiling": floor_us / times["median_us"],
        }


def build_sets(build: Callable[[], Case]) -> list[Case]:
    """Builds enough sets of inputs to leave the L2 cache cold."""
    first = build()
    set_bytes = max(first.forward_bytes + first.backward_bytes, 1)
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    num_sets = min(max(_COLD_BYTES * l2_bytes // set_bytes + 1, 2), _MAX_SETS)
    if first.forward_flops:
        num_sets = 2  # Bound by products; the plain form keeps its logits for each set.
    return [first, *(build() for _ in range(num_sets - 1))]


def contenders(case: Case, *, compiled: bool) -> Iterator[Contender]:
    """Yields our operation, the plain form, and other libraries' where they are installed; or the
    plain form under torch.compile."""
    if compiled:
        if case.sizes.preset in _COMPILED_PRESETS:
            # The backward is called repeatedly on the tensors that one forward saved.
            functorch_config.donated_buffer = False
            function = torch.compile(_plain(case), dynamic=False)
            yield Contender("torch.compile", lambda c: (function, c.inputs))
        return
    yield Contender("minimind", lambda c: (c.ours, c.inputs))
    yield Contender("eager", lambda c: (_plain(c), c.inputs))
    for index, rival in enumerate(case.rivals):
        if (function := load_rival(rival)) is not None:
            yield Contender(rival.library, partial(_choose_rival, index, function), rival)


def _choose_rival(index: int, function: Callable[..., Any], case: Case) -> Call:
    """Gives the rival's call in a case, since each case has its own labels and positions."""
    rival = case.rivals[index]
    return rival.call(function), rival_inputs(rival, case)


def _plain(case: Case) -> Function:
    return case.quickest or case.plain


def directions(
    case: Case, sets: Sequence[Call], ways: Sequence[str] = BOTH
) -> Iterator[tuple[str, list[Callable[[], Any]]]]:
    """Gives calls of the forward pass, of the backward pass, or of both together, one of each for
    each set of inputs."""

    def build_backward(
        function: Function, inputs: Sequence[Tensor], keep: bool
    ) -> Callable[[], Any]:
        outputs = function(*inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        if case.uniform_grad:
            outputs = tuple(o.sum() for o in outputs)
        upstream = [torch.ones_like(o) for o in outputs]
        leaves = [t for t in inputs if t.requires_grad]
        return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=keep)

    def build(way: str, function: Function, inputs: Sequence[Tensor]) -> Callable[[], Any]:
        if way == "forward":
            return lambda: function(*inputs)
        if way == TOGETHER:
            return lambda: build_backward(function, inputs, keep=False)()
        return build_backward(function, inputs, keep=True)

    for way in ways:
        yield way, [build(way, *call) for call in sets]


def time_calls(calls: Sequence[Callable[[], Any]], *, in_a_graph: bool = True) -> dict[str, Any]:
    """Gives p20, p50 and p80 of one call, in µs, over replays of a graph that makes each call once;
    or over plain rounds of calls, host time included, where they wait for the GPU themselves. It
    runs within `own_stream`, as the calls did when they were made."""

    def call_all() -> None:
        for call in calls:
            call()

    replay = call_all
    if in_a_graph:
        try:
            replay = _record(calls)
        except RuntimeError as error:
            logger.warning("not recorded, so timed with the host: %s", str(error).splitlines()[0])
            in_a_graph = False

    def replay_ms() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    spent, times = 0.0, []
    while spent < _WARM_UP_MS:
        spent += max(replay_ms(), 1e-3)
    spent = 0.0
    while spent < _MEASURE_MS or len(times) < 10:
        times.append(replay_ms())
        spent += max(times[-1], 1e-3)
    tenths = statistics.quantiles([t * 1e3 / len(calls) for t in times], n=10, method="inclusive")
    return {
        "p20_us": tenths[1], "median_us": tenths[4], "p80_us": tenths[7], "in_a_graph": in_a_graph
    }  # fmt: skip


def _record(calls: Sequence[Callable[[], Any]]) -> Callable[[], None]:
    """Records a CUDA graph of all the calls; gives the function that replays it."""
    for call in calls:
        call()
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for call in calls:
            call()
    return graph.replay


def _host_us(call: Callable[[], Any]) -> float:
    """Gives the host's time for one call, launches included, while the GPU is behind."""
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)
