"""Holds the default sizes of a run for each kind of device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Holds default sizes: tokens per row, rows per step, and rows per micro-batch."""

    seq_len: int
    train_batch_size: int
    micro_batch_size: int


SIZES: dict[str, dict[str, Sizes]] = {
    "cpu": {
        "tiny": Sizes(256, 8, 8),
        "minimind2-small": Sizes(1024, 4, 4),
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
"""Default sizes by kind of device and preset. A step has fewer rows on a CPU, where one of 131k
tokens would take minutes."""
OTHER_MODEL = {"cpu": Sizes(512, 8, 4), "gpu": Sizes(1024, 128, 32)}


def default_sizes(device_kind: str, preset: str) -> Sizes:
    return SIZES[device_kind].get(preset, OTHER_MODEL[device_kind])
