"""Calls in worker processes: what goes wrong in one is its own outcome and nobody else's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pooled_functions import Build, outcomes

from minimind.runtime.function_pool import Call


def test_results_keep_the_order_of_their_calls(build: Build) -> None:
    found = outcomes(build("add"), list(range(300)))
    assert [one.value for one in found] == [min(n + 1, 100) for n in range(300)]
    assert all(one.failure is None for one in found)


def test_the_items_of_a_mapping_as_keyword_arguments(build: Build) -> None:
    pool = build("weather", is_unpacked=True)
    pool.check()
    good, short, unknown = outcomes(pool, [{"city": "Lumor"}, {}, {"city": "x", "state": 1}])
    assert good.value == "Lumor: 20 C"
    assert short.failure is not None
    assert "missing 1 required positional argument: 'city'" in short.failure.text
    assert unknown.failure is not None
    assert "unexpected keyword argument 'state'" in unknown.failure.text


def test_each_failure_is_its_own_calls_alone(build: Build) -> None:
    pool = build("misbehave", timeout_s=1.0)
    assert outcomes(pool, [1, 2])[1].value == 2
    arguments = [1, "raise", 2, "hang", 3, "die", 4, "crash", 5, "leave", "lambda", "own", 6]
    found = outcomes(pool, [*arguments, lambda: 0, 7])
    failures = {a: o.failure for a, o in zip(arguments, found, strict=False) if o.failure}
    assert {argument: one.kind for argument, one in failures.items()} == {
        "raise": "raised",
        "hang": "slow",
        "die": "died",
        "crash": "died",
        "leave": "raised",
        "lambda": "unpicklable",
        "own": "unpicklable",
    }
    text = {argument: one.text for argument, one in failures.items()}
    assert text["raise"].startswith("ValueError: no such thing (own.py:")
    assert text["raise"].endswith(': raise ValueError("no such thing"))')
    assert "longer than" in text["hang"]
    assert text["die"] == "its process ended with status 3"
    assert text["crash"] == "its process was killed by SIGSEGV"
    assert text["leave"].startswith("SystemExit: enough")
    assert text["lambda"].startswith("what it returned, of type function, cannot be sent:")
    assert text["own"].startswith("what it returned cannot be read here:")
    assert found[13].failure is not None
    assert found[13].failure.text.startswith("what it is called with cannot be sent")
    assert [one.value for one in found if not one.failure] == [1, 2, 3, 4, 5, 6, 7]
    assert outcomes(pool, [8])[0].value == 8


def test_a_call_that_hangs_is_killed_at_its_limit_in_a_warm_worker(build: Build) -> None:
    pool = build("misbehave", num_workers=1, timeout_s=0.5)
    assert outcomes(pool, [0])[0].value == 0
    began = time.monotonic()
    slow, after = outcomes(pool, ["hang", 1])
    assert slow.failure is not None
    assert (slow.failure.kind, slow.failure.text) == ("slow", "it took longer than 0.5 s")
    assert after.value == 1
    assert time.monotonic() - began < 60


def test_a_first_call_may_take_longer_until_one_has_answered(build: Build) -> None:
    pool = build("slow_start", timeout_s=0.3)
    assert [one.value for one in outcomes(pool, [1, 2, 3])] == [1, 2, 3]
    hopeless = build("misbehave", num_workers=1, timeout_s=0.3, first_call_s=0.6)
    slow = outcomes(hopeless, ["hang"])[0].failure
    assert slow is not None
    assert slow.text == "its first call in a worker process took longer than 0.6 s"


def test_large_arguments_and_results_fill_no_pipe(build: Build) -> None:
    texts = ["x" * 1_000_000] * 12
    found = outcomes(build("double_large"), [text[n:] for n, text in enumerate(texts)])
    assert [len(one.value) for one in found] == [2 * (1_000_000 - n) for n in range(12)]


def test_who_reads_no_further_leaves_nothing_behind(build: Build) -> None:
    pool = build("misbehave")
    (function,) = pool._functions
    stream = pool.stream([Call(function, n) for n in range(50)])
    next(stream)
    stream.close()
    assert [one.value for one in outcomes(pool, [-1, -2])] == [-1, -2]


def test_calls_from_several_threads(build: Build) -> None:
    pool = build("add")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: outcomes(pool, [n] * 20)[-1].value, range(8)))
    assert found == list(range(1, 9))


def test_a_closed_pool_stays_closed(build: Build) -> None:
    pool = build("where")
    pid = outcomes(pool, [0])[0].value[1]
    pool.close()
    pool.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RuntimeError, match="closed"):
        outcomes(pool, [0])
