"""Gives all ranks one console: rank 0 logs everything, the others only errors."""

from __future__ import annotations

import logging
import sys
import warnings

import tqdm

from minimind.runtime.printable import printable


class _BesideProgressBar(logging.Handler):
    """Writes log lines above a progress bar, so that they do not break it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.tqdm.write(printable(self.format(record)), file=sys.stderr)


def set_up_logging(rank: int) -> None:
    """Logs INFO on rank 0 and only errors on the others."""
    handler = _BesideProgressBar()
    handler.setFormatter(
        logging.Formatter("%(message)s" if rank == 0 else f"rank {rank}: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    for noisy in ("matplotlib", "PIL", "filelock", "torch", "DeepSpeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING if rank == 0 else logging.ERROR)
    # In every step DeepSpeed calls functions that PyTorch 2.13 renamed, which warn.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
