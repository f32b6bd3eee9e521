"""The gate's rule on made-up pairs: what fails, what passes, what cannot be told."""

from __future__ import annotations

from typing import Any

import pytest

from bench.verdict import Comparison, Pair, Run, needs_more_pairs, render_table


def pair(
    base: float, head: float, probes: tuple[float, float] = (1.0, 1.0), **head_row: Any
) -> Pair:
    row = {"peak_bytes": 1000, "dispatched_operators": 50, "sync_operators": {"nonzero": 1}}
    return Pair(
        base=Run(probes[0], {"x": row | {"useful_tokens_per_s": base}}),
        head=Run(probes[1], {"x": row | {"useful_tokens_per_s": head} | head_row}),
    )


def judge(*pairs: Pair) -> Comparison:
    return Comparison.build("x", pairs)


def test_steady_and_equal_is_the_same() -> None:
    found = judge(pair(100, 99), pair(101, 101), pair(99, 98.5))
    assert (found.verdict, found.why) == ("same", "")
    assert not needs_more_pairs([pair(100, 99), pair(101, 101), pair(99, 98.5)])


def test_six_percent_slower_fails() -> None:
    found = judge(*(pair(100 + i, 0.94 * (100 + i)) for i in range(4)))
    assert (found.verdict, found.why) == ("worse", "slower")


def test_four_percent_slower_does_not() -> None:
    assert judge(*(pair(100 + i, 0.96 * (100 + i)) for i in range(4))).verdict == "same"


def test_faster_is_said() -> None:
    assert judge(*(pair(100, 120) for _ in range(3))).why == "faster"


def test_noise_is_its_own_verdict() -> None:
    pairs = [pair(100, 100), pair(100, 130), pair(100, 75), pair(100, 95)]
    assert needs_more_pairs(pairs)
    assert judge(*pairs).verdict == "too noisy"


def test_far_slower_than_the_noise_fails_all_the_same() -> None:
    pairs = [pair(100, 40), pair(100, 50), pair(100, 45), pair(100, 55)]
    assert judge(*pairs).verdict == "worse"


def test_a_slower_machine_is_not_a_slower_head() -> None:
    pairs = [pair(100, 50, probes=(2.0, 1.0)), pair(80, 60, probes=(1.6, 1.2)), pair(10, 10)]
    found = judge(*pairs)
    assert found.ratio == pytest.approx(1.0)
    assert found.verdict == "same"


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        ({"peak_bytes": 1011}, "worse", "more memory"),
        ({"peak_bytes": 1009}, "same", ""),
        ({"peak_bytes": 900}, "better", "less memory"),
        ({"dispatched_operators": 51}, "worse", "dispatched_operators 50 -> 51"),
        ({"dispatched_operators": 49}, "better", "dispatched_operators 50 -> 49"),
        ({"sync_operators": {"nonzero": 1, "item": 1}}, "worse", "sync_operators 1 -> 2"),
    ],
)
def test_memory_and_counts(change: dict[str, Any], verdict: str, why: str) -> None:
    found = judge(*(pair(100, 100, **change) for _ in range(3)))
    assert (found.verdict, found.why) == (verdict, why)


def test_times_count_the_other_way_round() -> None:
    def timed(base: float, head: float) -> Pair:
        return Pair(
            base=Run(1.0, {"x": {"median_us": base}}), head=Run(1.0, {"x": {"median_us": head}})
        )

    assert judge(*(timed(10, 12) for _ in range(3))).why == "slower"
    untimed = Pair(base=Run(1.0, {"x": {"launches": 2}}), head=Run(1.0, {"x": {"launches": 2}}))
    assert judge(untimed).verdict == "same"


def test_a_new_row_has_nothing_to_compare_with() -> None:
    pairs = [Pair(base=Run(1.0, {}), head=Run(1.0, {"x": {"useful_tokens_per_s": 5.0}}))]
    assert judge(*pairs).why == "new"
    assert not needs_more_pairs(pairs)


def test_the_table_is_markdown() -> None:
    lines = render_table([judge(*(pair(100, 90) for _ in range(3)))]).splitlines()
    assert lines[0].split("|")[1].strip() == "row"
    assert "worse" in lines[2]
    assert "0.900 ± 0.000" in lines[2]
