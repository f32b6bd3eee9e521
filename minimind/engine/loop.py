"""THE loop: every stage trains here."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import Tensor, nn

from minimind.config.recipe import Recipe
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.interrupts import Interrupts
from minimind.engine.progress import Progress
from minimind.engine.routers import RouterWatch
from minimind.engine.stage import BatchT, Loader, Stage
from minimind.errors import TrainingError
from minimind.runtime.memory import PeakMemory, freeze_objects
from minimind.runtime.seeds import seed_micro_batch
from minimind.types import StepStats

_ROWS_NAMED = 20
"""Documents named at most when a loss is not finite."""


@dataclass(slots=True)
class RunState:
    """What a checkpoint keeps besides weights and optimizer. All else follows from the step."""

    step: int = 0
    tokens: int = 0
    best_val_loss: float = math.inf


@dataclass(frozen=True, slots=True)
class Events:
    """What happens around the steps. `record` runs on rank 0, the others on every rank."""

    record: Callable[[StepStats, float | None], None]
    """(what the step did, the validation loss after it where there was one)."""
    save: Callable[[RunState, bool], None]
    """(where the run is, whether its validation loss is the best so far)."""
    sample: Callable[[nn.Module, int], None]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A step whose numbers are still on their way from the device."""

    step: int
    loader_step: int
    learning_rate: float
    numbers: Tensor
    """On the host: count, tokens, stop; loss and metric sums; grad norm; the routers' numbers;
    this rank's losses."""
    arrived: torch.cuda.Event | None

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()


