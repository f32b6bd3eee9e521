"""Runs resolved as launch/train.py resolves them, for what measures or predicts them."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.run.flags import parse_train_arguments
from minimind.run.resolve import ResolvedRun, find_tokenizer, resolve_run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks
from minimind.stages import STAGES


def resolve_flags(argv: Sequence[str], ranks: Ranks, device: Device) -> ResolvedRun:
    """`argv`: flags of launch/train.py. Raises ConfigError or CheckpointError."""
    arguments = parse_train_arguments(argv, {n: s.recipe_type for n, s in STAGES.items()})
    return resolve_run(arguments, find_tokenizer(arguments), ranks, device)
