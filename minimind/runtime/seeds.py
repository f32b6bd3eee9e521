"""Random numbers as a function of where a run is, so that a resumed run needs no generator's state
and the number of ranks changes nothing."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from all of `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Before the forward of one micro-batch, counted over all ranks: what dropout draws."""
    torch.manual_seed(derive_seed(seed, step, micro_batch))
