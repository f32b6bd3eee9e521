"""Counts, on any machine, exactly what one optimizer step of a preset asks a GPU to do.

The run itself is rehearsed (minimind/rehearsal), with DeepSpeed's ZeRO-2 engine, on an H200 that
need not be there. tests/rehearsal keeps such counts for every stage, JSON and number of ranks.

`python -m bench.train.step_counts --json FILE` writes the counts down.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

from bench import harness
from bench.program import Options, run_program
from minimind.rehearsal.rehearse import Point, rehearse_all
from minimind.run.arguments import collect_arguments
from minimind.runtime.devices import find_device

DENSE, EXPERTS = "minimind2-small", "minimind2-moe"
ROWS, ROW_TOKENS = 16, 1024
"""One micro-batch of as many tokens as the kernels are measured on."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(Options("train.step_counts", __doc__), count, argv)


def count(options: argparse.Namespace) -> None:
    """Writes the counts. Raises ConfigError where nothing can be rehearsed."""
    machine = harness.describe_machine(find_device())
    harness.write_results(options.json, "step_counts", machine, {}, count_steps())


def count_steps() -> list[dict[str, Any]]:
    """Counts a dense model twice, with all operations in PyTorch's forms and as kernels, and a
    model with experts as kernels alone: the experts' PyTorch forms make the host read each expert's
    number of tokens."""
    with mock.patch.dict(os.environ, MINIMIND_KERNELS="torch"):
        (plain,) = rehearse_all([_point(DENSE)])
    kernels, experts = rehearse_all([_point(DENSE), _point(EXPERTS)])
    tokens = ROWS * ROW_TOKENS
    return [
        {
            "name": f"{model}, {forms}",
            "model": model,
            "tokens": tokens,
            "device_operators": found.num_operators,
            "kernel_launches": found.num_launches,
            "sync_operators": {wait.kind: wait.count for wait in found.forbidden_waits},
            "kept_bytes_per_token": found.peak["activations"] // tokens,
            "rehearsed_peak_bytes": found.peak_bytes,
        }
        for model, forms, found in (
            (DENSE, "PyTorch's forms", plain),
            (DENSE, "kernels", kernels),
            (EXPERTS, "kernels", experts),
        )
    ]


def _point(model: str) -> Point:
    sizes = {"micro_batch_size": ROWS, "train_batch_size": ROWS, "ds_config.bf16.enabled": True}
    arguments = collect_arguments({"model": model, "seq_len": ROW_TOKENS, "set": sizes})
    return Point(arguments=arguments, device="H200", ranks=1)


if __name__ == "__main__":
    sys.exit(main())
