"""Calls the Triton kernels of other libraries, forward and backward, on the stub of the driver:
`python -m rival_launches`. Prints a line for each; exit status 1 where one breaks."""

from __future__ import annotations

import sys

import torch
from minimind_kernels.op import PRESETS, build_cases

from bench.kernels import timing
from bench.kernels.rivals import load_rival
from bench.kernels.stub_driver import stub_gpu


def main() -> int:
    broken = 0
    with stub_gpu("sm_90") as launches:
        for sizes in PRESETS[2:4]:
            for case in build_cases(sizes, 128, torch.bfloat16, "cpu"):
                for index, rival in enumerate(case.rivals):
                    function, before = load_rival(rival), launches.value
                    # The others' kernels are not Triton's.
                    if function is None or rival.library not in ("liger", "cut-cross-entropy"):
                        continue
                    said = f"{sizes.preset} {case.name} {rival.library}"
                    try:
                        call = timing._choose_rival(index, function, case)
                        for _, (run,) in timing.directions(case, [call]):
                            run()
                        sys.stdout.write(f"{said}: {launches.value - before} launches\n")
                    except Exception as error:  # each library has its own
                        broken += 1
                        sys.stdout.write(f"{said}: {type(error).__name__}: {error}\n")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
