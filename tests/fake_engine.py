"""Runs a training loop over a fake engine, loader and stage that only record what they are
asked."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from small_models import pack
from torch import Tensor, nn

from minimind.config.recipe import Recipe
from minimind.data.formats import Format
from minimind.data.text_format import TEXT
from minimind.engine.callbacks import Callbacks, RunState
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.loop import Loop
from minimind.engine.progress import Progress
from minimind.engine.stage import BuildContext, Stage, StageModels
from minimind.errors import TrainingError
from minimind.runtime.ranks import Ranks
from minimind.samples.files import TEXT_DATA, SampleData
from minimind.types import Batch, LossSum, StepStats

TARGETS = (2, 7)
"""The targets in each of a step's two micro-batches. They differ, so that a mean of means would
show."""
SECOND_SHARE = TARGETS[1] / sum(TARGETS)
"""The second micro-batch's share of a step's targets; each of its targets has a loss that is 1
higher."""
TOKENS = 3 + 8
"""The tokens that a step reads: each document has one token more than targets."""
UPDATE = 100.0
"""The loss of each update of a step is higher than the previous one's by this."""
STEPS = 6
"""The default number of steps in a trial."""


@dataclass
class FakeEngine:
    """Records its calls and changes no weight. Other ranks do the same; `others_say` and
    `others_stop` are what they report."""

    ranks: Ranks = field(default_factory=lambda: Ranks(0, 0, 1))
    precision: str = "fp32"
    learning_rate: float = 0.5
    """A step without a rate halves it, as a scheduler of the DeepSpeed JSON might."""
    loss_scale: float = 1.0
    norm: Callable[[int], float] = float
    """Gives the gradient's norm for the number of steps taken."""
    others_say: Sequence[str] = ()
    others_say_later: Sequence[str] = ()
    """What they report in the background."""
    others_stop: bool = False
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    module: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    grad_norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    steps: int = 0
    training: bool = False
    is_gathered: bool = False
    calls: list[str] = field(default_factory=list)
    """The calls in order: start COUNT, backward TOTAL, step RATE, load FOLDER."""

    @property
    def typed(self) -> DeepSpeedEngine:
        """Gives the fake the type of a real engine."""
        return cast(DeepSpeedEngine, self)

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def start_step(self, total_count: Tensor) -> None:
        self.calls.append(f"start {total_count.item():g}")

    def backward(self, loss: LossSum, count: int) -> None:
        self.calls.append(f"backward {loss.total.item():g}")

    def step(self, learning_rate: float | None) -> None:
        self.calls.append(f"step {learning_rate}")
        self.steps += 1
        self.learning_rate = self.learning_rate / 2 if learning_rate is None else learning_rate
        self.grad_norm = torch.tensor(self.norm(self.steps))

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values.mul_(self.ranks.world_size)

    def any_rank(self, flag: bool) -> bool:
        return flag or self.others_stop

    def gather_texts(self, texts: Sequence[str]) -> list[str]:
        return [*texts, *self.others_say]

    def gather_apart(self, texts: Sequence[str]) -> list[str]:
        return [*texts, *self.others_say_later]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        self.is_gathered = True
        yield self.module
        self.is_gathered = False

    def full_weights(self) -> dict[str, Tensor]:
        return dict(self.weights) if self.ranks.is_main else {}

    def save(self, folder: Path) -> None:
        """Writes a file that grows with each step."""
        (folder / "engine").mkdir(parents=True, exist_ok=True)
        (folder / "engine" / f"rank_{self.ranks.rank}.pt").write_bytes(bytes(1 + self.steps))

    def load(self, folder: Path) -> None:
        self.calls.append(f"load {folder}")


def micro_batch(step: int, micro: int) -> Batch:
    """Packs one document, whose first tokens give the step and micro-batch numbers, with
    padding."""
    return pack([[[step, micro, *[0] * (TARGETS[micro] - 1)]]], seq_len=12)


@dataclass
class FakeLoader:
    """Reads two micro-batches, one of each size, in every step."""

    num_documents: int = 1
    """The number of documents that `describe` names in a micro-batch."""
    fingerprint: str = ""
    reads: list[tuple[int, int, bool]] = field(default_factory=list)
    described: list[tuple[int, int]] = field(default_factory=list)
    readers: list[Iterator[list[Batch]]] = field(default_factory=list)
    """Holds the readers, so that none is closed merely because nothing refers to it."""
    is_closed: bool = False

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[Batch]]:
        self.reads.append((from_step, to_step, pin))
        self.readers.append(self._read(from_step, to_step))
        return self.readers[-1]

    def _read(self, from_step: int, to_step: int) -> Iterator[list[Batch]]:
        try:
            for step in range(from_step, to_step):
                yield [micro_batch(step, micro) for micro in range(len(TARGETS))]
        finally:
            self.is_closed = True

    def describe(self, step: int, micro: int) -> list[str]:
        self.described.append((step, micro))
        return [f"data.jsonl:{step}{micro}{number:02}" for number in range(self.num_documents)]


