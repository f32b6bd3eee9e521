"""What a training objective is to the loop, and what feeds it."""

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
"""The batches that the loss takes: the loader's, unless `Stage.prepare` makes others of them."""


class Policy(Protocol):
    """The trained model inside its engine."""

    def __call__(self, batch: Batch, head: HeadFn) -> ModelOutput: ...


SaveTrained = Callable[[Path, Mapping[str, Tensor]], Path]
"""(a checkpoint's folder, the trained weights in fp32 by name) -> the folder written in it, which
the tokenizer then joins."""


@dataclass(frozen=True, slots=True)
class StageModels:
    """The module the engine trains, and frozen helpers (a teacher, a reference) beside it."""

    policy: nn.Module
    helpers: tuple[nn.Module, ...] = ()
    save: SaveTrained | None = None
    """For a policy that is no whole model; None: the trained weights are one, saved in `model/`."""
    finish: Callable[[Path], None] | None = None
    """Called on rank 0 with the run's folder, once all steps are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """What a stage may build its models from."""

    config: ModelConfig
    weights: Mapping[str, Tensor] | None = None
    """Named parameters to start from (model/state_dict.py); None: fresh ones, or a run that is
    resumed and reads them from its checkpoint."""
    weights_folder: Path | None = None
    """The model folder that the run starts from; set on resuming too."""
    checkpoint: Path | None = None
    """The checkpoint that a resumed run goes on from."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """What the engine computes in: for frozen helpers beside it."""
    tokenizer: Tokenizer | None = None
    """The run's own: a helper beside the policy must read the same ids."""
    loader: Loader[Any] | None = None
    eval_data: Iterable[Any] | None = None


class Loader(Protocol[BatchT]):
    """Random access by optimizer step, so that a resumed run needs no reader's state."""

    @property
    def fingerprint(self) -> str:
        """Of the data, the tokenizer and the packing: a resumed run must find the same."""
        ...

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[BatchT]]:
        """This rank's micro-batches of each step, read ahead in the background."""
        ...

    def describe(self, step: int, micro: int) -> list[str]:
        """`file:line` of every document of one of this rank's micro-batches."""
        ...


class Stage(Protocol[InT, OutT]):
    """A training objective. The loop owns time, the engine memory, the stage meaning.

    What its loss counts (targets, pairs, answers) is its batches' `count`, and nothing else's.
    """

    name: ClassVar[str]
    recipe_type: ClassVar[type[Recipe]]
    needs_checkpoint: ClassVar[bool]
    """Whether it starts from trained weights."""
    may_start_fresh: ClassVar[bool] = True
    """Whether it then takes fresh weights where the user asks for them."""
    data_format: ClassVar[Format]
    sample_data: ClassVar[SampleData]
    """The project's own data that it takes without --data."""
    is_static: ClassVar[bool] = False
    """Whether its loss asks the host for nothing in which two batches of one shape differ, so that
    it can be captured as a CUDA graph."""
    metric_names: ClassVar[tuple[str, ...]]
    """What its LossSums carry besides the loss; columns of metrics.csv."""

    def __init__(self, recipe: Any) -> None: ...

    def check(self, context: BuildContext) -> None:
        """Raises a MiniMindError for what `build_models` could not build, without reading weights
        or data: for a dry run, and before anything else of a run."""
        return

    def helper_folder(self, context: BuildContext) -> Path | None:
        """The model folder of what the policy is trained beside (a teacher, a reference), which a
        resumed run must find unchanged; None where there is none."""
        return None

    def check_data(self, batches: Iterable[InT]) -> None:
        """Raises ConfigError for training data of which the objective learns nothing, though there
        is something to count. `batches`: an epoch's, to be read as far as it takes to know."""
        return

    def outline(self, config: ModelConfig) -> nn.Module:
        """Gives the policy's parameters by name and shape, without storage."""
        with torch.device("meta"):
            return Transformer(config)

    def build_models(self, context: BuildContext) -> StageModels: ...

    def prepare(
        self, engine: DeepSpeedEngine, micro_batches: list[InT], step: int
    ) -> Iterable[list[OutT]]:
        """Yields the micro-batches of each update that the run's step number `step` (from 0)
        takes: those of the loader themselves, or what is made of them (rollouts x epochs, a
        baseline beside each). No update where there is nothing to learn, else as many micro-batches
        in each as the loader gave. All ranks call it."""
        yield cast(list[OutT], micro_batches)

    @property
    def measured_names(self) -> tuple[str, ...]:
        """Names what `measured` gives; columns of metrics.csv."""
        return ()

    def measured(self) -> Mapping[str, float]:
        """Gives what the stage knows of the step just taken besides its losses, over all ranks. All
        ranks call it, once a step."""
        return {}

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Gives what the stage generated last, for a reader: each with a `prompt`, a `completion`
        and numbers about it. Empty where it generates nothing; then the loop's owner samples."""
        return ()

    def loss(self, policy: Policy, batch: OutT) -> LossSum:
        """Calls policy(batch, head=…): the engine, never the module in it."""
        ...

    def evaluate(
        self, engine: DeepSpeedEngine, batches: Iterable[InT]
    ) -> Iterator[tuple[Batch, LossSum]]:
        """Yields each of this rank's validation batches with what is reported of it: the loss,
        unless a stage says otherwise. `batches` can be read more than once. Runs on all ranks,
        without gradient and with the policy in eval mode."""
        for batch in batches:
            yield batch, self.loss(engine, cast(OutT, batch))
