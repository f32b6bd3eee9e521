"""Computes the log-probabilities that a model gives to given texts, many texts at a time in packed
rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import minimind_kernels as K
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minimind.data.collate import collate_units
from minimind.data.packing import build_row, plan_packing
from minimind.errors import DataError
from minimind.model.transformer import Transformer
from minimind.types import Batch, Sample

_ROW_TOKENS = 1024
_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Scores:
    """Holds a model's scores for each document."""

    log_probs: np.ndarray
    """float64: the sum of the targets' log-probabilities."""
    is_greedy: np.ndarray
    """bool: every target was the likeliest token at its position."""


@torch.no_grad()
def batch_log_probs(model: Transformer, batch: Batch) -> Tensor:
    """Gives the log-probability of each label, fp32 [B·T]; 0 where a position has no label."""
    labels_M = batch.labels_BT.flatten()

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        return K.linear_log_prob(hidden_MD, weight_VD, labels_M)

    return model(batch, head).per_token


@torch.no_grad()
def _batch_scores(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gives the log-probability of each label, fp32 [B·T], and whether the label is the likeliest
    token, bool [B·T]."""
    labels_M = batch.labels_BT.flatten()
    likeliest_M = torch.empty_like(labels_M)

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        for rows in torch.arange(len(labels_M), device=labels_M.device).split(_ROW_TOKENS):
            likeliest_M[rows] = (hidden_MD[rows] @ weight_VD.t()).argmax(-1)
        return K.linear_log_prob(hidden_MD, weight_VD, labels_M)

    log_probs_M = model(batch, head).per_token
    return log_probs_M, (likeliest_M == labels_M) | (labels_M < 0)


def score_documents(
    model: Transformer, samples: Sequence[Sample], *, pad_id: int, progress: str = ""
) -> Scores:
    """Scores whole documents, packed into rows as in training. `progress` is the label of the
    progress bar ("" for none). Raises DataError for a document longer than the model's context."""
    context = model.config.max_position_embeddings
    lengths = np.array([len(sample.ids) for sample in samples], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    if longest > context:
        raise DataError(
            f"document {int(lengths.argmax()) + 1} has {longest} tokens, the model's context "
            f"{context}: shorten it or give fewer examples before it"
        )
    log_probs = np.zeros(len(samples))
    is_greedy = np.ones(len(samples), dtype=bool)
    plan = plan_packing(lengths, max(longest, min(_ROW_TOKENS, context), 2))
    most_in_row = int(np.diff(plan.row_offsets).max(initial=0))
    rows_each = max(1, _BATCH_TOKENS // plan.seq_len)
    device = model.lm_head.weight.device
    disable = None if progress else True
    with tqdm(total=len(samples), desc=progress, unit="text", disable=disable) as bar:
        for first in range(0, plan.num_rows, rows_each):
            rows = []
            for start, stop in itertools.pairwise(plan.row_offsets[first : first + rows_each + 1]):
                numbers = plan.piece_doc[start:stop].tolist()
                pieces = [(samples[number].ids, samples[number].is_target) for number in numbers]
                rows.append(build_row(pieces, plan.seq_len, pad_id, numbers))
            batch = collate_units(rows, most_in_row, needs_targets=False)
            found = _batch_scores(model, batch.to(device))
            values_M, greedy_M = (x.cpu().numpy() for x in found)
            place_M, number_P = batch.doc_M.numpy(), batch.unit_ids_P.numpy()
            sums_P = np.bincount(place_M, values_M.astype(np.float64), len(number_P) + 1)[:-1]
            misses_P = np.bincount(place_M, ~greedy_M, len(number_P) + 1)[:-1]
            is_used_P = number_P >= 0
            log_probs[number_P[is_used_P]] = sums_P[is_used_P]
            is_greedy[number_P[is_used_P]] = misses_P[is_used_P] == 0
            bar.update(batch.num_units)
    return Scores(log_probs, is_greedy)


def continuation(prompt_ids: Iterable[int], ids: Iterable[int]) -> Sample:
    """Gives a document in which only `ids`, the part after the prompt, are targets."""
    before, after = list(prompt_ids), list(ids)
    is_target = np.zeros(len(before) + len(after), dtype=bool)
    is_target[len(before) :] = True
    return Sample(ids=np.array(before + after, dtype=np.int32), is_target=is_target)
