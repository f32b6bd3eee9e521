"""Derives random numbers from a run's position, so that a resumed run needs no generator's state
and the number of ranks changes nothing."""

from __future__ import annotations

import hashlib
import os

import torch


def derive_seed(*parts: int | str) -> int:
    """Derives a 63-bit seed from all of `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Seeds the dropout of one micro-batch, counted over all ranks; called before its forward."""
    torch.manual_seed(derive_seed(seed, step, micro_batch))


def make_deterministic() -> None:
    """Makes the whole process deterministic: no operator adds in the order of its threads, as flash
    attention's backward does on a GPU. An operator without another way then raises RuntimeError."""
    # Read when cuBLAS starts: workspaces of its own for each stream.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Else every new tensor is filled first, to show what is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
