"""Trains a loop to its end and records it, going back to the last checkpoint from a spike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint, find_latest
from minimind.engine.loop import Loop
from minimind.engine.spikes import LossSpikeError
from minimind.errors import LostRankError
from minimind.monitors.monitor import DONE, INTERRUPTED, Outcome
from minimind.run.build import Recorder, Trained, build_loop
from minimind.run.resolve import ResolvedRun
from minimind.runtime.heartbeat import Heartbeat
from minimind.runtime.ranks import Ranks
from minimind.runtime.together import broadcast, main_first

logger = logging.getLogger("minimind")


def find_latest_together(
    folder: Path, ranks: Ranks, before: int | None = None
) -> Checkpoint | None:
    """Finds a checkpoint as `find_latest` does, on rank 0 for all: ranks that each searched might
    go on from different ones. All ranks call it, and all raise its error."""
    return broadcast(main_first(ranks, lambda: find_latest(folder, before)))


def train_recorded(
    run: ResolvedRun,
    tokenizer: Tokenizer,
    trained: Trained,
    loop: Loop[Any, Any],
    folder: Path,
    heartbeat: Heartbeat,
) -> bool:
    """Gives True when all steps are done, False after an interrupt. All ranks call it."""
    while True:
        recorder = Recorder(run, tokenizer, trained, loop, folder)
        loop.callbacks = recorder.callbacks
        outcome, is_lost = INTERRUPTED, False
        try:
            with heartbeat.training():
                finished = loop.run()
            outcome = DONE if finished else INTERRUPTED
            break
        except LossSpikeError as found:
            spike = found
        except LostRankError as error:
            outcome, is_lost = Outcome(1, str(error)), True
            raise
        except Exception as error:
            outcome = Outcome(1, str(error))
            heartbeat.fail()
            raise
        finally:
            recorder.close(outcome, is_lost=is_lost)
        loop = _go_back(run, trained, loop, folder, spike)
    if finished and trained.models.finish and loop.engine.ranks.is_main:
        trained.models.finish(folder)
    return finished


def _go_back(
    run: ResolvedRun, trained: Trained, loop: Loop[Any, Any], folder: Path, spike: LossSpikeError
) -> Loop[Any, Any]:
    """Loads a checkpoint into the engine, and gives a loop that goes on from it without the steps
    of the spike. The update of the first of these steps may be the spike's cause, so a checkpoint
    that includes it is taken only where there is no earlier one."""
    first, _ = spike.passed_over
    start = find_latest_together(folder / "checkpoints", loop.engine.ranks, before=first)
    if start is None:
        raise spike
    loop.engine.load(start.folder)
    back = build_loop(
        run,
        trained.stage,
        loop.engine,
        loop.loader,
        loop.eval_data,  # type: ignore[arg-type]
        total_steps=loop.total_steps,
        start=start,
    )
    back.state.passed_over = tuple(sorted({*loop.state.passed_over, *spike.passed_over}))
    held = " (which holds the first's update; no earlier one is there)" * (start.step >= first)
    logger.info(
        "%s; going back to step %d of %s, and on without steps %d and %d%s",
        *(spike, start.step, start.folder, *spike.passed_over, held),
    )
    return back
