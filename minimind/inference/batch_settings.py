"""Sorts a batch's sampling settings: from them the host decides which operators run, and the device
reads the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind.inference.sampling import SamplingParams
from minimind.runtime.devices import send

LIKELY = 256
"""The number of likeliest tokens that are sorted for top-p at first; they almost always reach it,
and sorting them is faster than sorting all."""
_TINY = torch.finfo(torch.float32).tiny
"""Replaces a temperature that fp32 would round to 0."""


def _limit(params: SamplingParams, vocab_size: int) -> int:
    return params.top_k if 0 < params.top_k < vocab_size else 0


def _divisor(params: SamplingParams) -> float:
    return params.temperature if params.tempered_logprobs and params.temperature > 0 else 1.0


_NUMBERS: dict[str, Callable[[SamplingParams, int], float]] = {
    "is_drawn": lambda one, _: one.temperature > 0,
    "temperature": lambda one, _: max(one.temperature, _TINY) if one.temperature > 0 else 1.0,
    "top_k": _limit,
    "top_p": lambda one, _: one.top_p,
    "min_p": lambda one, _: one.min_p,
    "repetition_penalty": lambda one, _: one.repetition_penalty,
    "presence_penalty": lambda one, _: one.presence_penalty,
    "frequency_penalty": lambda one, _: one.frequency_penalty,
    "divisor": lambda one, _: _divisor(one),
}
"""The numbers that the device reads; each function computes one from a sequence's settings and the
vocabulary's size."""
COLUMNS = ("slot", "source", *_NUMBERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedSettings:
    """Says which settings at least one row of a batch uses. It decides which operators choose the
    tokens, so each CUDA graph is for one value of UsedSettings."""

    has_greedy: bool
    has_drawn: bool
    temperature: bool
    """True where a drawn row's temperature is not 1."""
    top_k: int
    """The largest top-k in the batch; 0 where no row has one."""
    top_p: int
    """The number of likeliest tokens that are sorted for top-p; 0 where no row has one."""
    looks: bool
    """True where the host checks whether the `top_p` sorted tokens were enough, and has all tokens
    sorted if they were not."""
    min_p: bool
    penalties: bool
    bias: bool
    grammar: bool
    logprobs: int | None
    """The number of likeliest tokens that are reported beside the chosen one; None where no row
    reports any."""
    divides: bool
    """True where log-probabilities are reported at a temperature other than 1."""

    @classmethod
    def by(cls, params: Sequence[SamplingParams], vocab_size: int, *, waits: bool) -> UsedSettings:
        """Collects the rows' settings. With `waits` the host may wait to read the device's numbers;
        without, sizes are rounded up to powers of two to keep the graphs few."""
        drawn = [one for one in params if one.temperature > 0]
        limits = [_limit(one, vocab_size) for one in drawn]
        top_k = max(limits, default=0)
        reported = [one for one in params if one.logprobs is not None]
        most = max((one.logprobs or 0 for one in reported), default=0)
        if not waits:
            top_k, most = (round_up(count) if count else 0 for count in (top_k, most))
            top_k = min(top_k, vocab_size)
        likely = LIKELY if waits else top_k if all(limits) else vocab_size
        uses_top_p = any(one.top_p < 1.0 for one in drawn)
        return cls(
            has_greedy=len(drawn) < len(params),
            has_drawn=bool(drawn),
            temperature=any(one.temperature != 1.0 for one in drawn),
            top_k=top_k,
            top_p=min(likely, vocab_size) if uses_top_p else 0,
            looks=waits,
            min_p=any(one.min_p > 0.0 for one in drawn),
            penalties=any(one.penalizes for one in params),
            bias=any(one.logit_bias for one in params),
            grammar=any(one.grammar is not None for one in params),
            logprobs=min(most, vocab_size) if reported else None,
            divides=any(_divisor(one) != 1.0 for one in reported),
        )


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Selects rows of a batch, with their settings."""

    numbers_CR: Tensor
    """fp32 settings, one row of numbers for each of COLUMNS."""
    index_R: Tensor | None = None
    """The rows' indices in the batch; None: all rows."""
    is_one_R: Tensor | None = None
    """A bool mask of the rows, which only the device can read; None: all rows."""

    def column(self, name: str) -> Tensor:
        return self.numbers_CR[COLUMNS.index(name)]

    def whole_column(self, name: str) -> Tensor:
        """Gives the setting `name` as int64."""
        return self.column(name).long()

    def take(self, x_B: Tensor) -> Tensor:
        """Gives these rows of a batch's tensor."""
        return x_B if self.index_R is None else x_B[self.index_R]

    def put(self, x_B: Tensor, new_R: Tensor) -> Tensor:
        """Gives the batch's tensor with these rows replaced."""
        if self.index_R is not None:
            return x_B.index_copy(0, self.index_R, new_R)
        return new_R if self.is_one_R is None else torch.where(self.is_one_R, new_R, x_B)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Groups a batch's rows by the settings that they use. Where the host may not wait, each group
    holds all rows, with settings that change nothing in the rows outside it."""

    used: UsedSettings
    drawn: RowGroup
    penalized: RowGroup
    biased: RowGroup
    held: RowGroup
    """The rows that a grammar constrains."""
    reported: RowGroup
    source_B: Tensor | None = None
    """The row whose token each row takes, where filler rows repeat the first one; None: each row
    takes its own."""

    @classmethod
    def build(
        cls,
        params: Sequence[SamplingParams],
        slots: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> BatchSettings:
        """Groups the rows, each group holding only the rows that use its setting."""
        numbers_CB = send(setting_numbers(params, slots, vocab_size, len(params)), device)

        def rows(is_one: Sequence[bool]) -> RowGroup:
            if all(is_one) or not any(is_one):
                return RowGroup(numbers_CB)
            index_R = send([i for i, one in enumerate(is_one) if one], device)
            return RowGroup(numbers_CB[:, index_R], index_R)

        return cls(
            UsedSettings.by(params, vocab_size, waits=True),
            drawn=rows([one.temperature > 0 for one in params]),
            penalized=rows([one.penalizes for one in params]),
            biased=rows([bool(one.logit_bias) for one in params]),
            held=rows([one.grammar is not None for one in params]),
            reported=rows([one.logprobs is not None for one in params]),
        )

    @classmethod
    def over(cls, numbers_CB: Tensor, used: UsedSettings) -> BatchSettings:
        """Groups rows whose numbers only the device can read."""
        rows = RowGroup(numbers_CB)
        drawn = RowGroup(numbers_CB, is_one_R=rows.column("is_drawn") > 0)
        kinds = dict.fromkeys(("penalized", "biased", "held", "reported"), rows)
        return cls(used, drawn, **kinds, source_B=rows.whole_column("source"))


def setting_numbers(
    params: Sequence[SamplingParams], slots: Sequence[int], vocab_size: int, batch: int
) -> list[list[float]]:
    """Builds one list of numbers for each of COLUMNS. Rows beyond the sequences, up to `batch`,
    repeat the first."""
    rows = [
        [slot, row, *(read(one, vocab_size) for read in _NUMBERS.values())]
        for row, (slot, one) in enumerate(zip(slots, params, strict=True))
    ]
    rows += rows[:1] * (batch - len(rows))
    return [[float(value) for value in column] for column in zip(*rows, strict=True)]


def round_up(number: int) -> int:
    """Rounds up to the next power of two."""
    return 1 << (number - 1).bit_length()
