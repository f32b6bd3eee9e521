"""Measures kernels beside their floors, the lower bounds of their time: `python -m bench.kernels
--json FILE`.

On a GPU each operation is timed at the sizes of the presets, beside eager PyTorch, torch.compile
and the functions of other libraries that are installed (`pip install 'minimind[rivals]'`). Each
result is compared with the exact one first: `error` is the largest error of any tensor, relative to
that tensor's norm; `of eager's` is its ratio to the error of eager PyTorch in the same dtype;
DIFFERS marks an error that is larger than operations of this project may have. Without a GPU it
counts our launches, the operators that would make the host wait, and the bytes that an operation
must move; times read "not measured".

`--compile-report` compiles every kernel for GPUs that are not here, checks registers and shared
memory, and compares what its loops wait for with bench/kernels/compiled.csv.
`--host` measures what an operation costs the host, launched on a stub of the driver (host.py).

Exit status: 0 done, 1 a kernel of ours breaks, is over its budget or worse than the
table, 2 bad usage.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from minimind_kernels.op import OPS, PRESETS, Case, Inputs, Sizes, build_cases
from torch.utils._python_dispatch import TorchDispatchMode

from bench import harness
from bench.harness import NOT_MEASURED, shown
from bench.kernels import H200_BYTES_PER_S, H200_FLOPS_PER_S, compile_report, compiled_table, host
from bench.kernels.rivals import skipped_rivals
from bench.kernels.targets import TARGETS
from bench.program import NUMBER, Options, run_program
from bench.turns import pass_turn
from minimind.runtime.devices import find_device

logger = logging.getLogger("bench.kernels")

WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "_to_copy.cpu")
"""Operators that make the host wait for a GPU."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), run, argv)


def run(options: argparse.Namespace) -> int:
    if options.compile_report:
        return report_compilation(options)
    if options.host:
        return report_host(options)
    machine = harness.describe_machine(find_device())
    arguments = {"tokens": options.tokens, "dtype": options.dtype}
    rows: list[dict[str, Any]] = []
    on_gpu = torch.cuda.is_available()
    skipped = skipped_rivals() if on_gpu else {}
    for library, reason in skipped.items():
        logger.warning("%s is skipped: %s", library, reason)
    # Written row by row: if the process is ended, only the measurement under way is lost.
    for row in measure(options, machine["ceilings"]) if on_gpu else count(options):
        rows.append(row)
        if options.json:
            harness.write_results(
                options.json, "kernels", machine, arguments, rows, skipped=skipped
            )
    print(format_rows(rows))
    return int(any("error" in row and row["contender"] == "minimind" for row in rows))


def build_parser() -> Options:
    parser = Options("kernels", __doc__, must_write=False)
    add = parser.add
    dtypes = ("bfloat16", "float16", "float32")
    add("tokens", 16384, "rows of every operation", **NUMBER)
    add("dtype", ["bfloat16"], "of the tensors", nargs="+", choices=dtypes)
    add("compile-report", False, "compile ahead of time", action="store_true")
    add("host", False, "CPU time of calls, without a GPU", action="store_true")
    add("quick", False, "compile two presets alone", action="store_true")
    add("targets", None, "compile for these alone", nargs="+", choices=list(TARGETS))
    with_kernels = [op.name for op in OPS.values() if op.registers]
    add("ops", None, "compile the kernels of these alone", nargs="+", choices=with_kernels)
    add("update-budget", False, "accept what the compiled kernels take", action="store_true")
    return parser


def report_compilation(options: argparse.Namespace) -> int:
    """Compiles, prints, and tells whether everything is within the budget."""
    report = compile_report.build_report(options.targets, options.ops, quick=options.quick)
    print(compiled_table.format_report(report))
    budget = compile_report.read_budget()
    if options.update_budget:
        budget = compile_report.write_budget(report)
        compiled_table.write(report)
    if options.json:
        machine = harness.describe_machine(find_device())
        harness.write_results(
            options.json, "kernels_compiled", machine, {}, compiled_table.as_rows(report)
        )
    problems = compile_report.check(report, budget) + compiled_table.compare(report)
    for problem in problems:
        logger.error("%s", problem)
    print(f"{len(report)} kernels compiled, {len(problems)} problems")
    return 1 if problems else 0


