"""Stages that learn from their own answers, from the command line: the same steps under any split,
resumed to the bit, and what ends a run or does not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_folders import small_folder
from training_runs import (
    WITHOUT_CLIPPING,
    Train,
    assert_like_losses,
    assert_same_run,
    final_weights,
    read_column,
    read_losses,
    read_rows,
    train_until_killed,
)
from two_ranks import TrainOnTwo

from minimind.lora.folder import load_model_folder

STAGES = ("grpo", "ppo")
REWARD = {"repetition_penalty(ngram=1)": 1.0}
MEASURED = (
    "reward_std", "reward_repetition_penalty", "answer_tokens", "cut_share", "turns",
    "spread_share", "dropped_share", "failed_rewards", "rollout_tokens_per_s",
    "time_rollout_s", "time_reward_s", "time_reference_s", "time_forward_s", "time_backward_s",
)  # fmt: skip
TIMES = tuple(name for name in MEASURED if name.startswith(("time_", "rollout_tokens")))
BROKEN = """
def broken(rollout):
    if "3 +" in rollout.prompt:
        raise ValueError("out of order")
    return float(rollout.num_tokens > 3)
"""

pytestmark = pytest.mark.usefixtures("fp32")

Flags = Callable[..., list[str]]


def write_prompts(path: Path, number: int = 12, num_long: int = 0) -> Path:
    rows = []
    for n in range(number):
        question = f"{n} + 5 = ?" + " And so on." * (40 if n < num_long else 0)
        rows.append({"conversations": [{"role": "user", "content": question}], "gt": n + 5})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("start"))


@pytest.fixture
def flags_of(tmp_path: Path, start: Path) -> Flags:
    """flags_of(stage, option=…) -> flags of a run in tmp_path/run: four prompts a step in two
    micro-batches."""
    data = write_prompts(tmp_path / "prompts.jsonl")

    def flags(stage: str, **options: Any) -> list[str]:
        given: dict[str, Any] = {
            "train_batch_size": 4,
            "micro_batch_size": 2,
            "num_generations": 3,
            "max_new_tokens": 12,
            "rewards": json.dumps(REWARD),
            "eval_rows": 3,
        }
        sets = [f"{name}={value}" for name, value in {**given, **options}.items()]
        return [
            *("--stage", stage, "--from_checkpoint", str(start)),
            *("--data", str(data), "--val_data", str(data)),
            *("--output_dir", str(tmp_path / "run"), "--seq_len", "64", "--max_steps", "3"),
            *("--eval_every", "2", "--save_every", "2", "--sample_every", "1"),
            *("--learning_rate", "1e-2", *WITHOUT_CLIPPING),
            *(part for one in sets for part in ("--set", one)),
        ]

    return flags


def read_samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_bytes().splitlines()]


def assert_same_answers(left: Path, right: Path) -> None:
    """The same rewards and all else that is known of the answers."""
    for name in ("reward", *MEASURED):
        if name not in TIMES:
            assert read_column(left, name) == pytest.approx(read_column(right, name), abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_other_splits_take_the_same_steps(
    train: Train, train_on_two: TrainOnTwo, flags_of: Flags, tmp_path: Path, stage: str
):
    """Accumulated or in one micro-batch, on one rank or two, under two ZeRO stages."""
    assert train(*flags_of(stage)) == 0
    run = tmp_path / "run"
    assert max(read_column(run, "reward_std")) > 0.01
    assert len({loss for _, loss, _ in read_losses(run)}) == 3
    assert train(*flags_of(stage, micro_batch_size=4), *to(tmp_path / "whole")) == 0
    for name in ("zero2", "zero3"):
        train_on_two(*flags_of(stage), "--ds_config", f"{name}.json", *to(tmp_path / name))
    for name in ("whole", "zero2", "zero3"):
        assert_like_losses(run, tmp_path / name, within=2e-6)
        assert_same_answers(run, tmp_path / name)
        validations = ([v for _, _, v in read_losses(one)] for one in (run, tmp_path / name))
        assert next(validations) == next(validations)
    mine = [(one["step"], one["completion"], one["reward"]) for one in read_samples(run)]
    theirs = read_samples(tmp_path / "whole")
    assert [(one["step"], one["completion"], one["reward"]) for one in theirs] == mine


def to(folder: Path) -> tuple[str, str]:
    return "--output_dir", str(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_resumes_bitwise(train: Train, flags_of: Flags, tmp_path: Path, stage: str):
    flags = [*flags_of(stage, inner_epochs=2), "--max_steps", "4", "--eval_every", "0"]
    assert train(*flags, *to(tmp_path / "whole")) == 0
    # Two micro-batches in each of a step's two updates: in the fourth step.
    train_until_killed(*flags, after="minimind.engine.loop.seed_micro_batch", calls=14)
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert {one["step"] for one in read_samples(run)} == {1, 2, 3}
    assert train("--resume", *to(run)) == 0
    assert_same_run(whole, run)
    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    for row, expected in zip(read_rows(run), read_rows(whole), strict=True):
        for name in row:
            if name not in (*TIMES, "tokens_per_s", "peak_bytes", "resident_bytes"):
                assert row[name] == expected[name], name


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_run_leaves(train: Train, flags_of: Flags, tmp_path: Path, stage: str):
    assert train(*flags_of(stage)) == 0
    run = tmp_path / "run"
    rows = read_rows(run)
    assert len(rows) == 3
    for row in rows:
        for name in ("reward", "kl", "entropy", "clip_share", "sampler_gap", *MEASURED):
            assert row[name] != "", name
        assert float(row["sampler_gap"]) < 1e-4, "in fp32 sampler and trainer agree"
        assert float(row["reward"]) == pytest.approx(float(row["reward_repetition_penalty"]))
        assert 0 < float(row["answer_tokens"]) <= 12
        assert float(row["turns"]) == 1
    assert [one["step"] for one in read_samples(run)] == [
        step for step in (1, 2, 3) for _ in "1234"
    ]
    for sample in read_samples(run):
        assert sample["prompt"].endswith(" + 5 = ?")
        assert sample["reward"] == sample["reward_repetition_penalty"] <= 0
        assert 0 < sample["tokens"] <= 12
    # Minus the mean reward of greedy answers.
    validations = [float(value) for _, _, value in read_losses(run) if value]
    assert len(validations) == 2
    assert all(0 <= value <= 1 for value in validations)


@pytest.mark.parametrize("stage", STAGES)
def test_a_reward_that_raises_stops_all_ranks_or_is_skipped(
    train_on_two: TrainOnTwo, flags_of: Flags, tmp_path: Path, stage: str
):
    """It fails for one prompt alone, so on one rank alone."""
    (tmp_path / "own.py").write_text(BROKEN)
    reward = json.dumps({f"{tmp_path}/own.py:broken": 1.0})
    once = ("--max_steps", "3", "--eval_every", "0")
    said = train_on_two(*flags_of(stage, rewards=reward), *once, status=1)
    for part in ("own.py:broken of the prompt", '"3 + 5 = ?"', "out of order"):
        assert part in said
    assert "Traceback" not in said
    flags = flags_of(stage, rewards=reward, on_reward_error="skip")
    train_on_two(*flags, *once, *to(tmp_path / "skip"))
    failed = read_column(tmp_path / "skip", "failed_rewards")
    assert sum(failed) == 3, "the answers to one prompt of an epoch"


def test_groups_without_spread_are_dropped_and_the_run_goes_on(
    train: Train, flags_of: Flags, tmp_path: Path, start: Path
):
    """Every answer is worth as much: nothing is learned, and nothing fails."""
    rewards = json.dumps({"length_window(least=0, most=99)": 1.0})
    flags = [*flags_of("grpo", rewards=rewards, dynamic_sampling=2), "--eval_every", "0"]
    assert train(*flags) == 0
    run = tmp_path / "run"
    assert read_column(run, "dropped_share") == [1.0] * 3
    assert read_column(run, "spread_share") == [0.0] * 3
    assert all(math.isnan(loss) for _, loss, _ in read_losses(run))
    before = load_model_folder(start)[1]
    for name, weight in final_weights(run).items():
        assert weight.equal(before[name]), name


def test_prompts_that_do_not_fit_are_left_out_and_none_is_refused(
    train: Train, flags_of: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = [*flags_of("grpo"), "--max_steps", "1"]
    write_prompts(tmp_path / "prompts.jsonl", num_long=8)
    assert train(*flags) == 0
    assert "8 of 12 prompts are longer than a row of 52 tokens" in capsys.readouterr().err
    asked = {one["prompt"] for one in read_samples(tmp_path / "run")}
    assert asked == {f"{n} + 5 = ?" for n in (8, 9, 10, 11)}
    write_prompts(tmp_path / "prompts.jsonl", num_long=12)
    assert train(*flags, *to(tmp_path / "none")) == 2
    assert "none of 12 prompts fits a row of 52 tokens" in capsys.readouterr().err
    assert not (tmp_path / "none" / "metrics.csv").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_refuses_what_a_run_does(
    train: Train, flags_of: Flags, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
):
    assert train(*flags_of(stage), "--dry_run") == 0
    assert not (tmp_path / "run").exists()
    for flags, message in (
        ([*flags_of(stage), "--from_checkpoint", "none"], "--from_checkpoint none"),
        (flags_of(stage, rewards='{"exact": 1}'), "exact"),
        (flags_of(stage, max_turns=2), "no turn follows without a tool's result"),
    ):
        for more in (["--dry_run"], []):
            capsys.readouterr()
            assert train(*flags, *more) == 2
            assert message in capsys.readouterr().err
