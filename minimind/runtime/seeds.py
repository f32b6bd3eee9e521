"""Derives seeds from a position in a run, so that a resumed run needs no generator state and the
number of ranks changes nothing."""

from __future__ import annotations

import hashlib
import os

import torch


def derive_seed(*parts: int | str) -> int:
    """Derives a 63-bit seed from `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Seeds the dropout of a micro-batch before its forward; `micro_batch` is its number over all
    ranks."""
    torch.manual_seed(derive_seed(seed, step, micro_batch))


def make_deterministic() -> None:
    """Makes PyTorch deterministic in this process: no operator may add in an order that threads
    decide, as flash attention's backward does on a GPU. An operator without a deterministic form
    raises RuntimeError."""
    # cuBLAS reads this when it starts; it then has a workspace for each stream.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Otherwise every new tensor would first be filled, to reveal reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
