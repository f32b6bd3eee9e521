"""Runs of a mixture of experts from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import (
    WITHOUT_CLIPPING,
    Train,
    assert_same_run,
    read_column,
    read_losses,
    read_rows,
    train_until_killed,
)
from two_ranks import TrainOnTwo

from minimind.engine.routers import ROUTER_COLUMNS
from minimind.inference.generate import generate_text
from minimind.inference.load import load_model
from minimind.inference.sampling import SamplingParams
from minimind.lora.folder import find_model_folder


@pytest.fixture
def flags(run_flags: list[str], shape: list[str]) -> list[str]:
    return [*run_flags, *shape, "--set", "num_experts=4", "--set", "num_experts_per_tok=2"]


def read_routers(run: Path) -> list[dict[str, float]]:
    return [{name: float(row[name]) for name in ROUTER_COLUMNS} for row in read_rows(run)]


def test_a_run_learns_logs_its_routers_and_speaks(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(*flags, "--max_steps", "20") == 0
    run = tmp_path / "run"
    losses = read_losses(run)
    assert losses[-1][1] < losses[0][1] - 0.5
    header = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert tuple(header[-len(ROUTER_COLUMNS) :]) == ROUTER_COLUMNS
    for row, norm in zip(read_routers(run), read_column(run, "grad_norm"), strict=True):
        # Two layers of S = 2 at an even load, times the coefficient of 5e-4.
        assert 1e-3 < row["aux_loss"] < 4e-3
        assert 0 < row["load_entropy_min"] <= row["load_entropy"] <= 1
        assert row["dropped_tokens"] == 0
        assert 0 < row["router_grad_norm"] < norm
    said = capsys.readouterr().err
    assert "active)" in said
    assert "aux_loss 0.00" in said
    assert "norm_topk_prob" not in said
    for picture in ("loss.png", "expert_load.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    model, tokenizer = load_model(find_model_folder(run))
    params = SamplingParams(max_new_tokens=8, temperature=0.0)
    assert isinstance(generate_text(model, tokenizer, "1 + 1", params), str)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(
    ("experts", "stages"),
    [
        (["num_experts_per_tok=1", "norm_topk_prob=true"], (2,)),
        (["n_shared_experts=1", "seq_aux=true", "mlp_only_layers=[0]"], (3,)),
        (["n_shared_experts=1", "router_aux_loss_coef=0.1", "dropout=0.1"], (0, 1, 2, 3)),
    ],
    ids=str,
)
def test_two_ranks_take_the_steps_of_one_to_the_bit(
    train: Train,
    train_on_two: TrainOnTwo,
    flags: list[str],
    tmp_path: Path,
    experts: list[str],
    stages: tuple[int, ...],
):
    """A rank's micro-batches are those that one rank would take in turn, so even the auxiliary
    loss over the batch is the same. Any difference of the gradients, the auxiliary loss or its
    weight would show, and no choice of expert can hide it."""
    flags = [*flags, *WITHOUT_CLIPPING, *(x for field in experts for x in ("--set", field))]
    flags += ["--max_steps", "4", "--eval_every", "0"]
    assert train(*flags, "--output_dir", str(tmp_path / "one")) == 0
    for zero in stages:
        two = tmp_path / f"two under {zero}"
        more = ["--ds_config", f"zero{zero}.json", "--output_dir", str(two)]
        warned = "--set norm_topk_prob=false" in train_on_two(*flags, *more)
        assert warned == ("num_experts_per_tok=1" in experts)
        assert_same_run(tmp_path / "one", two)
        for row, other_row in zip(read_routers(tmp_path / "one"), read_routers(two), strict=True):
            assert other_row == pytest.approx(row, rel=1e-5, abs=1e-9)


def test_a_killed_run_resumes_bitwise(train: Train, flags: list[str], tmp_path: Path):
    flags = [*flags, "--set", "dropout=0.1", "--set", "activation_checkpointing=true"]
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    # Between two micro-batches of step 5: what was summed up of it is lost with the process.
    train_until_killed(*flags, after="minimind.engine.loop.seed_micro_batch", calls=9)
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert read_routers(tmp_path / "whole") == read_routers(tmp_path / "run")
    loads = [(tmp_path / run / "expert_load.csv").read_text() for run in ("whole", "run")]
    assert loads[0] == loads[1]


@pytest.mark.usefixtures("fp32")
def test_splitting_a_step_changes_the_auxiliary_loss_over_the_batch_alone(
    train: Train, flags: list[str], tmp_path: Path
):
    """Four rows in one micro-batch or in four: the loss of the fresh model is the same, and so is
    its load; the router's own loss is of each micro-batch."""
    flags = [*flags, "--max_steps", "1", "--eval_every", "0"]
    for rows in (1, 4):
        split = ("--set", f"micro_batch_size={rows}", "--output_dir", str(tmp_path / str(rows)))
        assert train(*flags, *split) == 0
    one, four = (tmp_path / str(rows) for rows in (1, 4))
    assert read_losses(one)[0][1] == pytest.approx(read_losses(four)[0][1], abs=2e-6)
    (split,), (whole,) = read_routers(one), read_routers(four)
    assert split["load_entropy"] == whole["load_entropy"]
    assert split["aux_loss"] != pytest.approx(whole["aux_loss"], rel=1e-6)
    assert split["aux_loss"] == pytest.approx(whole["aux_loss"], rel=1e-2)


def test_a_checkpoints_router_can_be_told_otherwise(
    train: Train, run_flags: list[str], flags: list[str], tmp_path: Path
):
    few = ["--max_steps", "1", "--eval_every", "0"]
    start = tmp_path / "start"
    assert train(*flags, *few, "--output_dir", str(start)) == 0
    change = ["--set", "router_aux_loss_coef=0.5", "--set", "norm_topk_prob=false"]
    assert train(*run_flags, *few, *change, "--from_checkpoint", str(start)) == 0
    (before,), (after,) = read_routers(start), read_routers(tmp_path / "run")
    assert after["aux_loss"] > 100 * before["aux_loss"]
    more = ["--set", "num_experts_per_tok=1"]
    other = ["--output_dir", str(tmp_path / "other")]
    assert train(*run_flags, *more, *other, "--from_checkpoint", str(start)) == 2


@pytest.mark.parametrize("stage", ["sft", "lora", "dpo"])
def test_the_routers_join_every_stages_loss(
    train: Train, flags: list[str], tmp_path: Path, stage: str
):
    """And train with it, but for LoRA, whose base is frozen."""
    start = tmp_path / "start"
    few = ["--max_steps", "1", "--eval_every", "0"]
    sized = ["--set", "n_shared_experts=2", "--set", "router_aux_loss_coef=0.1"]
    assert train(*flags, *few, *sized, "--output_dir", str(start)) == 0
    then = ["--stage", stage, "--from_checkpoint", str(start), "--seq_len", "128"]
    then += ["--set", "train_batch_size=4", "--set", "micro_batch_size=2"]
    assert train(*then, *few, "--output_dir", str(tmp_path / "run")) == 0
    (row,) = read_routers(tmp_path / "run")
    # Two layers of S = 2 at an even load.
    assert 0.39 < row["aux_loss"] < 1
    assert row["dropped_tokens"] == 0
    assert (row["router_grad_norm"] > 0) == (stage != "lora")
