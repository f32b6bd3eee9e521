"""Defines the interfaces of a training objective and of a data loader, as the loop uses them."""

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
from minimind.types import Batch, BatchT, HeadFn, LossSum, ModelOutput

if TYPE_CHECKING:
    from minimind.engine.deepspeed_engine import DeepSpeedEngine

InT = TypeVar("InT", bound=Batch)
"""The type of the batches that the loader gives."""
OutT = TypeVar("OutT", bound=Batch)
"""The type of the batches that the loss takes: the loader's, unless `Stage.prepare` makes
others."""


class Policy(Protocol):
    """Runs the trained model inside its engine: a forward that ends in `head`."""

    def __call__(self, batch: Batch, head: HeadFn) -> ModelOutput: ...


SaveTrained = Callable[[Path, Mapping[str, Tensor]], Path]
"""Takes a checkpoint's folder and the trained fp32 weights by name, writes them into a folder
inside it, and returns that folder, to which the tokenizer is then added."""


@dataclass(frozen=True, slots=True)
class StageModels:
    """Holds the module that the engine trains, and frozen helpers (a teacher, a reference)."""

    policy: nn.Module
    helpers: tuple[nn.Module, ...] = ()
    save: SaveTrained | None = None
    """Saves a policy that is not a complete model. None: the trained weights are a complete model
    and go to `model/`."""
    finish: Callable[[Path], None] | None = None
    """Called on rank 0 with the run's folder when all steps are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """Holds all that a stage may build its models from."""

    config: ModelConfig
    weights: Mapping[str, Tensor] | None = None
    """Parameters by name to start from (model/state_dict.py). None: fresh weights, or a resumed
    run, whose weights come from its checkpoint."""
    weights_folder: Path | None = None
    """The model folder that the run started from; also set when it is resumed."""
    checkpoint: Path | None = None
    """The checkpoint that a resumed run continues."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """The dtype in which the engine computes; frozen helpers use it too."""
    tokenizer: Tokenizer | None = None
    """The run's tokenizer; a helper must give the same tokens the same ids."""
    loader: Loader[Any] | None = None
    eval_data: Iterable[Any] | None = None


class Loader(Protocol[BatchT]):
    """Gives the batches of any optimizer step, so that a resumed run needs no reader's state."""

    @property
    def fingerprint(self) -> str:
        """Identifies the data, the tokenizer and the packing, which must be the same when a run is
        resumed."""
        ...

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[BatchT]]:
        """Yields this rank's micro-batches of each step, read ahead in the background."""
        ...

    def describe(self, step: int, micro: int) -> list[str]:
        """Gives `file:line` of every document in one of this rank's micro-batches."""
        ...


class Stage(Protocol[InT, OutT]):
    """Defines a training objective. The loop decides when each part runs, the engine holds weights
    and optimizer, the stage defines the loss.

    The `count` of a batch is the number of targets, pairs or answers that the loss sums over.
    """

    name: ClassVar[str]
    recipe_type: ClassVar[type[Recipe]]
    needs_checkpoint: ClassVar[bool]
    """True where the stage starts from trained weights."""
    may_start_fresh: ClassVar[bool] = True
    """True where a stage that needs a checkpoint takes fresh weights if the user asks for them."""
    data_format: ClassVar[Format]
    sample_data: ClassVar[SampleData]
    """The sample data that the stage uses without --data."""
    is_static: ClassVar[bool] = False
    """True where the loss reads no value on the host that differs between two batches of the same
    shape, so that it can be captured as a CUDA graph."""
    metric_names: ClassVar[tuple[str, ...]]
    """The names of its LossSums' metrics, which are columns of metrics.csv."""

    def __init__(self, recipe: Any) -> None: ...

    def check(self, context: BuildContext) -> None:
        """Raises a MiniMindError where `build_models` could not build. Reads no weights and no
        data, so that a dry run can call it."""
        return

    def helper_folder(self, context: BuildContext) -> Path | None:
        """Gives the model folder of the helper (a teacher or reference), whose weights must be the
        same when the run is resumed; None without a helper."""
        return None

    def check_data(self, batches: Iterable[InT]) -> None:
        """Raises ConfigError for training data with targets from which nothing can be learned.
        `batches` are those of an epoch; it reads them until it has found something to learn
        from."""
        return

    def outline(self, config: ModelConfig) -> nn.Module:
        """Builds the policy with its parameters' names and shapes, without storage."""
        with torch.device("meta"):
            return Transformer(config)

    def build_models(self, context: BuildContext) -> StageModels: ...

    def prepare(
        self, engine: DeepSpeedEngine, micro_batches: list[InT], step: int
    ) -> Iterable[list[OutT]]:
        """Yields the micro-batches of each update of step `step` (from 0): the loader's own, or
        batches made from them (rollouts, repeated over epochs; a baseline added to each). Yields no
        update where there is nothing to learn; otherwise each update has as many micro-batches as
        the loader gave. All ranks call it."""
        yield cast(list[OutT], micro_batches)

    @property
    def measured_names(self) -> tuple[str, ...]:
        """Gives the names of the values of `measured`, which are columns of metrics.csv."""
        return ()

    def measured(self) -> Mapping[str, float]:
        """Gives the stage's own measures of the step just taken, besides its losses, over all
        ranks. All ranks call it, once a step."""
        return {}

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Gives the texts that the stage last generated, each with a `prompt`, a `completion` and
        numbers about it, for samples.jsonl. Empty where the stage generates none; then the run
        generates samples itself."""
        return ()

    def loss(self, policy: Policy, batch: OutT) -> LossSum:
        """Computes the loss of a micro-batch. It calls policy(batch, head=…), never the module
        inside the engine."""
        ...

    def evaluate(
        self, engine: DeepSpeedEngine, batches: Iterable[InT]
    ) -> Iterator[tuple[Batch, LossSum]]:
        """Yields each of this rank's validation batches with the LossSum to report, by default the
        loss. `batches` can be read more than once. Runs on all ranks, without gradient and with the
        policy in eval mode."""
        for batch in batches:
            yield batch, self.loss(engine, cast(OutT, batch))

    def describe_validation(self, val_loss: float) -> str:
        """Gives the console's words for `val_loss`, the mean over all that `evaluate` counted."""
        return f"validation loss {val_loss:.4f}"
