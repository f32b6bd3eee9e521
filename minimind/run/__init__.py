"""Assembles a training run in one place, for the command line, the benchmarks, the tests and Python
programs. It may use every layer below, and contains no objective, loop or engine of its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from minimind.run.run import Run
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import read_ranks

__all__ = ["Run", "train"]


def train(**options: Any) -> Path:
    """Trains a model and gives the run's folder, which `minimind.LLM` can load.

    Takes the flags of `minimind train` by name (`stage`, `data`, `from_checkpoint`, `max_steps`,
    ...), any option of the stage's recipe and any field of the model. `set={"ds_config.KEY": ...}`
    changes the DeepSpeed JSON.

    >>> base = minimind.train(data="text.jsonl", model="minimind2-small", epochs=1)
    >>> chat = minimind.train(stage="sft", from_checkpoint=base, data="chat.jsonl")

    The run logs to the root logger; if the program has not set that up, the run logs to the console
    as the command does. Raises a MiniMindError for a run that cannot work, TrainingError where
    training fails, and KeyboardInterrupt after an interrupt, with a checkpoint saved.
    """
    if not logging.getLogger().hasHandlers():
        set_up_logging(read_ranks().rank)
    run = Run.resolve(**options)
    try:
        if not run.train():
            raise KeyboardInterrupt
    finally:
        run.close()
    assert run.folder is not None
    return run.folder
