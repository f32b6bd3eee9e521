"""Defines the types at each border of the data flow.

Shapes: a tensor or array whose rank matters ends in its dimensions, as in `q_BTNH`: B batch rows, T
tokens of a row, D hidden size, N query heads, K key/value heads, H head size, F feed-forward size,
V vocabulary, E experts, S experts per token, L tokens of a document.
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
"""The label of a position that is no target (PyTorch's and Hugging Face's value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Holds one JSON object of a data file, and where it stands."""

    data: dict[str, Any]
    path: str
    line: int
    """From 1: where the row begins, or in a file whose rows are no lines its number."""
    unit: str = "line"
    """What `line` counts: "line", or "row" in a JSON array and in Parquet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Holds one tokenised document. Nothing is shifted yet: is_target[t] says that ids[t] is to be
    predicted, from ids[:t]."""

    ids: np.ndarray
    """int32 [L], each below the vocabulary size."""
    is_target: np.ndarray
    """bool [L]."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's further values, by the names of its format's `columns`."""
    unread: tuple[str, ...] = ()
    """Parts of the row that are not in the tokens, each named as a report has it."""

    @property
    def documents(self) -> tuple[Sample, ...]:
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSample:
    """Holds a conversation with a better and a worse answer, each tokenised whole."""

    chosen: Sample
    rejected: Sample
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The same as Sample.meta."""
    unread: tuple[str, ...] = ()
    """The same as Sample.unread."""

    @property
    def documents(self) -> tuple[Sample, ...]:
        """Gives the two documents, which are packed and counted as one unit."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """Holds whole documents side by side in one row of T tokens, padded at its end."""

    ids_T: np.ndarray
    """int64; the padding id in the padding."""
    labels_T: np.ndarray
    """int64, already shifted: labels[t] = ids[t + 1] where that is a target, IGNORE_INDEX
    elsewhere and at each document's last token."""
    positions_T: np.ndarray
    """int64; restart at 0 in each document and in the padding."""
    doc_T: np.ndarray
    """int32; 0, 1, … by document, -1 in the padding."""
    units_U: np.ndarray
    """int64; the number in the epoch of each unit of documents (one document, or the two of a
    pair)."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The further values of each unit's row, by column: an array [U], or U texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Holds one micro-batch of packed rows, built (pinned, where there is a GPU) on the CPU."""

    ids_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor
    cu_seqlens: Tensor
    """int32 [documents + 1]: where each document starts in the B·T tokens laid flat, then B·T.
    A row's padding counts as a document of its own, so the documents cover every token."""
    bounds: tuple[int, ...]
    """The numbers of cu_seqlens on the host: code that lays documents out by their lengths need not
    wait for a GPU to copy them."""
    is_token_BT: Tensor
    """bool, False in the padding."""
    max_len: int
    """Tokens of the longest document (padding included), or any bound on it."""
    num_tokens: int
    """The number of tokens, padding not counted."""
    num_targets: int
    """Labels that are not IGNORE_INDEX."""

    @property
    def count(self) -> int:
        """Gives the number of things that a stage's loss sums over, by which the engine divides:
        targets."""
        return self.num_targets

    def to(self, device: torch.device) -> Self:
        """Gives the same batch on `device`; the copy is asynchronous from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def extend(self, kind: type[BatchT], **more: Any) -> BatchT:
        """Gives the same batch as a `kind` of batch with the further fields `more`."""
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
    """Holds a batch that knows its units: each one document, or the two of a pair. It has P places
    for them, the same number in every batch of a run."""

    documents_per_unit: int
    doc_M: Tensor
    """int64 [B·T]: K·p + k for the tokens of document k of the unit at place p, where a unit has K
    documents; K·P in the padding."""
    unit_ids_P: Tensor
    """int64: the unit's number in the epoch; -1 in a place that is free."""
    num_units: int
    """The number of places that are not free."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The further values of each unit's row, by column: a tensor [P], 0 in a free place, or P
    texts."""

    @property
    def count(self) -> int:
        """Gives the number of units that the loss sums over."""
        return self.num_units


HeadFn = Callable[[Tensor, Tensor], Tensor]
"""(hidden_MD, head_weight_VD) -> per-token results [M], M = B·T. Runs inside the model's forward,
where ZeRO-3 has the weight at hand; it must not return logits."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Holds what a policy returns for a batch. It has no slots, because ZeRO-3 reads its
    `__dict__`."""

    per_token: Tensor
    """The results of the stage's HeadFn: [B·T] fp32."""
    aux_loss: Tensor | None = None
    """fp32 scalar: the sum that the routers of a mixture of experts add to the loss of each target;
    None in a dense model and outside training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSum:
    """Holds a loss summed, not averaged, over `batch.count` things: the engine divides once, by the
    count over all ranks and micro-batches of the optimizer step. A mean of means would weight short
    batches too much."""

    total: Tensor
    """fp32 scalar with gradient."""
    aux_loss: Tensor | None = None
    """The model's own loss (ModelOutput.aux_loss): a mean, which counts `batch.count` times."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Further sums over the same count, detached, by the name they are logged under."""

    def objective(self, count: int) -> Tensor:
        """Gives the value to minimise: `total` plus `count` times aux_loss. `count` is the
        batch's."""
        return self.total if self.aux_loss is None else self.total + self.aux_loss * count


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """Holds the results of one optimizer step, read one step late so that nothing waits for the
    device."""

    step: int
    """The number of optimizer steps done, this one included."""
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    """Tokens without padding since the run began, over all ranks."""
    tokens_per_s: float
    peak_bytes: int
    resident_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    """Values that are logged like metrics, but not shown on the console."""
    expert_load: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """By layer, the share of its tokens that each expert took; empty in a dense model."""
