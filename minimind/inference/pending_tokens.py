"""Carries chosen tokens and their log-probabilities from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.inference.batch_settings import BatchSettings, UsedSettings
from minimind.inference.generation import Generation
from minimind.inference.logprobs import TokenLogprob


def pack(logits_BV: Tensor, chosen_B: Tensor, settings: BatchSettings) -> Tensor:
    """Packs all numbers for the host into one tensor: each row's token; then, for each row of
    `settings.reported`, its log-probability, and ids and log-probabilities of the likeliest
    tokens."""
    most, rows = settings.used.logprobs, settings.reported
    if most is None:
        return chosen_B
    logits_RV = rows.take(logits_BV)
    if settings.used.divides:
        logits_RV = logits_RV / rows.column("divisor")[:, None]
    logprobs_RV = logits_RV.log_softmax(-1)
    # A token below 0 means none; its log-probability is never read.
    parts = [logprobs_RV.gather(1, rows.take(chosen_B).clamp_min(0)[:, None])]
    if most:
        values_RK, ids_RK = logprobs_RV.topk(most)
        parts += [ids_RK, values_RK]
    # Token ids are exact in fp64.
    reported_RN = torch.cat([part.double() for part in parts], 1)
    return torch.cat([chosen_B.double(), reported_RN.flatten()])


class PendingTokens:
    """Holds the tokens of one step. Making it waits for nothing; `read` waits for this step, not
    for later ones."""

    def __init__(
        self,
        packed: Tensor,
        batch: Sequence[Generation],
        used: UsedSettings,
        reported: Sequence[int] | None = None,
    ) -> None:
        """Takes `packed` as `pack` made it; its rows beyond `batch` are filler. `reported` lists
        the rows whose log-probabilities it holds; None means the rows that ask for them."""
        self._batch, self._most, self._reported = batch, used.logprobs, reported
        self._numbers = packed.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if packed.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[tuple[Generation, int, TokenLogprob | None]]:
        """Gives each sequence with its token (NO_TOKEN where its logits were not finite) and its
        log-probabilities, where its request asks for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers, batch = self._numbers.tolist(), self._batch
        tokens = [int(number) for number in numbers[: len(batch)]]
        found: list[TokenLogprob | None] = [None] * len(batch)
        if self._most is not None:
            self._read_logprobs(numbers, tokens, found, self._most)
        return list(zip(batch, tokens, found, strict=True))

    def _read_logprobs(
        self,
        numbers: Sequence[float],
        tokens: Sequence[int],
        found: list[TokenLogprob | None],
        most: int,
    ) -> None:
        asked = [one.request.params.logprobs for one in self._batch]
        reported = self._reported
        if reported is None:
            reported = [row for row, wanted in enumerate(asked) if wanted is not None]
        width = 1 + 2 * most
        first = len(numbers) - width * len(reported)
        for place, row in enumerate(reported):
            wanted = asked[row] if row < len(asked) else None
            if wanted is None:
                continue
            logprob, *rest = numbers[first + place * width : first + (place + 1) * width]
            ids, values = rest[:most][:wanted], rest[most:][:wanted]
            top = tuple(zip(map(int, ids), values, strict=True))
            found[row] = TokenLogprob(id=tokens[row], logprob=logprob, top=top)
