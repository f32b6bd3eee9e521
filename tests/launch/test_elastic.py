"""Runs that go on under another ZeRO stage, precision or number of ranks, as if nothing had
happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import (
    WITHOUT_CLIPPING,
    Train,
    assert_like_losses,
    assert_same_run,
    read_losses,
)
from two_ranks import TrainOnTwo

STEADY = ("--eval_every", "0", "--set", "min_lr_ratio=1")
"""Flags of runs whose steps do not depend on how many there are."""


def go_on(run: Path, stage: str, steps: int) -> list[str]:
    resume = ["--resume", "--output_dir", str(run), "--max_steps", str(steps)]
    return [*resume, "--ds_config", f"{stage}.json"]


@pytest.mark.faults("a run resumed under another ZeRO stage", "goes on with its optimizer")
def test_a_run_goes_on_under_other_zero_stages(
    train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINIMIND_PRECISION", "bf16")
    flags = [*flags, *WITHOUT_CLIPPING, *STEADY]
    assert train(*flags, "--max_steps", "4", "--output_dir", str(tmp_path / "whole")) == 0
    run = tmp_path / "run"
    assert train(*flags, "--max_steps", "1") == 0
    for steps, name in enumerate(["zero3", "zero0", "zero1"], start=2):
        assert train(*go_on(run, name, steps)) == 0
    assert_same_run(tmp_path / "whole", run)


@pytest.mark.slow
@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(("optimizer", "last"), [("AdamW", "zero2_offload"), ("Muon", "zero1")])
def test_a_run_goes_on_under_every_zero_stage(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path, optimizer: str,
    last: str,
):  # fmt: skip
    """In a round over all pairs of neighbours, on one rank and on two, bitwise."""
    flags = [*flags, *WITHOUT_CLIPPING, *STEADY, "--set", f"optimizer={optimizer}"]
    round_trip = ["zero2", "zero3", "zero1", "zero0", "zero2", "zero0", "zero3", last]
    assert train(*flags, "--max_steps", "9", "--output_dir", str(tmp_path / "whole")) == 0
    run = tmp_path / "run"
    assert train(*flags, "--max_steps", "1") == 0
    for steps, name in enumerate(round_trip, start=2):
        if steps % 3:
            assert train(*go_on(run, name, steps)) == 0
        else:
            train_on_two(*go_on(run, name, steps))
    assert train(*go_on(run, "zero2", 9)) == 0
    assert_same_run(tmp_path / "whole", run)
    assert [step for step, *_ in read_losses(run)] == list(range(1, 10))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("fp32", "bf16"), ("bf16", "fp32")])
@pytest.mark.faults("a run resumed in another precision", "goes on")
def test_a_run_goes_on_in_another_precision(
    train: Train, flags: list[str], tmp_path: Path, before: str, after: str
):
    """Near to one in fp32, with the optimizer's memory: without it the first steps would jump."""

    def kind(name: str) -> list[str]:
        return ["--set", f"ds_config.bf16.enabled={str(name == 'bf16').lower()}"]

    flags = [*flags, *STEADY]
    whole = ["--output_dir", str(tmp_path / "whole")]
    assert train(*flags, *whole, *kind("fp32"), "--max_steps", "8") == 0
    run = tmp_path / "run"
    assert train(*flags, *kind(before), "--max_steps", "4") == 0
    assert train(*go_on(run, "zero3", 6), *kind(after)) == 0
    assert train(*go_on(run, "zero0", 8), *kind(after)) == 0
    assert_like_losses(tmp_path / "whole", run, within=0.02)
