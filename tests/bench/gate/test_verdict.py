"""The gate's rule on made-up pairs: what fails, what passes, what cannot be told."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bench.gate.verdict import (
    Comparison,
    Pair,
    Run,
    is_ours,
    needs_more_pairs,
    overall,
    render_report,
    row_key,
)


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


@pytest.mark.parametrize(
    ("base", "head", "found"),
    [
        ({}, {"item": 1}, ("worse", "sync_operators 0 -> 1")),
        ({"item": 1}, {}, ("better", "sync_operators 1 -> 0")),
        ({}, {}, ("same", "")),
    ],
)
def test_a_step_without_waits_counts_none(
    base: dict[str, int], head: dict[str, int], found: tuple[str, str]
) -> None:
    rows = [Run(1.0, {"x": {"sync_operators": waits}}) for waits in (base, head)]
    compared = judge(Pair(*rows))
    assert (compared.verdict, compared.why) == found


def test_steady_and_equal_is_the_same() -> None:
    found = judge(pair(100, 99), pair(101, 101), pair(99, 98.5))
    assert (found.verdict, found.why) == ("same", "")
    assert not needs_more_pairs([pair(100, 99), pair(101, 101), pair(99, 98.5)], "x")


def test_six_percent_slower_fails() -> None:
    found = judge(*(pair(100 + i, 0.94 * (100 + i)) for i in range(4)))
    assert (found.verdict, found.why) == ("worse", "slower")


def test_four_percent_slower_does_not() -> None:
    assert judge(*(pair(100 + i, 0.96 * (100 + i)) for i in range(4))).verdict == "same"


def test_faster_is_said() -> None:
    assert judge(*(pair(100, 120) for _ in range(3))).why == "faster"


def test_noise_is_its_own_verdict() -> None:
    pairs = [pair(100, 100), pair(100, 130), pair(100, 75), pair(100, 95)]
    assert needs_more_pairs(pairs, "x")
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


def test_a_rehearsed_peak_counts_where_nothing_was_measured() -> None:
    base, head = ({"x": {"rehearsed_peak_bytes": held}} for held in (1000, 1011))
    found = judge(Pair(base=Run(1.0, base), head=Run(1.0, head)))
    assert (found.verdict, found.why) == ("worse", "more memory")


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
    assert (judge(*pairs).verdict, judge(*pairs).why) == ("not compared", "new")
    assert not needs_more_pairs(pairs, "x")


def test_a_row_that_is_gone_is_said() -> None:
    found = judge(Pair(base=Run(1.0, {"x": {"useful_tokens_per_s": 5.0}}), head=Run(1.0, {})))
    assert (found.verdict, found.why) == ("not compared", "gone")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"useful_tokens_per_s": None}, "no speed any more"),
        ({"useful_tokens_per_s": 0}, "no speed any more"),
        ({"peak_bytes": None}, "no memory any more"),
        ({"sync_operators": None, "dispatched_operators": None},
         "no dispatched_operators, sync_operators any more"),
    ],
)  # fmt: skip
def test_what_the_head_does_not_say_any_more_is_not_the_same(
    change: dict[str, Any], why: str
) -> None:
    found = judge(*(pair(100, 100, **change) for _ in range(3)))
    assert (found.verdict, found.why) == ("not compared", why)


def test_what_comes_on_top_in_one_run_alone_is_no_change() -> None:
    pairs = [pair(100, 100), pair(100, 100, dispatched_operators=51), pair(100, 100)]
    assert judge(*pairs).verdict == "same"


def test_what_is_counted_in_the_first_pair_alone_counts() -> None:
    timed = pair(100, 100)
    counted = Pair(
        base=Run(1.0, timed.base.rows | {"y": {"kernel_launches": 4}}),
        head=Run(1.0, timed.head.rows | {"y": {"kernel_launches": 5}}),
    )
    assert Comparison.build("y", [counted, timed, timed]).why == "kernel_launches 4 -> 5"


def scaled(*rates: float, peaks: tuple[int, int] = (1000, 900)) -> dict[str, dict[str, Any]]:
    """Rows of bench.scaling on one rank, on two ranks and, as a prediction, on four."""
    rows = [
        {"name": "strong", "model": "tiny", "world_size": n, "useful_tokens_per_s": rate,
         "peak_bytes": max(peaks), "peak_bytes_per_rank": list(peaks) if n > 1 else None}
        for n, rate in zip((1, 2), rates, strict=True)
    ]  # fmt: skip
    rows.append({"name": "strong", "model": "tiny", "world_size": 4, "predicted": True})
    return {row_key("scaling", row): row for row in rows if is_ours(row)}


def test_each_number_of_ranks_has_a_verdict_of_its_own() -> None:
    base, head = Run(1.0, scaled(100, 190)), Run(1.0, scaled(100, 150))
    assert list(base.rows) == ["scaling strong tiny on 1", "scaling strong tiny on 2"]
    one, two = (Comparison.build(key, [Pair(base, head)] * 3) for key in base.rows)
    assert (one.verdict, two.verdict, two.why) == ("same", "worse", "slower")


def test_memory_is_that_of_the_rank_that_grew() -> None:
    base, head = Run(1.0, scaled(100, 190)), Run(1.0, scaled(100, 190, peaks=(1000, 990)))
    found = Comparison.build("scaling strong tiny on 2", [Pair(base, head)] * 3)
    assert found.memory_ratio == pytest.approx(1.1)
    assert (found.verdict, found.why) == ("worse", "more memory")


def test_a_steady_part_asks_for_no_more_pairs() -> None:
    def run(time: float) -> Run:
        return Run(1.0, {"a x": {"median_us": 1.0}, "b x": {"median_us": time}})

    pairs = [Pair(run(1.0), run(time)) for time in (1.0, 2.0, 0.5)]
    assert not needs_more_pairs(pairs, "a")
    assert needs_more_pairs(pairs, "b")


def test_the_gravest_verdict_is_that_of_all() -> None:
    same = judge(*(pair(100, 100) for _ in range(3)))
    noisy = judge(pair(100, 100), pair(100, 130), pair(100, 75))
    slower = judge(*(pair(100, 80) for _ in range(3)))
    assert overall([]) == overall([same]) == "same"
    assert overall([same, noisy]) == "too noisy"
    assert overall([noisy, slower, same]) == "worse"


def noisy_gate(slowdown: float, noise: float, seed: int) -> Comparison:
    """What the gate says of a head that takes `slowdown` times as long, on a machine whose runs
    differ by `noise` (a standard deviation) and whose probe sees the common part of it."""
    generator = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < 5 or (needs_more_pairs(pairs, "x") and len(pairs) < 30):
        machine = generator.uniform(0.5, 1.0)
        base, head = (100 * machine * generator.gauss(1, noise) for _ in range(2))
        pairs.append(pair(base, head / slowdown, probes=(machine, machine)))
    return judge(*pairs)


def test_a_slowdown_of_a_tenth_is_caught_and_equals_are_left_alone() -> None:
    planted = [noisy_gate(1.1, 0.02, seed).verdict for seed in range(100)]
    equal = [noisy_gate(1.0, 0.02, seed).verdict for seed in range(100)]
    assert planted.count("worse") >= 99
    assert equal.count("worse") == 0
    assert [noisy_gate(1.0, 0.2, seed).verdict for seed in range(20)].count("worse") == 0


def test_the_table_is_markdown() -> None:
    slower, same = ([pair(100, rate)] * 3 for rate in (90, 100))
    found = [Comparison.build("x", same), Comparison.build("x", slower)]
    lines = render_report(found, "v1", "HEAD", {"device": "some GPU", "cores": 4}).splitlines()
    assert lines[0] == "### Benchmarks: worse"
    assert "`HEAD` against `v1` on some GPU" in lines[2]
    table = [line for line in lines if line.startswith("|")]
    assert table[0].split("|")[1].strip() == "row"
    assert {line.count("|") for line in table} == {7}
    assert "**worse**" in table[2]
    assert "0.900 ± 0.000" in table[2]
    assert "same" in table[3]
    assert "not measured" not in "".join(table)


def test_the_report_says_how_noisy_the_machine_is() -> None:
    machine = {"device": "some GPU", "cores": 4}
    noisy = [pair(100, 100), pair(100, 110), pair(100, 90)]
    text = render_report([judge(*noisy)], "HEAD", "HEAD", machine)
    assert "the ratio of a pair varies by 10.0% (a standard deviation, in `x`)" in text
    assert "which 3 pairs bring down to 21.7% (three standard errors)" in text
    assert "Both are the same code" in text
    counted = Run(1.0, {"x": {"launches": 2}})
    text = render_report([judge(Pair(counted, counted))], "v1", "HEAD", machine)
    assert "Noise of the machine: not measured" in text
    assert "same code" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| x"))
    assert row.count("not measured") == 2
