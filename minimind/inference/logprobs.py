"""Log-probabilities to report beside chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural logarithm of a token's probability under the model itself, before penalties,
    temperature and filters; those of the likeliest tokens beside it, likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(id, logprob)."""


def token_logprobs(
    logits_BV: Tensor, chosen_B: Tensor, counts: Sequence[int | None]
) -> list[TokenLogprob | None]:
    """For each row the chosen token and so many of the likeliest; None where the count is None."""
    rows = [i for i, count in enumerate(counts) if count is not None]
    found: list[TokenLogprob | None] = [None] * len(counts)
    if not rows:
        return found
    at = torch.tensor(rows, device=logits_BV.device)
    # Below 0 stands for no token: what is said of it nobody reads.
    logprobs_BV, ids_B = logits_BV[at].log_softmax(-1), chosen_B[at].clamp_min(0)
    most = min(max(count or 0 for count in counts), logits_BV.shape[1])
    top_values, top_ids = (x.tolist() for x in logprobs_BV.topk(most))
    values = logprobs_BV.gather(1, ids_B[:, None]).squeeze(1).tolist()
    for i, (row, id, value) in enumerate(zip(rows, ids_B.tolist(), values, strict=True)):
        top = tuple(zip(top_ids[i], top_values[i], strict=True))[: counts[row]]
        found[row] = TokenLogprob(id=id, logprob=value, top=top)
    return found
