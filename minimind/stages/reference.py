"""What the weights a run starts from think of its pairs: computed once, kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import minimind_kernels as K
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minimind.data.cache_folder import default_cache_dir, locked, new_folder, remove_stale
from minimind.data.prefetch import prefetched
from minimind.engine.stage import BuildContext, Policy
from minimind.errors import DataError
from minimind.model.adapter_folder import load_model_folder
from minimind.model.transformer import Transformer
from minimind.types import IGNORE_INDEX, PairBatch

logger = logging.getLogger(__name__)

VERSION = 2
"""Part of the cache key: raise it with every change of what is computed."""
_FILE = "log_probs.npy"


class PairData(Protocol):
    """What the loaders of training and validation pairs have."""

    micro_batch: int

    @property
    def fingerprint(self) -> str: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def num_units(self) -> int: ...

    def all_batches(self) -> Iterator[PairBatch]: ...


def pair_log_probs(policy: Policy, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor | None]:
    """(sums_P2, counts_P2, the model's own loss): the log-probabilities of the targets of each
    pair's chosen and rejected document summed, fp32, and how many there are; 0 in a free place."""
    labels_M = batch.labels_BT.flatten()

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        return K.linear_log_prob(hidden_MD, weight_VD, labels_M)

    output = policy(batch, head=head)
    # On a GPU index_add's order changes from run to run: in fp64 that does not reach fp32's digits.
    of_both_M2 = torch.stack([output.per_token.double(), (labels_M != IGNORE_INDEX).double()], 1)
    num_documents = 2 * len(batch.pair_ids_P)
    sums_X2 = of_both_M2.new_zeros(num_documents + 1, 2).index_add(0, batch.doc_M, of_both_M2)
    sums_P2, counts_P2 = sums_X2[:num_documents].float().view(-1, 2, 2).unbind(-1)
    return sums_P2, counts_P2, output.aux_loss


def load_reference(context: BuildContext, weights_fingerprint: str) -> Tensor:
    """[pairs, 2] fp32 on the context's device: `pair_log_probs` of each pair by its number in the
    data, validation pairs behind the training ones; NaN for those that are not read.
    `weights_fingerprint`: of the context's weights folder.

    The model is loaded only where the cache lacks something, and dropped. Of several processes on
    one machine one computes, the others wait and read. Raises DataError where nothing can be
    written.
    """
    model: list[Transformer] = []

    def frozen() -> Transformer:
        if not model:
            model.append(_load_frozen(context))
        return model[0]

    weights = [weights_fingerprint, context.config.to_dict()]
    training = cast(PairData, context.loader)
    tables = [_load_table(context, weights, frozen, training, first_pair=0)]
    if context.eval_data is not None:
        validation = cast(PairData, context.eval_data)
        first_pair = training.num_units
        tables.append(_load_table(context, weights, frozen, validation, first_pair))
    return torch.from_numpy(np.concatenate(tables)).to(context.device)


def _load_frozen(context: BuildContext) -> Transformer:
    assert context.weights_folder is not None
    model = Transformer(context.config)
    model.load_named(load_model_folder(context.weights_folder)[1])
    return model.to(context.device, context.dtype).requires_grad_(False).eval()


def _load_table(
    context: BuildContext,
    weights: list[Any],
    frozen: Callable[[], Transformer],
    data: PairData,
    first_pair: int,
) -> np.ndarray:
    # A 16-bit forward rounds by what shares its batch: the policy's must be the very same one.
    computed = [str(context.dtype), context.device.type, data.micro_batch]
    parts = json.dumps([VERSION, weights, computed, data.fingerprint])
    key = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    parent = default_cache_dir() / "reference"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / f"{key}.lock") as has_lock:
            table = _read(parent / key, data.num_units)
            if table is None:
                if has_lock:
                    remove_stale(parent, held=key)
                table = _compute(frozen(), context.device, data, first_pair)
                shutil.rmtree(parent / key, ignore_errors=True)
                with new_folder(parent / key) as folder:
                    np.save(folder / _FILE, table)
    except OSError as error:
        raise DataError(
            f"{parent}: the reference's log-probabilities cannot be written: {error}. Make room, "
            "or name another folder in the environment variable MINIMIND_CACHE"
        ) from None
    return table


def _read(folder: Path, num_pairs: int) -> np.ndarray | None:
    """None where there is no table, or none that is whole."""
    try:
        table = np.load(folder / _FILE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be read and is computed again: %s", folder / _FILE, error)
        return None
    return table if table.shape == (num_pairs, 2) and table.dtype == np.float32 else None


@torch.no_grad()
def _compute(
    model: Transformer, device: torch.device, data: PairData, first_pair: int
) -> np.ndarray:
    began = time.perf_counter()
    # The last row takes what stands in free places.
    table = torch.full((data.num_units + 1, 2), torch.nan, device=device)
    with tqdm(
        total=data.num_rows, desc="reference", unit="row", file=sys.stderr, disable=None
    ) as bar:
        for batch in prefetched(data.all_batches(), ahead=2):
            batch = batch.to(device)
            sums_P2, _, _ = pair_log_probs(model, batch)
            free_P = batch.pair_ids_P < 0
            places_P = torch.where(free_P, data.num_units, batch.pair_ids_P - first_pair)
            # A pair that comes again keeps what its first batch gave.
            known_P2 = table[places_P]
            table[places_P] = torch.where(known_P2.isnan(), sums_P2, known_P2)
            bar.update(min(len(batch.ids_BT), data.num_rows - bar.n))
    found = table[:-1].cpu().numpy()
    logger.info(
        "reference  log-probabilities of %d pairs in %.1f s",
        np.isfinite(found).all(axis=1).sum(),
        time.perf_counter() - began,
    )
    return found
