"""Batch sizes: any two of rows, micro-batch and accumulation give the third."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from resolved_json import Resolve

from minimind.config.deepspeed_json import Hardware
from minimind.config.sizes import Sizes
from minimind.errors import ConfigError

BATCH_SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@pytest.mark.parametrize("rows", [8, 12, 16, 120, 128])
@pytest.mark.parametrize("limit", [1, 3, 4, 64])
def test_rows_are_micro_batches_times_accumulation_times_ranks(
    resolved: Resolve, rows: int, limit: int
):
    """At any number of ranks the same rows, in the largest micro-batches that fit."""
    for ranks in (r for r in range(1, 9) if rows % r == 0):
        ds, _ = resolved(sizes=Sizes(256, rows, limit), hardware=Hardware("gpu", ranks, "bf16"))
        micro = ds["train_micro_batch_size_per_gpu"]
        assert ds["train_batch_size"] == rows
        assert micro * ds["gradient_accumulation_steps"] * ranks == rows
        larger = range(micro + 1, limit + 1)
        assert micro <= limit
        assert not [m for m in larger if (rows // ranks) % m == 0]


def test_explicit_sizes_are_kept(resolved: Resolve):
    for rows, micro, ranks in itertools.product((24, 48), (2, 3), (1, 4)):
        ds, recipe = resolved(
            train_batch_size=rows, micro_batch_size=micro, hardware=Hardware("gpu", ranks, "bf16")
        )
        assert ds["train_batch_size"] == recipe.train_batch_size == rows
        assert ds["train_micro_batch_size_per_gpu"] == recipe.micro_batch_size == micro
        assert ds["gradient_accumulation_steps"] == rows // micro // ranks
    ds, _ = resolved(sets={"gradient_accumulation_steps": 2})
    assert ds["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(
    ("sets", "ranks", "words"),
    [
        ({"train_batch_size": 16}, 3, ["16", "3 ranks", "15", "18"]),
        ({"train_batch_size": 2}, 8, ["2", "8 ranks", "use 8"]),
        ({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 3}, 1, ["16", "3", "whole"]),
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 16}, 1, ["8", "16", "whole"]),
        ({"train_batch_size": 10**15, "train_micro_batch_size_per_gpu": 7}, 1, ["32768", "whole"]),
        (
            {"train_batch_size": 16, "gradient_accumulation_steps": 3},
            1,
            ["gradient_accumulation_steps 3", "16", "1, 2, 4, 8, 16"],
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    resolved: Resolve, sets: dict[str, Any], ranks: int, words: list[str]
):
    with pytest.raises(ConfigError) as caught:
        resolved(sets=sets, hardware=Hardware("gpu", ranks, "bf16"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "ranks", "found"),
    [
        ((128, None, 4), 1, (128, 32, 4)),
        ((128, None, 4), 8, (128, 4, 4)),
        ((None, 32, 4), 2, (256, 32, 4)),
        ((128, 16, None), 2, (128, 16, 4)),
        ((128, 32, 4), 1, (128, 32, 4)),
        ((None, None, 4), 2, (64, 8, 4)),
        ((16, None, 2), 1, (16, 8, 2)),
        # Larger than the table's micro-batch: it was asked for.
        ((128, None, 1), 1, (128, 128, 1)),
    ],
)
@pytest.mark.parametrize("left_out", ["auto", "absent"])
def test_any_two_batch_sizes_give_the_third(
    resolved: Resolve,
    sets: tuple[int | None, ...],
    ranks: int,
    found: tuple[int, ...],
    left_out: str,
):
    values: dict[str, Any] = dict(zip(BATCH_SIZES, sets, strict=True))
    values = {key: value or "auto" for key, value in values.items() if value or left_out == "auto"}
    ds, recipe = resolved(values, sizes=Sizes(256, 16, 8), hardware=Hardware("gpu", ranks, "bf16"))
    assert tuple(ds[key] for key in BATCH_SIZES) == found
    assert (recipe.train_batch_size, recipe.micro_batch_size) == found[:2]


def test_a_flag_is_one_of_the_two(resolved: Resolve):
    ds, _ = resolved({"gradient_accumulation_steps": 4}, train_batch_size=64)
    assert [ds[key] for key in BATCH_SIZES] == [64, 16, 4]
    ds, _ = resolved({"gradient_accumulation_steps": 4}, micro_batch_size=2)
    assert [ds[key] for key in BATCH_SIZES] == [8, 2, 4]
    with pytest.raises(ConfigError, match=r"= 4; leave one of the three out"):
        resolved({"gradient_accumulation_steps": 2}, train_batch_size=64, micro_batch_size=16)


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", True])
def test_an_accumulation_that_is_none_is_named(resolved: Resolve, value: Any):
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps is .*whole number above 0"):
        resolved({"gradient_accumulation_steps": value})
