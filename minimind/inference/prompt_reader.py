"""Computes log-probabilities and embeddings of a given text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import minimind_kernels as K
import numpy as np
import torch
from torch import Tensor

from minimind.data.collate import collate
from minimind.data.packing import build_row
from minimind.errors import ConfigError
from minimind.inference.logprobs import TokenLogprob
from minimind.lora.loaded import LoadedAdapters
from minimind.model.transformer import Transformer
from minimind.types import Batch, HeadFn

_ROW_TOKENS = 1024
"""The number of tokens whose logits are held at the same time."""


class PromptReader:
    """Runs one forward over a whole text, without the cache. It switches the model's adapters, so
    only the thread that steps the engine over the same model may use it."""

    def __init__(self, model: Transformer, adapters: LoadedAdapters | None = None) -> None:
        self._model, self._adapters = model, adapters

    @torch.no_grad()
    def logprobs(
        self, ids: Sequence[int], num_top: int, adapter: str | None = None
    ) -> list[TokenLogprob]:
        """Gives the log-probability of each token after those before it; the first has NaN. Raises
        ConfigError for an id beyond the vocabulary."""
        found = [TokenLogprob(id=ids[0], logprob=math.nan, top=())]
        labels_T = torch.tensor([*ids[1:], 0], device=self._model.lm_head.weight.device)

        def head(hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
            parts = []
            for hidden_RD, labels_R in zip(
                hidden_TD.split(_ROW_TOKENS), labels_T.split(_ROW_TOKENS), strict=True
            ):
                logits_RV = (hidden_RD @ weight_VD.t()).float()
                top = logits_RV.topk(num_top)
                chosen = K.linear_log_prob(hidden_RD, weight_VD, labels_R)[:, None]
                # Computed as a difference from the chosen token's, so that a likeliest token that
                # is the chosen one gets the very same number.
                label_R1 = logits_RV.gather(1, labels_R[:, None])
                parts.append(
                    torch.cat([chosen, top.values - label_R1 + chosen, top.indices], 1).double()
                )
            return torch.cat(parts)

        numbers = self._read(ids, head, adapter).tolist()
        for id, (logprob, *rest) in zip(ids[1:], numbers, strict=False):
            values, likely = rest[:num_top], rest[num_top:]
            top = tuple(zip(map(int, likely), values, strict=True))
            found.append(TokenLogprob(id=id, logprob=logprob, top=top))
        return found

    @torch.no_grad()
    def embedding(self, ids: Sequence[int], adapter: str | None = None) -> list[float]:
        """Gives the mean of the hidden states that enter the output head, scaled to length 1: [D].
        Raises ConfigError for an id beyond the vocabulary."""

        def head(hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
            return torch.nn.functional.normalize(hidden_TD.float().mean(0), dim=0)

        return self._read(ids, head, adapter).tolist()

    def _read(self, ids: Sequence[int], head: HeadFn, adapter: str | None) -> Tensor:
        size = self._model.config.vocab_size
        if max(ids) >= size:
            raise ConfigError(
                f"the text holds the token {max(ids)}; the model's are 0 to {size - 1}"
            )
        if self._adapters is not None:
            self._adapters.switch_to(adapter)
        return self._model(_one_document(ids).to(self._model.lm_head.weight.device), head).per_token


def _one_document(ids: Sequence[int]) -> Batch:
    row = build_row([(np.array(ids, dtype=np.int64), None)], len(ids), pad_id=0)
    return collate([row])
