"""What must not depend on the ZeRO stage, beside the steps themselves (test_train.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import WITHOUT_CLIPPING, Train, assert_same_run, read_column
from two_ranks import TrainOnTwo


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_in_bf16_the_gradient_does_not_depend_on_accumulation(
    train: Train, flags: list[str], tmp_path: Path, name: str
):
    """Each weight's gradient is a sum over 256 tokens that bf16 keeps to 2^-8 of itself, and so are
    the micro-batches' parts of it: at most three such roundings apart."""
    norms = []
    for rows in (1, 4):
        run = tmp_path / str(rows)
        more = ["--max_steps", "1", "--eval_every", "0", "--ds_config", f"{name}.json"]
        more += ["--set", f"micro_batch_size={rows}", "--set", "ds_config.bf16.enabled=true"]
        assert train(*flags, *more, "--output_dir", str(run)) == 0
        norms += read_column(run, "grad_norm")
    assert norms[0] == pytest.approx(norms[1], rel=3 * 2**-8)


def test_sampling_under_zero_3_disturbs_nothing(
    flags: list[str], train: Train, train_on_two: TrainOnTwo, tmp_path: Path
):
    """On two ranks, of which one alone generates."""
    flags = [*flags, *WITHOUT_CLIPPING, "--eval_every", "0", "--ds_config", "zero3.json"]
    assert train(*flags, "--output_dir", str(tmp_path / "silent")) == 0
    flags += ["--sample_every", "3", "--set", 'sample_prompts=["1 + 1 ="]']
    said = train_on_two(*flags, "--output_dir", str(tmp_path / "says")).splitlines()
    said = [line for line in said if "1 + 1 = →" in line]
    assert [line.partition(":")[0] for line in said] == ["step 3", "step 6"]
    assert_same_run(tmp_path / "silent", tmp_path / "says")


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_clipping_by_value_does_not_depend_on_ranks(
    flags: list[str],
    train: Train,
    train_on_two: TrainOnTwo,
    tmp_path: Path,
    precision: str,
    name: str,
):
    """To the bit, with two micro-batches a step on one rank and one on each of two."""
    plain, value = tmp_path / "plain", ["--set", "clip_value=1e-3"]
    flags = [*flags, *WITHOUT_CLIPPING, "--eval_every", "0", "--ds_config", f"{name}.json"]
    assert train(*flags, "--max_steps", "1", "--output_dir", str(plain)) == 0
    assert train(*flags, *value) == 0
    norms = [read_column(run, "grad_norm")[0] for run in (plain, tmp_path / "run")]
    assert norms[1] < norms[0] / 2
    train_on_two(*flags, *value, "--output_dir", str(tmp_path / "two"))
    assert_same_run(tmp_path / "run", tmp_path / "two")
