"""Resolves a run's batch sizes: rows per step = micro-batch x accumulation x ranks."""

from __future__ import annotations

from typing import Any

from minimind.config.recipe import Recipe, replace_fields
from minimind.config.sizes import Sizes
from minimind.errors import ConfigError

_MOST_LISTED = 1 << 16
"""The largest divisor that an error lists."""


def resolve_batch(ds: dict[str, Any], recipe: Recipe, sizes: Sizes, num_ranks: int) -> Recipe:
    """Fills in the batch sizes of `ds` and of the recipe that it returns, so that rows per step =
    micro-batch x accumulation x ranks. Missing values come from `sizes`: first the rows per step,
    then the largest micro-batch that divides them. Where an accumulation is given but no rows per
    step, they follow from accumulation and micro-batch, as in DeepSpeed's own examples. Raises
    ConfigError."""
    asked = _read_accumulation(ds)
    rows = recipe.train_batch_size
    if rows is None and asked is not None:
        rows = asked * (recipe.micro_batch_size or sizes.micro_batch_size) * num_ranks
    rows = rows or sizes.train_batch_size
    if rows % num_ranks:
        near = {max(1, rows // num_ranks) * num_ranks, (rows // num_ranks + 1) * num_ranks}
        raise ConfigError(
            f"train_batch_size {rows} is not a multiple of {num_ranks} ranks; use "
            f"{' or '.join(map(str, sorted(near)))}"
        )
    share = rows // num_ranks
    micro = recipe.micro_batch_size
    if micro is None and asked is not None:
        if share % asked:
            raise ConfigError(
                f"train_batch_size {rows} / (gradient_accumulation_steps {asked} x {num_ranks} "
                f"ranks) is not whole: give an accumulation of {_fitting(share)}, or leave it out"
            )
        micro = share // asked
    if micro is None:
        micro = next(n for n in range(sizes.micro_batch_size, 0, -1) if share % n == 0)
    if share % micro:
        raise ConfigError(
            f"train_batch_size {rows} / (micro-batch {micro} x {num_ranks} ranks) is not whole: "
            f'give a micro-batch of {_fitting(share)}, or "auto"'
        )
    accumulation = share // micro
    if asked not in (None, accumulation):
        raise ConfigError(
            f"gradient_accumulation_steps is {asked}, but train_batch_size {rows} / (micro-batch "
            f'{micro} x {num_ranks} ranks) = {accumulation}; leave one of the three out, or "auto"'
        )
    ds["train_batch_size"] = rows
    ds["train_micro_batch_size_per_gpu"] = micro
    ds["gradient_accumulation_steps"] = accumulation
    sizes_found = {"train_batch_size": rows, "micro_batch_size": micro}
    return replace_fields(recipe, sizes_found, "the DeepSpeed JSON")


def _fitting(share: int) -> str:
    """Lists the numbers that divide a rank's rows of a step, up to _MOST_LISTED."""
    return ", ".join(str(n) for n in range(1, min(share, _MOST_LISTED) + 1) if share % n == 0)


def _read_accumulation(ds: dict[str, Any]) -> int | None:
    asked = ds.get("gradient_accumulation_steps", "auto")
    if asked in ("auto", None):
        return None
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ConfigError(
            f"gradient_accumulation_steps is {asked!r}; it must be a whole number above 0, or "
            '"auto"'
        )
    return asked
