"""Holds the default sizes of a run for each kind of device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Holds how much of a run fits on a device: rows are `seq_len` tokens."""

    seq_len: int
    train_batch_size: int
    micro_batch_size: int


SIZES: dict[str, dict[str, Sizes]] = {
    "cpu": {
        "tiny": Sizes(256, 4, 4),
        "minimind2-small": Sizes(1024, 8, 4),
        "minimind2": Sizes(1024, 8, 2),
        "minimind2-moe": Sizes(1024, 8, 2),
        "minimind3": Sizes(1024, 8, 2),
        "minimind3-moe": Sizes(1024, 8, 2),
    },
    "gpu": {
        "tiny": Sizes(256, 16, 16),
        "minimind2-small": Sizes(1024, 128, 64),
        "minimind2": Sizes(1024, 128, 32),
        "minimind2-moe": Sizes(1024, 128, 32),
        "minimind3": Sizes(1024, 128, 32),
        "minimind3-moe": Sizes(1024, 128, 32),
    },
}
"""Default row length, global batch and micro-batch, by kind of device and preset. The global batch
is smaller on a CPU, where a step of 131k tokens would take minutes."""
OTHER_MODEL = {"cpu": Sizes(512, 8, 4), "gpu": Sizes(1024, 128, 32)}


def default_sizes(device_kind: str, preset: str) -> Sizes:
    return SIZES[device_kind].get(preset, OTHER_MODEL[device_kind])