class FakeStage(Stage[Batch, Batch]):
    """Computes a loss per target from the numbers of micro-batch and update; in validation, from
    the number of steps taken."""

    name: ClassVar[str] = "fake"
    recipe_type: ClassVar[type[Recipe]] = Recipe
    needs_checkpoint: ClassVar[bool] = False
    data_format: ClassVar[Format] = TEXT
    sample_data: ClassVar[SampleData] = TEXT_DATA
    metric_names: ClassVar[tuple[str, ...]] = ("place",)

    def __init__(self, recipe: Recipe) -> None:
        self.value: Callable[[int, int], float] = lambda step, micro: step + micro
        """Gives the loss from the step and the micro-batch in it, both counted from 0."""
        self.val_value: Callable[[int], float] = lambda steps: 1.0
        """Gives the validation loss, to which the micro-batch's number is added."""
        self.num_updates = 1
        """The number of updates in a step, all on the same micro-batches."""
        self.update = 0
        self.prepared: list[int] = []
        self.found: dict[str, float] = {}
        self.drawn: list[float] = []
        """A random number drawn in each forward, where dropout would draw."""
        self.with_gradient: list[bool] = []
        """For each forward in validation, whether autograd recorded it."""

    def build_models(self, context: BuildContext) -> StageModels:
        raise NotImplementedError

    def prepare(
        self, engine: DeepSpeedEngine, micro_batches: list[Batch], step: int
    ) -> Iterator[list[Batch]]:
        self.prepared.append(step)
        for update in range(self.num_updates):
            self.update = update
            yield micro_batches

    def measured(self) -> Mapping[str, float]:
        return self.found

    def loss(self, policy: Any, batch: Batch) -> LossSum:
        step, micro = batch.ids_BT[0, :2].tolist()
        if policy.training:
            self.drawn.append(torch.rand(()).item())
            value = self.value(step, micro) + UPDATE * self.update
        else:
            self.with_gradient.append(torch.is_grad_enabled())
            value = self.val_value(policy.steps) + micro
        count = batch.num_targets
        total, place = torch.tensor([value * count, micro * count], dtype=torch.float32)
        return LossSum(total=total, metrics={"place": place})


def interrupted_at(
    step: int, micro: int, number: int = signal.SIGINT
) -> Callable[[int, int], float]:
    """Gives a stage's loss function, in which the signal arrives at one micro-batch."""

    def value(*place: int) -> float:
        if place == (step, micro):
            signal.raise_signal(number)
        return sum(place)

    return value


def bad_at(step: int, micro: int, bad: float) -> Callable[[int, int], float]:
    """Gives a stage's loss function, which returns `bad` for one micro-batch."""
    return lambda *place: bad if place == (step, micro) else sum(place)


def full_disk(*steps: int) -> Callable[[int], None]:
    """Gives a function that fails the first save after each of the steps."""
    left = list(steps)

    def save(step: int) -> None:
        if step in left:
            left.remove(step)
            raise TrainingError(f"the disk is full at {step}")

    return save


EVAL_DATA = (micro_batch(0, 0), micro_batch(0, 1))


class Trial:
    """Builds a loop over fakes and records what it did. Recipe options that are not given are 0,
    which means never."""

    def __init__(
        self,
        *,
        engine: FakeEngine | None = None,
        state: RunState | None = None,
        learning_rate: Callable[[int], float] | None = lambda step: 1.0 / (1 + step),
        eval_data: Sequence[Batch] | None = EVAL_DATA,
        total_steps: int = STEPS,
        **options: Any,
    ) -> None:
        recipe = Recipe(**({"eval_every": 0, "save_every": 0, "sample_every": 0} | options))
        self.engine = engine or FakeEngine()
        self.stage, self.loader = FakeStage(recipe), FakeLoader()
        self.did: list[tuple[Any, ...]] = []
        """What happened, in order: record STEP VAL_LOSS, save STEP IS_BEST, sample STEP."""
        self.stats: list[StepStats] = []
        self.saved = RunState()
        """The state that was last saved."""
        self.during_save: Callable[[int], None] = lambda step: None
        progress = Progress(is_main=True, first_step=0, total_steps=total_steps, log_every=1)
        self.loop = Loop(
            stage=self.stage,
            engine=self.engine.typed,
            loader=self.loader,
            recipe=recipe,
            learning_rate=learning_rate,
            total_steps=total_steps,
            callbacks=Callbacks(
                record=self._record,
                save=self._save,
                sample=self._sample,
                update=progress.update,
                say=progress.say,
            ),
            eval_data=eval_data,
            state=state or RunState(),
        )

    def _record(self, stats: StepStats, val_loss: float | None) -> None:
        self.stats.append(stats)
        self.did.append(("record", stats.step, val_loss))

    def _save(self, state: RunState, is_best: bool) -> None:
        self.during_save(state.step)
        self.saved = replace(state)
        self.did.append(("save", state.step, is_best))

    def _sample(self, module: nn.Module, step: int) -> None:
        assert self.engine.is_gathered
        assert module is self.engine.module
        self.did.append(("sample", step))

    def steps(self, what: str) -> list[int]:
        """Gives the steps after which `what` happened."""
        return [step for event, step, *_ in self.did if event == what]
