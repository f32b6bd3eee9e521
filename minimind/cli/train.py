"""Trains a model: `deepspeed launch/train.py --ds_config zero2.json`, `torchrun`, plain `python` or
`minimind train`.

The exit status is 0 when done, 1 if training failed, 2 for bad usage, configuration or data, 130 if
interrupted with a checkpoint saved.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from minimind.cli.failures import describe_failure, is_out_of_memory
from minimind.engine.process_group import HEAD_START_S, end_after_main, stop_ranks
from minimind.errors import LostRankError, MiniMindError, TrainingError
from minimind.rehearsal.fits import describe_rehearsal, read_place
from minimind.rehearsal.rehearse import rehearse, why_not
from minimind.run.arguments import TrainArguments, parse_arguments
from minimind.run.run import Run
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import read_ranks

logger = logging.getLogger("minimind")

_MEMORY_ADVICE = (
    "The same command with --dry_run says what a step holds and which micro-batch fits; --set "
    "micro_batch_size=N takes fewer rows at a time, --set activation_checkpointing=true keeps less "
    "of each"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the flags say; gives the exit status."""
    try:
        return _train(argv)
    except LostRankError:
        return 1


def _train(argv: Sequence[str] | None) -> int:
    """Trains and logs what goes wrong; gives the exit status. Raises LostRankError where another
    rank is lost, which is logged by then."""
    set_up_logging(read_ranks().rank)
    arguments = None
    try:
        arguments = parse_arguments(argv)
        if arguments.dry_run:
            return _try(arguments)
        run = Run.of(arguments)
        if not run.train():
            return 130
        if run.ranks.is_main:
            logger.info("%s", next_command(run))
        return 0
    except LostRankError:
        raise
    except (MiniMindError, TrainingError) as error:
        # Every rank meets the same bad input or hears of another's. One rank of each machine
        # reports it, since ranks that have not joined yet hear of nothing.
        if read_ranks().local_rank == 0:
            logger.error("error: %s", error)
        return 2 if isinstance(error, MiniMindError) else 1
    except (OSError, MemoryError, RuntimeError) as error:
        said = describe_failure(error)
        if said is None:
            raise
        if is_out_of_memory(error):
            said += f". {_describe_peak(arguments)}{_MEMORY_ADVICE}"
        logger.error("error: %s", said)
        return 1
    except KeyboardInterrupt:
        return 130


def _describe_peak(arguments: TrainArguments | None) -> str:
    """Says what a step's tensors need, as a rehearsal finds it; "" where no rehearsal is possible
    now."""
    # An error of the rehearsal must not hide the error that is being reported.
    with contextlib.suppress(Exception):
        run = Run.of(arguments) if arguments and read_ranks().world_size == 1 else None
        if run and not why_not(run.resolved):
            return f"A step of this run holds {rehearse(run).peak_bytes / 2**30:.2f} GiB. "
    return ""


def next_command(run: Run) -> str:
    """Gives the command that users probably want next: training a text model to answer, or opening
    a chat."""
    program = Path(sys.argv[0])
    is_script = program.name == "train.py"
    verb, suffix = (f"python {program.parent}/", ".py") if is_script else ("minimind ", "")
    if run.resolved.is_chat:
        return f"talk to it: {verb}chat{suffix} --checkpoint {run.folder}"
    return (
        f"it continues text; teach it to answer: {verb}train{suffix} --stage sft "
        f"--from_checkpoint {run.folder}"
    )


def _try(arguments: TrainArguments) -> int:
    run = Run.of(arguments, read_place(arguments.on) if arguments.on else None)
    run.check()
    if run.ranks.is_main:
        lines = [run.describe(), describe_rehearsal(run)]
        print("\n".join(lines))
    return 0


def run_process(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `main` and ends the process, so that no rank is left hanging."""
    ranks = read_ranks()
    try:
        status = _train(argv)
        if status in (1, 2):
            end_after_main(ranks)
    except LostRankError:
        status = 1
        if not ranks.is_main:  # the main rank may be the lost one
            time.sleep(HEAD_START_S)
    if status == 1 and ranks.world_size > 1:
        os._exit(status)  # nothing waits for ranks that may be lost
    stop_ranks()
    if not ranks.is_main:
        # Only the main rank has something left to close. On the others the communication threads
        # now and then abort a process that ends normally.
        os._exit(status)
    sys.exit(status)
