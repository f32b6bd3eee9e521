"""Defines the types at the borders between packages.

Shapes: the name of a tensor or array whose rank matters ends in its dimensions, as in `q_BTNH`: B
batch rows, T tokens of a row, D hidden size, N query heads, K key/value heads, H head size, F
feed-forward size, V vocabulary, E experts, S experts per token, L tokens of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

BatchT = TypeVar("BatchT", bound="Batch")

IGNORE_INDEX = -100
"""The label of a position that is no target; PyTorch and Hugging Face use the same value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Holds one JSON object of a data file, and its place there."""

    data: dict[str, Any]
    path: str
    line: int
    """The line on which the row begins, from 1; or its number, in a file whose rows are not
    lines."""
    unit: str = "line"
    """The unit that `line` counts: "line", or "row" in a JSON array and in Parquet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Holds one tokenised document. Targets are not shifted: is_target[t] says that ids[t] is to be
    predicted from ids[:t]."""

    ids: np.ndarray
    """int32 [L], each below the vocabulary size."""
    is_target: np.ndarray
    """bool [L]."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other values, by the names in its format's `columns`."""
    unread: tuple[str, ...] = ()
    """Descriptions of the row's parts that are not in the tokens."""

    @property
    def documents(self) -> tuple[Sample, ...]:
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSample:
    """Holds the better and the worse of two conversations, each tokenised as a whole."""

    chosen: Sample
    rejected: Sample
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The same as Sample.meta."""
    unread: tuple[str, ...] = ()
    """The same as Sample.unread."""

    @property
    def documents(self) -> tuple[Sample, ...]:
        """Gives the two documents, which are packed together and counted as one unit."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """Holds whole documents side by side in a row of T tokens, with padding at the end."""

    ids_T: np.ndarray
    """int64; the padding id in the padding."""
    labels_T: np.ndarray
    """int64, shifted: labels[t] = ids[t + 1] where that is a target; IGNORE_INDEX elsewhere, and at
    each document's last token."""
    positions_T: np.ndarray
    """int64; begin at 0 in each document, and in the padding."""
    doc_T: np.ndarray
    """int32: the document of each token, 0, 1, …; -1 in the padding."""
    units_U: np.ndarray
    """int64: the number within the epoch of each unit (a document, or the two of a pair)."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Other values of each unit's row, by column: an array [U], or U texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Holds a micro-batch of packed rows. It is built on the CPU, in page-locked memory if there is
    a GPU."""

    ids_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor
    cu_seqlens: Tensor
    """int32 [documents + 1]: where each document starts among the B·T tokens, and B·T at the end. A
    row's padding counts as a document, so that documents cover every token."""
    bounds: tuple[int, ...]
    """The values of cu_seqlens on the host, for code that lays out documents without waiting for a
    GPU."""
    is_token_BT: Tensor
    """bool, False in the padding."""
    max_len: int
    """The number of tokens of the longest document (padding counts as a document), or an upper
    bound of that number."""
    num_tokens: int
    """The number of tokens, padding not counted."""
    num_targets: int
    """The number of labels that are not IGNORE_INDEX."""

    @property
    def count(self) -> int:
        """Gives the number that the engine divides the summed loss by: here the targets, in
        subclasses pairs or answers."""
        return self.num_targets

    def to(self, device: torch.device) -> Self:
        """Gives the same batch on `device`. From page-locked memory the copy is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def extend(self, kind: type[BatchT], **more: Any) -> BatchT:
        """Gives the same batch as the subclass `kind`, whose further fields are `more`."""
        return kind(**{f.name: getattr(self, f.name) for f in fields(self)}, **more)

    def pin_memory(self) -> Self:
        return self._map(torch.Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> Self:
        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return move(value)
            if isinstance(value, Batch):
                return value._map(move)
            if isinstance(value, dict):
                return {name: moved(part) for name, part in value.items()}
            return value

        return replace(self, **{f.name: moved(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitBatch(Batch):
    """Holds a batch that knows its units: single documents, or the two of a pair. It has P places
    for units, as has every batch of the run."""

    documents_per_unit: int
    doc_M: Tensor
    """int64 [B·T]: K·p + k for a token of document k of the unit in place p, where a unit has K
    documents; K·P in the padding."""
    unit_ids_P: Tensor
    """int64: the number within the epoch of the unit in each place; -1 in a free place."""
    num_units: int
    """The number of places that hold a unit."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Other values of each unit's row, by column: a tensor [P], with 0 in a free place, or P
    texts."""

    @property
    def count(self) -> int:
        """Gives the number of units that the loss sums over."""
        return self.num_units


HeadFn = Callable[[Tensor, Tensor], Tensor]
"""(hidden_MD, head_weight_VD) -> a result for each of M = B·T tokens. It runs inside the model's
forward, where ZeRO-3 has gathered the weight, and must not return logits."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Holds what a policy returns for a batch. It has no slots because ZeRO-3 reads its
    `__dict__`."""

    per_token: Tensor
    """The results of the stage's HeadFn: fp32 [B·T]."""
    aux_loss: Tensor | None = None
    """fp32 scalar: the routers' auxiliary loss, to be added to the loss of each target; None in a
    dense model and outside training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSum:
    """Holds a loss that is summed, not averaged, over the `batch.count` targets, pairs or answers.
    The engine divides once, by the count of the whole optimizer step over all ranks and
    micro-batches: a mean of means would give short batches too much weight."""

    total: Tensor
    """fp32 scalar with gradient: the sum."""
    aux_loss: Tensor | None = None
    """The model's auxiliary loss (ModelOutput.aux_loss), a mean: it is multiplied by
    `batch.count`."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Other sums over the same count, detached, by the name under which they are logged."""

    def objective(self, count: int) -> Tensor:
        """Gives the value to minimise, `total` + `count`·aux_loss; `count` is the batch's."""
        return self.total if self.aux_loss is None else self.total + self.aux_loss * count


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """Holds the results of an optimizer step. They are read one step late, so that nothing waits
    for the device."""

    step: int
    """The number of optimizer steps done, this one included."""
    loss: float
    """The mean over the step's targets (or pairs, samples); NaN where it had none."""
    grad_norm: float
    learning_rate: float
    tokens: int
    """The tokens read since the run began, over all ranks, without padding."""
    tokens_per_s: float
    peak_bytes: int
    resident_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    """Values that are logged like metrics but not shown on the console."""
    expert_load: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """For each layer, the share of its tokens that each expert took; empty in a dense model."""
