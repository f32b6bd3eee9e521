"""Defines the training loop that all stages share."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import Tensor

from minimind.config.recipe import Recipe
from minimind.engine.callbacks import Callbacks, RunState
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.faulty_steps import FaultySteps
from minimind.engine.graphed_step import GraphedLoss
from minimind.engine.interrupts import Interrupts
from minimind.engine.pending import Pending, StepNumbers
from minimind.engine.routers import RouterWatch
from minimind.engine.saving import Saving
from minimind.engine.spikes import SpikeWatch
from minimind.engine.stage import InT, Loader, OutT, Stage
from minimind.engine.validation import validation_loss
from minimind.runtime.devices import send
from minimind.runtime.garbage import Collections, without_collector
from minimind.runtime.memory import PeakMemory, freeze_objects
from minimind.runtime.seeds import seed_micro_batch
from minimind.types import StepStats


@dataclass(slots=True)
class Loop(Generic[InT, OutT]):
    """Trains `stage` from step state.step to `total_steps`."""

    stage: Stage[InT, OutT]
    engine: DeepSpeedEngine
    loader: Loader[InT]
    recipe: Recipe
    learning_rate: Callable[[int], float] | None
    """The learning rate by step number; None where the DeepSpeed JSON has a scheduler."""
    total_steps: int
    eval_data: Iterable[InT] | None = None
    """The validation batches; every rank has the same number."""
    state: RunState = field(default_factory=RunState)
    callbacks: Callbacks = field(default_factory=Callbacks)
    memory: PeakMemory = field(init=False)
    routers: RouterWatch = field(init=False)
    newest: StepStats | None = None
    """The StepStats of the newest step whose numbers have arrived from the device."""
    _interrupts: Interrupts = field(default_factory=Interrupts)
    _pending: deque[Pending] = field(default_factory=deque)
    _graphs: GraphedLoss[OutT] | None = None
    _is_recorded: bool = True
    _interrupted: bool = False
    _num_micro_batches: int = 0
    """The number of this rank's micro-batches in a step, as the loader gives them."""
    _saving: Saving = field(init=False)
    _faulty: FaultySteps = field(init=False)
    _spikes: SpikeWatch = field(init=False)
    _clock: float = 0.0
    _collections: Collections = field(default_factory=Collections)

    def __post_init__(self) -> None:
        self.memory = PeakMemory(self.engine.device)
        self.routers = RouterWatch(self.engine.module, self.engine.device)
        if self.recipe.cuda_graph:
            self._graphs = GraphedLoss(self.stage, self.engine)

    def run(self) -> bool:
        """Trains; gives True when all steps are done, False after an interrupt. Both save the
        state. A loss or gradient that is not finite raises TrainingError and leaves the last
        checkpoint as it was."""
        self.start()
        # A signal of the other kind must not disturb the last save either.
        with self._interrupts, without_collector():
            saved_at = self._run_steps()
            self.wait()
            self._record()
            is_saved = self._saving.confirm() and saved_at == self.state.step
            if self._interrupted and not is_saved:
                self._save(is_best=False, or_go_on=False)
        return not self._interrupted

    def start(self) -> None:
        """Prepares the loop; called before the first step."""
        self.engine.train()
        self._saving = Saving(self.callbacks, self.state)
        self._faulty = FaultySteps(
            self.engine, self.loader, self.recipe, self.callbacks, self.state
        )
        returns = len(self.state.passed_over) // 2
        self._spikes = SpikeWatch(self.recipe.spike_deviations, returns)
        freeze_objects()
        self._clock = time.perf_counter()

    def read(self) -> Iterator[list[InT]]:
        """Reads this rank's micro-batches of the remaining steps, ahead in a background thread."""
        on_gpu = self.engine.device.type == "cuda"
        return self.loader.read(self.state.step, self.total_steps, pin=on_gpu)

    def _run_steps(self) -> int:
        """Runs the remaining steps; gives the step of the last checkpoint."""
        saved_at = self.state.step if self.state.step else -1
        steps = self.read()
        # Memory is measured in the second step, when lazy initialisation is over.
        measured = min(self.state.step + 1, self.total_steps - 1)
        with contextlib.closing(steps):  # type: ignore[type-var]
            for micro_batches in steps:
                is_measured = self.state.step == measured
                with self.memory.measured() if is_measured else contextlib.nullcontext():
                    self.step(micro_batches)
                self.read_back()
                self._collections.after(self.state.step)
                if self._interrupted:
                    break
                done = self.state.step == self.total_steps
                evaluates = self.eval_data is not None and self._due(self.recipe.eval_every)
                saves = done or self._due(self.recipe.save_every)
                if evaluates or saves:
                    self._saving.confirm()
                is_best = evaluates and self._evaluate()
                if self._due(self.recipe.sample_every):
                    self.wait()
                    self._record()  # some monitors take steps in their order alone
                    with self.engine.gathered() as module:
                        self.callbacks.sample(module, self.state.step)
                if is_best or saves:
                    saved_at = self._save(is_best, or_go_on=not done)
        return saved_at

    def _due(self, every: int) -> bool:
        step = self.state.step
        return every > 0 and (step == self.total_steps or step % every == 0)

    @without_collector()
    def step(self, micro_batches: list[InT]) -> None:
        """Takes one step on this rank's micro-batches: the updates that the stage prepares from
        them. Its numbers are read later, by `read_back`."""
        if self._is_interrupted():
            return  # a stage may prepare for as long as a step takes
        if self.state.step + 1 in self.state.passed_over:
            self.state.step += 1
            return
        step, engine = self.state.step, self.engine
        rate = self.learning_rate(step) if self.learning_rate else None
        used = engine.learning_rate if rate is None else rate
        self._num_micro_batches = len(micro_batches)
        moved = [batch.to(engine.device) for batch in micro_batches]
        updates: list[StepNumbers] = []
        losses: list[Tensor] = []
        for prepared in self.stage.prepare(engine, moved, step):
            found = self._update(prepared, len(updates), rate, losses)
            if found is None:
                return
            updates.append(found)
        self.state.step += 1
        if not updates:
            counts, routers = self._sum_counts(()), self.routers.take(engine)
            sums = counts.new_zeros(1 + len(self.stage.metric_names))
            updates.append(StepNumbers.of_update(counts, sums, torch.zeros_like(sums[0]), routers))
        numbers = StepNumbers.of_step(updates, losses)
        self._pending.append(Pending.of(self.state.step, used, self.stage.measured(), numbers))

    def _is_interrupted(self) -> bool:
        """Tells whether the run is to stop. On a CPU all ranks are asked, since that costs nothing
        and a step may last longer than the launcher waits; on a GPU the step's own numbers carry
        the request."""
        if self.engine.device.type == "cpu" and self.engine.any_rank(self._interrupts.requested):
            self._interrupted = True
        return self._interrupted

    def read_back(self) -> None:
        """Reads the numbers of the steps taken; on a GPU all but the last step's, which is still
        running."""
        self._read_pending(keep=1 if self.engine.device.type == "cuda" else 0)

    def wait(self) -> None:
        """Waits for the numbers of all steps taken and reads them."""
        self._read_pending(keep=0)

    def _sum_counts(self, micro_batches: Sequence[OutT]) -> Tensor:
        """Sums over all ranks, fp64 [3]: the count, the tokens, and the number of ranks that are to
        stop."""
        mine = [
            float(sum(batch.count for batch in micro_batches)),
            float(sum(batch.num_tokens for batch in micro_batches)),
            float(self._interrupts.requested),
        ]
        return self.engine.sum_over_ranks(send(mine, self.engine.device, torch.float64))

    def _update(
        self, micro_batches: Sequence[OutT], number: int, rate: float | None, losses: list[Tensor]
    ) -> StepNumbers | None:
        """Takes update `number` of a step and appends each micro-batch's loss to `losses`. An
        interrupt abandons a step before its first update (and gives None), so that the saved state
        is that after the previous step; a step that has changed weights is finished."""
        engine, step = self.engine, self.state.step
        counts = self._sum_counts(micro_batches)
        engine.start_step(counts[0].float())
        # fp64, so that the logged sums do not depend on which rank adds what.
        sums = counts.new_zeros(1 + len(self.stage.metric_names))
        for index, batch in enumerate(micro_batches):
            if number == 0 and self._is_interrupted():
                return None
            index += number * len(micro_batches)
            place = index * engine.ranks.world_size + engine.ranks.rank
            seed_micro_batch(self.recipe.seed, step, place)
            loss = self._graphs(batch) if self._graphs else self.stage.loss(engine, batch)
            engine.backward(loss, batch.count)
            self.routers.add(loss, batch.count)
            losses.append(loss.total.detach())
            sums += torch.stack(
                [losses[-1], *(loss.metrics[name] for name in self.stage.metric_names)]
            )
        routers = self.routers.take(engine)  # before the step changes fp16's loss scale
        engine.step(rate)
        grad_norm = engine.grad_norm.to(engine.device, torch.float64)
        return StepNumbers.of_update(counts, engine.sum_over_ranks(sums), grad_norm, routers)

    def _read_pending(self, keep: int) -> None:
        """Reads the numbers of all steps but the last `keep`, which a GPU is still computing."""
        while len(self._pending) > keep:
            pending = self._pending.popleft()
            found = pending.read()
            self._record()  # of the step before, as this one may end the run
            self._faulty.check(pending.step, found, self._num_micro_batches)
            has_checkpoint = self._saving.has_checkpoint
            self._spikes.check(pending.step, found.mean_loss, has_checkpoint=has_checkpoint)
            self._interrupted = self._interrupted or float(found.stops) > 0
            now, tokens = time.perf_counter(), float(found.tokens)
            seconds, self._clock = now - self._clock, now
            self.state.tokens += int(tokens)
            stats = StepStats(
                step=pending.step,
                loss=found.mean_loss,
                grad_norm=float(found.grad_norm),
                learning_rate=pending.learning_rate,
                tokens=self.state.tokens,
                tokens_per_s=tokens / seconds,
                peak_bytes=self.memory.peak_bytes,
                resident_bytes=self.memory.resident_bytes,
                metrics=dict(zip(self.stage.metric_names, found.mean_metrics, strict=True)),
                diagnostics=pending.measured,
            )
            stats = self.routers.describe(stats, found)
            self.callbacks.update(stats, seconds)
            self.newest, self._is_recorded = stats, False

    def _record(self, val_loss: float | None = None) -> None:
        """Records the newest step, once it is known whether a validation follows it."""
        if self.newest and not self._is_recorded and self.engine.ranks.is_main:
            self.callbacks.record(self.newest, val_loss)
        self._is_recorded = True

    def _evaluate(self) -> bool:
        """Computes and records the validation loss; tells whether it is the best so far."""
        assert self.eval_data is not None
        self.wait()
        val_loss = validation_loss(self.stage, self.engine, self.eval_data)
        self._record(val_loss)
        said = self.stage.describe_validation(val_loss)
        self.callbacks.say("step %d: %s", self.state.step, said)
        is_best = val_loss < self.state.best_val_loss
        if is_best:  # min() would keep a NaN for good
            self.state.best_val_loss = val_loss
        self._clock = time.perf_counter()
        return is_best

    def _save(self, is_best: bool, or_go_on: bool) -> int:
        """Saves a checkpoint and gives its step, or -1 where it could not be saved."""
        self.wait()
        self._record()
        try:
            return self.state.step if self._saving.save(is_best, or_go_on) else -1
        finally:
            self._clock = time.perf_counter()