def report_host(options: argparse.Namespace) -> int:
    """Measures and prints what each operation costs the host."""
    # Called before any code looks for a GPU: a process uses only its first driver.
    rows = list(host.measure_host())
    if options.json:
        machine = harness.describe_machine(find_device())
        harness.write_results(options.json, "kernels_host", machine, {}, rows)
    print(host.format_rows(rows))
    return 0


def count(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the counts of every operation that need no GPU."""
    for dtype in options.dtype:
        for sizes in PRESETS:
            for case in build_cases(sizes, options.tokens, getattr(torch, dtype), "meta"):
                yield _row(case, dtype) | count_case(case)


def count_case(case: Case) -> dict[str, Any]:
    """Counts our launches and the waiting operators of one forward and backward pass."""
    launches: list[str] = []
    with (
        compile_report.launches_to(
            lambda kernel, *_: launches.append(kernel.__name__), TARGETS["sm_90"].device
        ),
        _Operators() as operators,
    ):
        case.run()
    waiting = [name for name in operators.names if any(w in name for w in WAITING)]
    return {
        "launches": len(launches),
        "dispatched_operators": len(operators.names),
        "waiting_operators": len(waiting),
        "median_us": None,
    }


def measure(options: argparse.Namespace, ceilings: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yields the times of every contender on this GPU. torch.compile's come last: compiling takes
    longer than all the measuring."""
    for compiled in (False, True):
        for dtype in options.dtype:
            for sizes in PRESETS:
                yield from _measure_preset(options.tokens, dtype, sizes, ceilings, compiled)


def _measure_preset(
    tokens: int, dtype: str, sizes: Sizes, ceilings: Mapping[str, float], compiled: bool
) -> Iterator[dict[str, Any]]:
    from bench.kernels.timing import measure_case

    for op in OPS.values():
        if op.runs_in(sizes):
            build = partial(op.build, Inputs(sizes, tokens, getattr(torch, dtype), "cuda"))
            base = _row(build(), dtype)
            pass_turn()
            for row in measure_case(build, ceilings, compiled=compiled):
                found = base | row | {"name": f"{base['name']}.{row['direction']}"}
                logger.info("%s", found)
                yield found


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Makes one line for each row, of whichever kind."""

    def median(row: harness.Row) -> str:
        if "error" in row:
            return f"broke: {row['error'].splitlines()[0][:80]}"
        return shown(row.get("median_us"), ",.1f")

    def error(row: harness.Row) -> str:
        found = row.get("relative_error")
        if found is None:
            return NOT_MEASURED
        return f"{found:.1e}{' DIFFERS' if row['differs'] else ''}"

    def of_eager(row: harness.Row) -> str:
        base = row.get("eager_relative_error")
        return shown(row["relative_error"] / base if base else None, ".2f", missing="–")

    columns: harness.Columns = {
        "kernel": lambda row: row["name"],
        "preset": lambda row: row["preset"],
        "dtype": lambda row: row["dtype"],
        "by": lambda row: row.get("contender", "minimind"),
        "launches": lambda row: shown(row.get("launches")),
        "waits": lambda row: shown(row.get("waiting_operators")),
        "MB": lambda row: shown(row["bytes"], per=1e6),
        "floor µs": lambda row: shown(row["floor_us"]),
        "median µs": median,
        "error": error,
        "of eager's": of_eager,
    }
    return harness.format_rows(rows, columns)


def _row(case: Case, dtype: str) -> dict[str, Any]:
    """Gives a row. The floor is an H200's, for forward and backward together, until one was
    measured."""
    moved = case.forward_bytes + case.backward_bytes
    flops = case.forward_flops + case.backward_flops
    return {
        "name": case.name,
        "preset": case.sizes.preset,
        "dtype": dtype,
        "tokens": case.inputs[0].shape[0],
        "bytes": moved,
        "flops": flops,
        "floor_us": max(moved / H200_BYTES_PER_S, flops / H200_FLOPS_PER_S) * 1e6,
    }


class _Operators(TorchDispatchMode):
    """Collects the names of all dispatched operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    sys.exit(main())
