"""Log-probabilities to report beside chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind.inference.sampling import SamplingParams
from minimind.runtime.devices import send


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural logarithm of a token's probability under the model itself, before penalties,
    temperature and filters (with SamplingParams.tempered_logprobs after the temperature); those of
    the likeliest tokens beside it, likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(id, logprob)."""


def read_tokens(
    logits_BV: Tensor, chosen_B: Tensor, params: Sequence[SamplingParams]
) -> tuple[list[int], list[TokenLogprob | None]]:
    """Brings each row's chosen token to the host, in one transfer with its log-probability and
    those of the likeliest tokens where its `params` ask for them (else None)."""
    rows = [i for i, one in enumerate(params) if one.logprobs is not None]
    found: list[TokenLogprob | None] = [None] * len(params)
    if not rows:
        return chosen_B.tolist(), found
    asked = [params[i] for i in rows]
    if len(rows) < len(params):
        at = send(rows, logits_BV.device)
        logits_BV, ids_B = logits_BV[at], chosen_B[at]
    else:
        ids_B = chosen_B
    temperatures = [one.temperature if one.tempered_logprobs else 0.0 for one in asked]
    if any(value not in (0.0, 1.0) for value in temperatures):
        divisors = send([value or 1.0 for value in temperatures], logits_BV.device)
        logits_BV = logits_BV / divisors[:, None]
    logprobs_BV = logits_BV.log_softmax(-1)
    most = min(max(one.logprobs or 0 for one in asked), logits_BV.shape[1])
    # Below 0 stands for no token: what is said of it nobody reads.
    parts = [logprobs_BV.gather(1, ids_B.clamp_min(0)[:, None])]
    if most:
        parts += logprobs_BV.topk(most)
    # Numbers of tokens are exact in fp64.
    numbers = torch.cat([chosen_B.double(), *(part.double().flatten() for part in parts)]).tolist()
    chosen, numbers = [int(value) for value in numbers[: len(params)]], numbers[len(params) :]
    count = len(rows)
    for place, row in enumerate(rows):
        top = ()
        if wanted := min(asked[place].logprobs or 0, most):
            first = count + place * most
            values = numbers[first : first + wanted]
            ids = numbers[first + count * most : first + count * most + wanted]
            top = tuple(zip(map(int, ids), values, strict=True))
        found[row] = TokenLogprob(id=chosen[row], logprob=numbers[place], top=top)
    return chosen, found
