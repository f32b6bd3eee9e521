"""Builds DPO over a small model, and computes its loss plainly, in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_models import logits_of, pack, small_config
from torch import Tensor, nn

from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.token_cache import TokenCache
from minimind.engine.stage import BuildContext
from minimind.samples.text import load_sample_tokenizer
from minimind.types import UnitBatch

TOKENIZER = load_sample_tokenizer()
CONFIG = small_config(vocab_size=TOKENIZER.vocab_size)
SEQ_LEN = 128
Cache = Callable[..., TokenCache]


def load(cache: TokenCache, micro_batch: int = 2, **options: int) -> PackedLoader:
    sizes: dict[str, Any] = {"rows_per_step": micro_batch, "micro_batch": micro_batch}
    return PackedLoader([WeightedSource(cache)], seq_len=SEQ_LEN, pad_id=0, **(sizes | options))


def context(folder: Path, loader: PackedLoader, eval_data: EvalLoader | None = None, **more: Any):
    return BuildContext(
        config=CONFIG, weights_folder=folder, loader=loader, eval_data=eval_data, **more
    )


def first_batch(loader: PackedLoader) -> UnitBatch:
    batch = next(iter(loader.all_batches()))
    assert isinstance(batch, UnitBatch)
    return batch


def plain_log_probs(model: nn.Module, loader: PackedLoader, batch: UnitBatch) -> list[Tensor]:
    """Of chosen and of rejected [P]: sums over targets and their numbers, in fp64, by a forward of
    its own for each side with every document in a padded row of its own."""
    sums, firsts = [], loader.rows.plan.piece_doc[::2]
    cache, _ = loader.rows.mixture.locate(0)
    for side in (0, 1):
        lens = [int((batch.doc_M == 2 * place + side).sum()) for place in used_places(batch)]
        numbers = [int(firsts[batch.unit_ids_P[place]]) + side for place in used_places(batch)]
        ids = [cache.tokens(n, 0, k).tolist() for n, k in zip(numbers, lens, strict=True)]
        padded = pack([[document] for document in ids], seq_len=max(lens) + 3)
        logits_BTV = logits_of(model, padded).unflatten(0, padded.ids_BT.shape)  # type: ignore[arg-type]
        log_probs_BTV = logits_BTV.log_softmax(-1)
        rows = []
        for row, (number, document) in enumerate(zip(numbers, ids, strict=True)):
            mask = cache.is_target(number, 0, len(document))
            assert mask is not None
            at = [t for t in range(1, len(document)) if mask[t]]
            chosen = [log_probs_BTV[row, t - 1, document[t]] for t in at]
            rows.append(torch.stack([torch.stack(chosen).sum(), torch.tensor(float(len(at)))]))
        sums.append(torch.stack(rows))
    return sums


def used_places(batch: UnitBatch) -> list[int]:
    return (batch.unit_ids_P >= 0).nonzero().flatten().tolist()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def plain_loss(c: Tensor, r: Tensor, ref_c: Tensor, ref_r: Tensor, options: dict) -> Tensor:
    """As the papers have it, from (sum, number of targets) of each side [P, 2]."""
    beta = options.get("beta", 0.15)
    kind = options.get("loss_type", "dpo")
    if options.get("length_mean") or kind in ("orpo", "simpo"):
        c, r, ref_c, ref_r = (x[:, 0] / x[:, 1] for x in (c, r, ref_c, ref_r))
    else:
        c, r, ref_c, ref_r = (x[:, 0] for x in (c, r, ref_c, ref_r))
    ratio = (c - r) - (ref_c - ref_r)
    if kind == "dpo":
        smoothing = options.get("label_smoothing", 0.0)
        right, wrong = sigmoid(beta * ratio).log(), sigmoid(-beta * ratio).log()
        return -((1 - smoothing) * right + smoothing * wrong).sum()
    if kind == "ipo":
        return ((ratio - 1 / (2 * beta)) ** 2).sum()
    if kind == "simpo":
        return -sigmoid(beta * c - beta * r - options.get("simpo_gamma", 0.5)).log().sum()
    odds = [x.exp() / (1 - x.exp()) for x in (c, r)]
    return (-c - beta * sigmoid((odds[0] / odds[1]).log()).log()).sum()
