"""Computes the log-probabilities of a run's pairs or answers under the weights it starts from,
once, and caches them on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import minimind_kernels as K
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minimind.data.loader import EvalLoader, PackedLoader
from minimind.data.prefetch import prefetched
from minimind.engine.stage import BuildContext, Policy
from minimind.errors import DataError
from minimind.lora.folder import fingerprint, load_model_folder
from minimind.model.transformer import Transformer
from minimind.runtime.cache_folder import default_cache_dir, locked, new_folder, remove_stale
from minimind.types import IGNORE_INDEX, UnitBatch

logger = logging.getLogger(__name__)

VERSION = 3
"""A part of the cache key; raise it whenever the computation changes."""
_FILE = "log_probs.npy"

Measure = Callable[[Policy, Any], Tensor]
"""(model, batch of units) -> fp32 [P, C]: C numbers for each unit. The first is finite for every
unit; rows of free places may hold anything."""


UnitData = PackedLoader | EvalLoader
"""The loader of training units (pairs or single answers), or of validation units."""


def document_log_probs(policy: Policy, batch: UnitBatch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gives (sums_PK, counts_PK, aux_loss): for each of a unit's K documents, the sum of its
    targets' log-probabilities (fp32) and their number, both 0 in a free place; and the model's
    auxiliary loss."""
    labels_M = batch.labels_BT.flatten()

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        return K.linear_log_prob(hidden_MD, weight_VD, labels_M)

    output = policy(batch, head=head)
    # Summed in fp64: index_add's order changes between runs on a GPU, and this keeps it out of
    # fp32's digits.
    of_both_M2 = torch.stack([output.per_token.double(), (labels_M != IGNORE_INDEX).double()], 1)
    num_documents = batch.documents_per_unit * len(batch.unit_ids_P)
    sums_X2 = of_both_M2.new_zeros(num_documents + 1, 2).index_add(0, batch.doc_M, of_both_M2)
    by_unit_PK2 = sums_X2[:num_documents].float().view(-1, batch.documents_per_unit, 2)
    sums_PK, counts_PK = by_unit_PK2.unbind(-1)
    return sums_PK, counts_PK, output.aux_loss


@dataclass(frozen=True, slots=True)
class Reference:
    """Holds the numbers that a Measure gives each unit of a run's data under the starting
    weights."""

    values: Tensor
    """fp32 [units, C] on the run's device. A unit's row is its number in the epoch; validation
    units follow the training units. NaN for a unit that is not read."""

    @classmethod
    def load(cls, context: BuildContext, measure: Measure, version: str = "") -> Reference:
        """Computes `measure` of every unit under the weights folder of `context`, or reads it from
        the cache. `version` becomes part of the cache key.

        The model is loaded only where the cache lacks something, and dropped afterwards. Of several
        processes on one machine one computes, and the others wait and read. Raises DataError where
        the cache cannot be written.
        """
        assert context.weights_folder is not None
        weights = fingerprint(context.weights_folder)
        key = [VERSION, version, weights, context.config.to_dict()]
        frozen = functools.cache(lambda: load_frozen(context))
        training = cast(PackedLoader, context.loader)
        tables = [_load_table(context, key, frozen, measure, training, first_unit=0)]
        if context.eval_data is not None:
            validation, first_unit = cast(EvalLoader, context.eval_data), training.num_units
            tables.append(_load_table(context, key, frozen, measure, validation, first_unit))
        return cls(torch.from_numpy(np.concatenate(tables)).to(context.device))

    def of(self, batch: UnitBatch) -> Tensor:
        """Gives the numbers of the batch's units, fp32 [P, C]; 0 in a free place."""
        # A free place may hold tokens of a pair that lost one answer, and its unit may be unread:
        # the NaN would reach the gradient through where().
        is_free_P = batch.unit_ids_P < 0
        return self.values[batch.unit_ids_P.clamp(min=0)].masked_fill(is_free_P[:, None], 0.0)


def load_frozen(context: BuildContext) -> Transformer:
    """Loads the model that the run starts from, frozen, in the dtype that the engine computes
    in."""
    assert context.weights_folder is not None
    model = Transformer(context.config)
    model.load_named(load_model_folder(context.weights_folder)[1])
    return model.to(context.device, context.dtype).requires_grad_(False).eval()


def _load_table(
    context: BuildContext,
    model_key: list[Any],
    frozen: Callable[[], Transformer],
    measure: Measure,
    data: UnitData,
    first_unit: int,
) -> np.ndarray:
    # A 16-bit forward rounds differently with other documents in its batch, so the key holds all
    # that decides the batches.
    computed = [str(context.dtype), context.device.type, data.micro_batch]
    parts = json.dumps([model_key, computed, data.fingerprint])
    key = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    parent = default_cache_dir() / "reference"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / f"{key}.lock") as has_lock:
            table = _read(parent / key, data.num_units)
            if table is None:
                if has_lock:
                    remove_stale(parent, held=key)
                table = _compute(frozen(), measure, context.device, data, first_unit)
                shutil.rmtree(parent / key, ignore_errors=True)
                with new_folder(parent / key) as folder:
                    np.save(folder / _FILE, table)
    except OSError as error:
        raise DataError(
            f"{parent}: the reference's log-probabilities cannot be written: {error}. Make room, "
            "or name another folder in the environment variable MINIMIND_CACHE"
        ) from None
    return table


def _read(folder: Path, num_units: int) -> np.ndarray | None:
    """Reads the cached table; None where it is missing or incomplete."""
    try:
        table = np.load(folder / _FILE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be read and is computed again: %s", folder / _FILE, error)
        return None
    is_whole = table.ndim == 2 and len(table) == num_units and table.dtype == np.float32
    return table if is_whole else None


@torch.no_grad()
def _compute(
    model: Transformer, measure: Measure, device: torch.device, data: UnitData, first_unit: int
) -> np.ndarray:
    began = time.perf_counter()
    table, unit = None, ""
    with tqdm(
        total=data.num_rows, desc="reference", unit="row", file=sys.stderr, disable=None
    ) as bar:
        for batch in prefetched(data.all_batches()):
            batch = cast(UnitBatch, batch.to(device))
            found_PC = measure(model, batch)
            if table is None:
                # The last row takes what stands in free places, and is dropped.
                shape = (data.num_units + 1, found_PC.shape[1])
                table = torch.full(shape, torch.nan, device=device)
                unit = "pairs" if batch.documents_per_unit == 2 else "answers"
            is_free_P = batch.unit_ids_P < 0
            places_P = torch.where(is_free_P, data.num_units, batch.unit_ids_P - first_unit)
            # A unit that comes again in the last batch of an epoch keeps its first values.
            known_PC = table[places_P]
            table[places_P] = torch.where(known_PC.isnan(), found_PC, known_PC)
            bar.update(min(len(batch.ids_BT), data.num_rows - bar.n))
    assert table is not None, "data has a row"
    values = table[:-1].cpu().numpy()
    logger.info(
        "reference  log-probabilities of %d %s in %.1f s",
        np.isfinite(values[:, 0]).sum(),
        unit,
        time.perf_counter() - began,
    )
    return values
