"""Runs every kernel once, forward and backward, at small odd sizes: `python -m
bench.kernels.small`.

It is for a tool that checks each access to memory and is slow: `compute-sanitizer --tool memcheck
python -m bench.kernels.small`, as `make gpu PARTS=sanitizer` runs it. PyTorch's allocator hands out
pieces of large blocks, so that such a tool does not see accesses beyond the end of a piece. Turn
the allocator off by PYTORCH_NO_CUDA_MEMORY_CACHING=1. On a CPU the plain forms run. Exit status: 0
every case ran, 2 bad usage; what a case raises ends the program.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from minimind_kernels.op import ODD, build_cases

from minimind.runtime.devices import find_device

SIZES = (
    ODD,
    replace(ODD, qk_norm=True, cast_before_weight=False, seq_aux=False, experts_per_token=1),
)
NUM_TOKENS = 515
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels.small", description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(_DTYPES))
    parser.add_argument("--tokens", type=int, default=NUM_TOKENS, help="default: %(default)s")
    options = parser.parse_args(argv)
    device = find_device()
    for dtype in options.dtypes:
        for sizes in SIZES:
            cases = build_cases(sizes, options.tokens, _DTYPES[dtype], str(device.torch_device))
            for case in cases:
                case.run()
                if device.kind == "gpu":
                    torch.cuda.synchronize(device.torch_device)
                norms = ", QK norm" if sizes.qk_norm else ""
                print(f"{case.name} {dtype}{norms}: ran on {device.name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