@dataclass(slots=True)
class Loop(Generic[BatchT]):
    """Trains `stage` from state.step to `total_steps`."""

    stage: Stage[BatchT]
    engine: DeepSpeedEngine
    loader: Loader[BatchT]
    recipe: Recipe
    learning_rate: Callable[[int], float] | None
    """By optimizer step; None where the DeepSpeed JSON has a scheduler."""
    total_steps: int
    events: Events
    progress: Progress
    eval_data: Iterable[BatchT] | None = None
    """Validation batches: as many on every rank."""
    state: RunState = field(default_factory=RunState)
    memory: PeakMemory = field(init=False)
    routers: RouterWatch = field(init=False)
    _pending: deque[_Pending] = field(default_factory=deque)
    _unrecorded: StepStats | None = None
    _interrupted: bool = False
    _clock: float = 0.0

    def __post_init__(self) -> None:
        self.memory = PeakMemory(self.engine.device)
        self.routers = RouterWatch(self.engine.module, self.engine.device)

    def run(self) -> bool:
        """True when all steps are done, False when interrupted; saved either way. A loss or
        gradient that is not finite raises TrainingError and leaves the last checkpoint alone."""
        self.engine.train()
        freeze_objects()
        self._clock = time.perf_counter()
        with Interrupts() as interrupts:  # the other signal does not disturb the last save either
            saved_at = self._run_steps(interrupts)
            self._read_pending(keep=0)
            self._record()
            if self._interrupted and saved_at != self.state.step:
                self._save(is_best=False, or_go_on=False)
        return not self._interrupted

    def _run_steps(self, interrupts: Interrupts) -> int:
        """The step of the last checkpoint."""
        saved_at = self.state.step if self.state.step else -1
        on_gpu = self.engine.device.type == "cuda"
        steps = self.loader.read(self.state.step, self.total_steps, pin=on_gpu)
        # The second step is the one measured: lazy initialisation is over.
        measured = min(self.state.step + 1, self.total_steps - 1)
        with contextlib.closing(steps):  # type: ignore[type-var]
            for micro_batches in steps:
                with self._measuring(self.state.step == measured):
                    self._take_steps(micro_batches, interrupts)
                self._read_pending(keep=1 if on_gpu else 0)
                if self._interrupted:
                    break
                evaluates = self.eval_data is not None and self._due(self.recipe.eval_every)
                is_best = evaluates and self._evaluate()
                if self._due(self.recipe.sample_every):
                    with self.engine.gathered() as module:
                        self.events.sample(module, self.state.step)
                done = self.state.step == self.total_steps
                if is_best or done or self._due(self.recipe.save_every):
                    saved_at = self._save(is_best, or_go_on=not done)
        return saved_at

    def _due(self, every: int) -> bool:
        step = self.state.step
        return every > 0 and (step == self.total_steps or step % every == 0)

    @contextlib.contextmanager
    def _measuring(self, wanted: bool) -> Iterator[None]:
        with self.memory.measured() if wanted else contextlib.nullcontext():
            yield

    def _take_steps(self, micro_batches: list[BatchT], interrupts: Interrupts) -> None:
        loader_step = self.state.step
        moved = [batch.to(self.engine.device) for batch in micro_batches]
        for prepared in self.stage.prepare(self.engine, moved):
            self._take_step(prepared, loader_step, interrupts)
            if self._interrupted:
                return

    def _take_step(
        self, micro_batches: Sequence[BatchT], loader_step: int, interrupts: Interrupts
    ) -> None:
        """One optimizer step. An interrupt gives it up before its update, so that what is saved
        is the state after the step before."""
        engine, step = self.engine, self.state.step
        mine = [
            float(sum(self.stage.count(batch) for batch in micro_batches)),
            float(sum(batch.num_tokens for batch in micro_batches)),
            float(interrupts.requested),
        ]
        counts = torch.tensor(mine, dtype=torch.float64).to(engine.device, non_blocking=True)
        counts = engine.sum_over_ranks(counts)
        engine.start_step(counts[0].float())
        losses: list[Tensor] = []
        # In fp64, so that what is logged does not depend on which rank adds up what.
        sums = counts.new_zeros(1 + len(self.stage.metric_names))
        for index, batch in enumerate(micro_batches):
            # A step on a CPU may outlast the launcher's patience, and asking there costs nothing.
            if engine.device.type == "cpu" and engine.any_rank(interrupts.requested):
                self._interrupted = True
                return
            place = index * engine.ranks.world_size + engine.ranks.rank
            seed_micro_batch(self.recipe.seed, step, place)
            loss = self.stage.loss(engine, batch)
            engine.backward(loss)
            self.routers.add(loss)
            losses.append(loss.total.detach())
            sums += torch.stack(
                [losses[-1], *(loss.metrics[name] for name in self.stage.metric_names)]
            )
        rate = self.learning_rate(step) if self.learning_rate else None
        used = engine.learning_rate if rate is None else rate
        routed = self.routers.take(engine)  # before the step changes fp16's loss scale
        engine.step(rate)
        self.state.step += 1
        norm = engine.grad_norm.to(engine.device, torch.float64).reshape(1)
        sums = engine.sum_over_ranks(sums)
        numbers = torch.cat([counts, sums, norm, routed, torch.stack(losses).double()])
        arrived = None
        if engine.device.type == "cuda":
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(_Pending(self.state.step, loader_step, used, numbers, arrived))

    def _read_pending(self, keep: int) -> None:
        """Takes in all steps but the last `keep`, which a GPU is still busy with."""
        while len(self._pending) > keep:
            pending = self._pending.popleft()
            count, tokens, stop, *numbers = pending.read()
            num_sums = 1 + len(self.stage.metric_names)
            means = [value / max(count, 1.0) for value in numbers[:num_sums]]
            grad_norm, *rest = numbers[num_sums:]
            routed = self.routers.read(rest[: self.routers.size], count)
            losses = rest[self.routers.size :]
            self._record()  # of the step before, whatever this one brings
            self._check_finite(pending, means[0], grad_norm, losses)
            self._interrupted = self._interrupted or stop > 0
            now = time.perf_counter()
            seconds, self._clock = now - self._clock, now
            self.state.tokens += int(tokens)
            stats = StepStats(
                step=pending.step,
                loss=means[0],
                grad_norm=grad_norm,
                learning_rate=pending.learning_rate,
                tokens=self.state.tokens,
                tokens_per_s=tokens / seconds,
                peak_bytes=self.memory.peak_bytes,
                resident_bytes=self.memory.resident_bytes,
                metrics=dict(zip(self.stage.metric_names, means[1:], strict=True)) | routed.metrics,
                diagnostics=routed.diagnostics,
                expert_load=routed.expert_load,
            )
            self.progress.update(stats, seconds)
            self._unrecorded = stats

    def _record(self, val_loss: float | None = None) -> None:
        """Writes down the newest step, once it is known whether a validation follows it."""
        if self._unrecorded is not None and self.engine.ranks.is_main:
            self.events.record(self._unrecorded, val_loss)
        self._unrecorded = None

    def _check_finite(
        self, pending: _Pending, loss: float, grad_norm: float, losses: Sequence[float]
    ) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        if math.isfinite(loss) and self.engine.precision == "fp16":  # its loss scaling's business
            said = "step %d: skipped, its gradient overflowed; the loss scale is now %g"
            self.progress.say(said, pending.step, self.engine.loss_scale)
            return
        bad = [micro for micro, value in enumerate(losses) if not math.isfinite(value)]
        if math.isfinite(loss):  # the gradient alone: it may come from any of them
            bad = list(range(len(losses)))
        rows: list[str] = []
        for micro in bad:
            rows += self.loader.describe(pending.loader_step, micro)
        rows = sorted(set(self.engine.gather_texts(rows)))
        named = ", ".join(rows[:_ROWS_NAMED])
        more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        raise TrainingError(
            f"step {pending.step}: the loss is {loss} and the gradient norm {grad_norm}. Rows of "
            f"the micro-batches concerned: {named}{more}. The last checkpoint is as it was. A "
            "lower --learning_rate, more warmup_steps or other data may help"
        )

    @torch.no_grad()
    def _evaluate(self) -> bool:
        """Records the validation loss; whether it is the best so far."""
        assert self.eval_data is not None
        self._read_pending(keep=0)
        engine = self.engine
        engine.train(False)
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        for batch in self.eval_data:
            loss = self.stage.loss(engine, batch.to(engine.device))
            sums += torch.stack([loss.total.double(), sums.new_tensor(loss.count)])
        total, count = engine.sum_over_ranks(sums).tolist()
        engine.train()
        if not count:
            raise TrainingError("the validation data holds no target")
        val_loss = total / count
        self._record(val_loss)
        self.progress.say("step %d: validation loss %.4f", self.state.step, val_loss)
        is_best = val_loss < self.state.best_val_loss
        if is_best:  # min() would keep a NaN for good
            self.state.best_val_loss = val_loss
        self._clock = time.perf_counter()
        return is_best

    def _save(self, is_best: bool, or_go_on: bool) -> int:
        """The step now on disk. A disk that is full now may not be at the next save: where steps
        remain the run goes on without this checkpoint, and says so."""
        self._read_pending(keep=0)
        self._record()
        try:
            self.events.save(self.state, is_best)
        except TrainingError as error:
            if not or_go_on:
                raise
            self.progress.say("%s; training goes on", error)
            return -1
        finally:
            self._clock = time.perf_counter()
        return self.state.step
