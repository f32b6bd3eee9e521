"""What bench.advise tries, what it leaves out, which it chooses and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import advise, advise_candidates
from bench.advise import Trial, choose, explain
from bench.advise_candidates import (
    Candidate,
    Setting,
    largest_that_fit,
    rehearse_candidates,
    variants,
)
from minimind.rehearsal.report import Rehearsal
from minimind.runtime.devices import find_device

SETTING = Setting("tiny", 2, 8, 64, find_device())


Make = Callable[[int, float, int], Trial]


CANDIDATES = (
    *(Candidate(0, 2), Candidate(1, 2, bucket=1000), Candidate(3, 1)),
    *(Candidate(2, 2, overlap=True), Candidate(2, 2, offload=True)),
)


NOTHING = Rehearsal(
    device="cpu",
    world_size=2,
    tokens=None,
    launches={},
    operators={},
    collectives={},
    waits=(),
    flops=0,
    kernel_bytes=0,
    peak={"weights": 10},
    roofline=None,
    seconds=0.0,
)


def make_up(candidates: Iterable[Candidate], *_: Any) -> dict[Candidate, Rehearsal]:
    """Stands for rehearse_candidates."""
    return {
        one: replace(NOTHING, peak={"activations": 100 * one.micro_batch + 10 * one.stage})
        for one in candidates
    }


@pytest.fixture
def trial() -> Make:
    """trial(stage, rate, peak)."""
    return lambda stage, rate, peak: Trial(Candidate(stage, 2), NOTHING, [rate], [peak])


def test_every_candidate_resolves(tmp_path: Path) -> None:
    for candidate, found in rehearse_candidates(
        CANDIDATES, replace(SETTING, rows=4), tmp_path
    ).items():
        assert found.peak_bytes > 0
        values = json.loads(candidate.write(tmp_path).read_text())
        zero = values["zero_optimization"]
        assert zero["stage"] == candidate.stage
        assert values["train_micro_batch_size_per_gpu"] == candidate.micro_batch
        assert zero.get("reduce_bucket_size") in (None, "auto", candidate.bucket)
        assert ("offload_optimizer" in zero) == candidate.offload


def test_less_memory_means_smaller_micro_batches_then_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advise_candidates, "rehearse_candidates", make_up)
    wanted = [Candidate(2, 4), Candidate(3, 4), Candidate(1, 1)]
    found = largest_that_fit(wanted, SETTING, 425, tmp_path)
    assert [fitting.micro_batch for fitting, _ in found.values()] == [4, 2, 1]
    found = largest_that_fit(wanted, SETTING, 99, tmp_path)
    assert {fitting.micro_batch for fitting, _ in found.values()} == {1}
    assert all(rehearsed.peak_bytes > 99 for _, rehearsed in found.values())


def test_a_variant_changes_one_thing() -> None:
    best = Candidate(2, 2)
    found = list(variants(SETTING, best, 1000))
    names = ("micro_batch", "bucket", "overlap")
    changed = [
        {name for name in names if getattr(one, name) != getattr(best, name)} for one in found
    ]
    assert changed == [{"micro_batch"}, {"micro_batch"}, {"bucket"}, {"overlap"}]
    assert {v.micro_batch for v in found[:2]} == {4, 1}
    assert all(not v.bucket and v.overlap is None for v in variants(SETTING, Candidate(0, 4), 10))


def test_the_quickest_is_chosen_and_of_equals_the_smallest(trial: Make) -> None:
    slow, large, small = trial(3, 50, 10), trial(0, 101, 900), trial(2, 100, 500)
    assert choose([slow, large, small]) is small
    assert choose([slow, trial(1, 110, 900), small]).candidate.stage == 1
    said = "\n".join(explain([slow, large, small], small, SETTING, 10**9))
    assert "best: zero2, micro-batch 2, 100 useful tokens/s" in said
    assert "as quick, but larger: zero0" in said
    assert "zero3" not in said


def test_a_run_writes_the_json_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With made-up peaks and rates: stage 1 is quickest, and quicker still with other buckets."""

    def measure(trials: Any, *_: Any) -> None:
        for one in trials:
            quick = {0: 90.0, 1: 100.0, 2: 95.0, 3: 50.0}[one.candidate.stage]
            one.rates.append(quick + 10 * bool(one.candidate.bucket))
            one.peaks.append(1000)

    for module in (advise, advise_candidates):
        monkeypatch.setattr(module, "rehearse_candidates", make_up)
    monkeypatch.setattr(advise, "_measure", measure)
    output, results = tmp_path / "best.json", tmp_path / "results.json"
    flags = ["--model", "tiny", "--num_gpus", "2", "--rows", "8", "--memory", "4"]
    assert advise.main([*flags, "--output", str(output), "--json", str(results)]) == 0
    written = json.loads(output.read_text())
    assert written["zero_optimization"]["stage"] == 1
    assert isinstance(written["zero_optimization"]["reduce_bucket_size"], int)
    assert json.loads(results.read_text())["ds_config"] == written
    assert "best: zero1" in capsys.readouterr().out


def test_what_cannot_fit_is_not_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(advise_candidates, "rehearse_candidates", make_up)
    flags = [
        "--model",
        "tiny",
        "--rows",
        "2",
        "--memory",
        "1e-8",
        "--output",
        str(tmp_path / "x.json"),
    ]
    assert advise.main(flags) == 3
    said = capsys.readouterr().out
    assert said.count("does not fit") == 5
    assert "zero2 with offload: does not fit" in said
    assert not (tmp_path / "x.json").exists()


def test_uneven_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert advise.main(["--model", "tiny", "--rows", "3", "--num_gpus", "2"]) == 2
    assert "--rows 3 is no multiple of --num_gpus 2" in capsys.readouterr().err
