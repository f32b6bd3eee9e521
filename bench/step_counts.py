"""One optimizer step of a preset, counted exactly on any machine: what a GPU is asked to do.

The run itself is rehearsed, DeepSpeed's ZeRO-2 engine included, on an H200 that need not be there
(minimind/rehearsal); tests/rehearsal keeps such counts at every stage, JSON and number of ranks.

`python -m bench.step_counts --json FILE` writes the counts down.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from bench import harness
from minimind.rehearsal.rehearse import Point, rehearse_all
from minimind.rehearsal.report import Rehearsal
from minimind.run.arguments import collect_arguments
from minimind.runtime.devices import find_device

DENSE, EXPERTS = "minimind2-small", "minimind2-moe"
DEVICE = "H200"
ROWS, ROW_TOKENS = 16, 1024
"""One micro-batch of as many tokens as the kernels are measured on."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.step_counts", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results file")
    path = parser.parse_args(argv).json
    return harness.run_program(lambda: count(path))


def count(path: Path) -> int:
    """Writes the counts. Raises ConfigError where nothing can be rehearsed."""
    machine = harness.describe_machine(find_device())
    harness.write_results(path, "step_counts", machine, {}, count_steps())
    return 0


def count_steps() -> list[dict[str, Any]]:
    """A dense model with all operations in PyTorch's forms and as kernels, and one with experts,
    whose PyTorch forms ask the host for each expert's share."""
    with mock.patch.dict(os.environ, MINIMIND_KERNELS="torch"):
        (plain,) = rehearse_all([_point(DENSE)])
    kernels, experts = rehearse_all([_point(DENSE), _point(EXPERTS)])
    return [
        _row(DENSE, "PyTorch's forms", plain),
        _row(DENSE, "kernels", kernels),
        _row(EXPERTS, "kernels", experts),
    ]


def _point(model: str) -> Point:
    options = {"micro_batch_size": ROWS, "train_batch_size": ROWS, "ds_config.bf16.enabled": True}
    arguments = collect_arguments({"model": model, "seq_len": ROW_TOKENS, "set": options})
    return Point(arguments=arguments, device=DEVICE, ranks=1)


def _row(model: str, forms: str, found: Rehearsal) -> dict[str, Any]:
    tokens = ROWS * ROW_TOKENS
    return {
        "name": f"{model}, {forms}",
        "model": model,
        "tokens": tokens,
        "device_operators": found.num_operators,
        "kernel_launches": found.num_launches,
        "sync_operators": {wait.kind: wait.count for wait in found.forbidden_waits},
        "kept_bytes_per_token": found.peak["activations"] // tokens,
        "rehearsed_peak_bytes": found.peak_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
