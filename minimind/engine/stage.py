"""Defines what a training objective, and the data that feeds it, are to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe
from minimind.data.formats import Format
from minimind.data.tokenizer import Tokenizer
from minimind.model.transformer import Transformer
from minimind.samples.files import SampleData
from minimind.types import Batch, HeadFn, LossSum, ModelOutput

if TYPE_CHECKING:
    from minimind.engine.deepspeed_engine import DeepSpeedEngine

BatchT = TypeVar("BatchT", bound=Batch)
InT = TypeVar("InT", bound=Batch)
"""The batches that the loader gives."""
OutT = TypeVar("OutT", bound=Batch)
"""The batches that the loss takes: the loader's, unless `Stage.prepare` makes others from them."""


class Policy(Protocol):
    """Represents the trained model inside its engine."""

    def __call__(self, batch: Batch, head: HeadFn) -> ModelOutput: ...


SaveTrained = Callable[[Path, Mapping[str, Tensor]], Path]
"""(a checkpoint's folder, the trained weights in fp32 by name) -> the folder written in it, to
which the tokenizer is then added."""


@dataclass(frozen=True, slots=True)
class StageModels:
    """Holds the module that the engine trains, and frozen helpers (a teacher, a reference)."""

    policy: nn.Module
    helpers: tuple[nn.Module, ...] = ()
    save: SaveTrained | None = None
    """Saves a policy that is not a whole model; None: the trained weights are a whole model, saved
    in `model/`."""
    finish: Callable[[Path], None] | None = None
    """Called on rank 0 with the run's folder, once all steps are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """Holds everything that a stage may build its models from."""

    config: ModelConfig
    weights: Mapping[str, Tensor] | None = None
    """Named parameters to start from (model/state_dict.py); None: fresh ones, or a resumed run,
    which reads them from its checkpoint."""
    weights_folder: Path | None = None
    """The model folder that the run starts from; set on resuming too."""
    checkpoint: Path | None = None
    """The checkpoint that a resumed run continues."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """The dtype in which the engine computes, also for frozen helpers."""
    tokenizer: Tokenizer | None = None
    """The run's tokenizer: a helper must read the same ids."""
    loader: Loader[Any] | None = None
    eval_data: Iterable[Any] | None = None


class Loader(Protocol[BatchT]):
    """Gives random access by optimizer step, so that a resumed run needs no reader's state."""

    @property
    def fingerprint(self) -> str:
        """Identifies the data, the tokenizer and the packing: a resumed run must find the same."""
        ...

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[BatchT]]:
        """Yields this rank's micro-batches of each step, read ahead in the background."""
        ...

    def describe(self, step: int, micro: int) -> list[str]:
        """Names `file:line` of every document of one of this rank's micro-batches."""
        ...


class Stage(Protocol[InT, OutT]):
    """Defines a training objective. The loop owns time, the engine memory, the stage meaning.

    Its batches' `count` alone says how many things (targets, pairs, answers) its loss sums over.
    """

    name: ClassVar[str]
    recipe_type: ClassVar[type[Recipe]]
    needs_checkpoint: ClassVar[bool]
    """Tells whether the stage starts from trained weights."""
    may_start_fresh: ClassVar[bool] = True
    """Tells whether such a stage takes fresh weights where the user asks for them."""
    data_format: ClassVar[Format]
    sample_data: ClassVar[SampleData]
    """Names the project's own data that the stage takes without --data."""
    is_static: ClassVar[bool] = False
    """Tells whether the loss reads no value on the host that differs between two batches of one
    shape, so that it can be captured as a CUDA graph."""
    metric_names: ClassVar[tuple[str, ...]]
    """Names the metrics of its LossSums besides the loss; columns of metrics.csv."""

    def __init__(self, recipe: Any) -> None: ...

    def check(self, context: BuildContext) -> None:
        """Raises a MiniMindError where `build_models` could not build, without reading weights or
        data: for a dry run, and before anything else of a run."""
        return

    def helper_folder(self, context: BuildContext) -> Path | None:
        """Gives the model folder of the helper (a teacher, a reference), which a resumed run must
        find unchanged; None without a helper."""
        return None

    def check_data(self, batches: Iterable[InT]) -> None:
        """Raises ConfigError for training data that has things to count but nothing to learn.
        `batches` are an epoch's; it reads them until it knows."""
        return

    def outline(self, config: ModelConfig) -> nn.Module:
        """Gives the policy's parameters by name and shape, without storage."""
        with torch.device("meta"):
            return Transformer(config)

    def build_models(self, context: BuildContext) -> StageModels: ...

    def prepare(
        self, engine: DeepSpeedEngine, micro_batches: list[InT], step: int
    ) -> Iterable[list[OutT]]:
        """Yields the micro-batches of each update that the run's step number `step` (from 0) takes:
        those of the loader themselves, or batches made from them (rollouts x epochs, a baseline
        added to each). It yields no update where there is nothing to learn, else as many
        micro-batches in each as the loader gave. All ranks call it."""
        yield cast(list[OutT], micro_batches)

    @property
    def measured_names(self) -> tuple[str, ...]:
        """Names the values of `measured`; columns of metrics.csv."""
        return ()

    def measured(self) -> Mapping[str, float]:
        """Gives the stage's own numbers of the step just taken besides its losses, over all ranks.
        All ranks call it, once a step."""
        return {}

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Gives the texts that the stage generated last, for a reader: each with a `prompt`, a
        `completion` and numbers about it. It is empty where the stage generates nothing; then the
        loop's owner samples."""
        return ()

    def loss(self, policy: Policy, batch: OutT) -> LossSum:
        """Computes the loss. It calls policy(batch, head=…): the engine, never the module in it."""
        ...

    def evaluate(
        self, engine: DeepSpeedEngine, batches: Iterable[InT]
    ) -> Iterator[tuple[Batch, LossSum]]:
        """Yields each of this rank's validation batches with the LossSum to report: that of the
        loss, unless a stage overrides it. `batches` can be read more than once. It runs on all
        ranks, without gradient and with the policy in eval mode."""
        for batch in batches:
            yield batch, self.loss(engine, cast(OutT, batch))
