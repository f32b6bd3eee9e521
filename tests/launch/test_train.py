"""A run from the command line: what it writes, that it can be stopped anywhere, what it refuses."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from minimind_kernels import backend
from training_runs import (
    KILL_AFTER,
    KILLED,
    WITHOUT_CLIPPING,
    Train,
    assert_like_losses,
    assert_like_weights,
    assert_same_run,
    assert_same_weights,
    final_weights,
    read_losses,
    train_in_a_process,
)
from two_ranks import TrainOnTwo

from minimind.data.loader import PackedLoader
from minimind.data.tokenizer_training import train_tokenizer
from minimind.engine import checkpoint as checkpoint_module
from minimind.engine.loop import Loop
from minimind.engine.stage import Policy
from minimind.model.state_dict import load_hf_folder
from minimind.stages.pretrain import Pretrain
from minimind.types import Batch, LossSum


def test_a_run_learns_and_leaves_everything_a_user_needs(
    train: Train, flags: list[str], tmp_path: Path
):
    assert train(*flags, "--max_steps", "20", "--sample_every", "20") == 0
    run = tmp_path / "run"
    losses = read_losses(run)
    assert [step for step, *_ in losses] == list(range(1, 21))
    assert losses[-1][1] < losses[0][1] - 0.5
    assert [step for step, _, val in losses if val] == [3, 6, 9, 12, 15, 18, 20]
    header = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "step,loss,val_loss,learning_rate,grad_norm,tokens,tokens_per_s,peak_bytes,resident_bytes"
    )
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert saved["recipe"]["train_batch_size"] == 4
    assert "auto" not in json.dumps(saved["ds_config"])
    assert (run / "checkpoints" / "latest").resolve().name == "step-00000020"
    assert (run / "checkpoints" / "best" / "model" / "tokenizer.json").exists()
    assert not list((run / "checkpoints").glob(".unfinished*"))
    assert all(weight.dtype == torch.float32 for weight in final_weights(run).values())


def test_without_data_it_trains_on_the_sample_data_in_a_folder_of_its_own(
    train: Train, shape: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    few = ["--max_steps", "1", "--seq_len", "32", "--eval_every", "0", "--sample_every", "1"]
    for number in (1, 2):
        assert train(*few, *shape) == 0
        assert (tmp_path / "runs" / f"pretrain-tiny-{number}" / "checkpoints" / "latest").exists()


@pytest.mark.usefixtures("precision")
def test_every_zero_stage_takes_the_same_steps_on_one_rank_and_on_two(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
):
    flags = [*flags, *WITHOUT_CLIPPING]
    assert train(*flags) == 0
    for name in ("zero0", "zero1", "zero2", "zero2_offload", "zero3"):
        file = ["--ds_config", f"{name}.json"]
        if name != "zero2":
            assert train(*flags, *file, "--output_dir", str(tmp_path / name)) == 0
            assert_same_run(tmp_path / "run", tmp_path / name)
        two = tmp_path / f"{name} on two"
        done = train_on_two(*flags, *file, "--output_dir", str(two))
        assert done.returncode == 0, done.stderr
        assert_same_run(tmp_path / "run", two)


@pytest.mark.usefixtures("fp32")
def test_clipping_does_not_depend_on_stage_or_ranks(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
):
    """But for the last digits of the norm, which Adam makes a share of the rate."""
    assert train(*flags) == 0
    for name in ("zero0", "zero1", "zero2", "zero3"):
        other = tmp_path / name
        done = train_on_two(*flags, "--ds_config", f"{name}.json", "--output_dir", str(other))
        assert done.returncode == 0, done.stderr
        assert_like_losses(tmp_path / "run", other, within=2e-5)
        assert_like_weights(tmp_path / "run", other)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_bf16_trains_from_exact_masters(
    train: Train, run_flags: list[str], shape: list[str], tmp_path: Path, name: str
):
    """At a rate far below a bf16 step fp32 masters still move, from where they were."""
    start = tmp_path / "start"
    once = [*run_flags, "--ds_config", f"{name}.json", "--max_steps", "1", "--eval_every", "0"]
    assert train(*once, *shape, "--output_dir", str(start)) == 0
    small = ["--set", "ds_config.bf16.enabled=true", "--learning_rate", "1e-6"]
    assert train(*once, *small, "--from_checkpoint", str(start)) == 0
    before, after = final_weights(start), final_weights(tmp_path / "run")
    for weight_name in before:
        moved = (after[weight_name] - before[weight_name]).abs()
        assert 0 < moved.max() <= 2e-6, weight_name


def test_the_deepspeed_launcher_starts_two_ranks(flags: list[str], tmp_path: Path, train: Train):
    flags = [*flags, *WITHOUT_CLIPPING]
    assert train(*flags) == 0
    done = train_in_a_process(*flags, "--output_dir", str(tmp_path / "two"), ranks=2)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", tmp_path / "two")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Within interrupt(n) a run gets SIGINT after step n."""
    take_step = Loop.step

    @contextlib.contextmanager
    def after(step: int) -> Iterator[None]:
        def interrupted(self: Loop, micro_batches: list[Any]) -> None:
            before = self.state.step
            take_step(self, micro_batches)
            if before < self.state.step == step:
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(Loop, "step", interrupted)
            yield

    return after


@pytest.mark.usefixtures("precision")
def test_a_run_resumed_after_sigint_ends_bitwise_like_one_left_alone(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    interrupt: Callable[[int], AbstractContextManager[None]],
):
    flags = [*flags, "--set", "dropout=0.1"]
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    with interrupt(3):
        assert train(*flags) == 130
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == "step-00000003"
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("module", "function", "calls", "kind"),
    [
        ("loop", "seed_micro_batch", 9, "bf16"),  # between two micro-batches of step 5
        ("checkpoint", "save_hf_folder", 2, "fp32"),  # in the middle of the second save
        ("checkpoint", "_link", 3, "bf16"),  # renamed, but `latest` still names the one before
    ],
)
def test_a_run_killed_anywhere_resumes_bitwise(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    function: str,
    calls: int,
    kind: str,
):
    monkeypatch.setenv("MINIMIND_PRECISION", kind)
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    prelude = KILL_AFTER.format(module=module, function=function, calls=calls)
    done = train_in_a_process(*flags, prelude=prelude)
    assert done.returncode == KILLED, done.stderr
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_a_run_resumes_at_another_number_of_ranks(
    train: Train,
    train_on_two: TrainOnTwo,
    flags: list[str],
    tmp_path: Path,
    interrupt: Callable[[int], AbstractContextManager[None]],
    name: str,
):
    """With the same data, weights, moments and rates as if nothing had happened."""
    flags = [*flags, *WITHOUT_CLIPPING, "--ds_config", f"{name}.json"]
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    with interrupt(3):
        assert train(*flags) == 130
    done = train_on_two("--resume", "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert [step for step, *_ in read_losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3"])
def test_what_is_given_anew_holds_for_a_resumed_run(
    train: Train, flags: list[str], tmp_path: Path, name: str
):
    """Though the optimizer's own state remembers other options."""
    run, other = tmp_path / "run", tmp_path / "other"
    assert train(*flags, "--max_steps", "2", "--ds_config", f"{name}.json") == 0
    shutil.copytree(run, other, symlinks=True)
    more = ["--resume", "--max_steps", "3"]
    assert train(*more, "--output_dir", str(run)) == 0
    with open(run / "metrics.csv", encoding="utf-8") as file:
        rate = float(list(csv.DictReader(file))[-1]["learning_rate"])
    half = ["--set", f"weight_decay={0.01 + 0.5 / rate}"]
    assert train(*more, *half, "--output_dir", str(other)) == 0
    _, before = load_hf_folder(other / "checkpoints" / "step-00000002" / "model")
    plain, decayed = final_weights(run), final_weights(other)
    for weight_name, weight in decayed.items():
        expected = plain[weight_name] - 0.5 * before[weight_name]
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-4)


def test_a_damaged_checkpoint_is_passed_over(train: Train, flags: list[str], tmp_path: Path):
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    assert train(*flags, "--eval_every", "0") == 0
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    (shard,) = newest.glob("engine/*optim_states.pt")
    shard.write_bytes(shard.read_bytes()[:-100])
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    save, calls = checkpoint_module.save_hf_folder, []

    def full(*arguments: object) -> None:
        calls.append(1)
        if len(calls) in (2, 4):
            raise OSError(28, "No space left on device")
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_module, "save_hf_folder", full)
    assert train(*flags, "--eval_every", "0", "--save_every", "2") == 0
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["latest", "step-00000002", "step-00000006"]
    monkeypatch.setattr(checkpoint_module, "save_hf_folder", lambda *_: full(calls.pop()))
    calls[:] = [1, 1, 1]
    again = [*flags, "--output_dir", str(tmp_path / "again"), "--max_steps", "1"]
    assert train(*again) == 1
    assert not list((tmp_path / "again" / "checkpoints").iterdir())


def test_a_loss_that_is_not_finite_names_its_rows_and_keeps_the_checkpoint(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    loss, calls = Pretrain.loss, []

    def sometimes_nan(self: Pretrain, policy: Policy, batch: Batch) -> LossSum:
        calls.append(1)
        result = loss(self, policy, batch)
        return replace(result, total=result.total + float("nan")) if len(calls) == 6 else result

    monkeypatch.setattr(Pretrain, "loss", sometimes_nan)
    described = []
    describe = PackedLoader.describe
    monkeypatch.setattr(
        PackedLoader, "describe", lambda *place: described.append(place[1:]) or describe(*place)
    )
    assert train(*flags, "--eval_every", "0", "--save_every", "1") == 1
    error = capsys.readouterr().err
    assert "step 3: the loss is nan" in error
    assert "data.jsonl:" in error
    assert described == [(2, 1)]
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == "step-00000002"


def test_a_gradient_that_is_not_finite_ends_the_run(
    train: Train, flags: list[str], capsys: pytest.CaptureFixture[str]
):
    assert train(*flags, "--learning_rate", "1e30") == 1
    assert "gradient norm inf" in capsys.readouterr().err


def test_bad_rows_stop_the_run_before_it_starts_or_are_skipped_and_listed(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(
        b'{"text": "good line, long enough to train on"}\n{"text": 5}\n\n'
        b'not json\n{"text": "bad \xff"}\n{"text": "<|im_end|> stays text"}\n'
    )
    assert train(*flags, "--data", str(bad)) == 2
    error = capsys.readouterr().err
    for line in (2, 4, 5):
        assert f"bad.jsonl:{line}: " in error
    for line in (1, 3, 6):
        assert f"bad.jsonl:{line}: " not in error
    assert not (tmp_path / "run").exists()
    assert train(*flags, "--data", str(bad), "--on_bad_row", "skip", "--max_steps", "2") == 0
    assert "bad.jsonl:4: " in capsys.readouterr().err


@pytest.mark.usefixtures("fp32")
def test_what_cannot_be_resumed_says_why(
    train: Train, flags: list[str], tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    run = str(tmp_path / "run")
    assert train(*flags, "--max_steps", "2") == 0

    def refuses(*more: str) -> str:
        assert train(*more) == 2
        return capsys.readouterr().err

    assert "already holds a run" in refuses(*flags)
    resume = ("--resume", "--output_dir", run, "--max_steps", "4")
    assert "hidden_size, head_dim" in refuses(*resume, "--set", "hidden_size=64")
    assert "other data" in refuses(*resume, "--seed", "1")
    assert "rows a step" in refuses(*resume, "--set", "train_batch_size=8")
    assert "ZeRO stage 2" in refuses(*resume, "--ds_config", "zero1.json")
    assert "precision fp32" in refuses(*resume, "--set", "ds_config.bf16.enabled=true")
    other = tmp_path / "other"
    train_tokenizer(["of other words " * 20], vocab_size=304).save(other)
    assert "is another than that of" in refuses(*resume, "--tokenizer", str(other))
    assert "--resume needs --output_dir" in refuses("--resume")
    meta = Path(run) / "checkpoints" / "step-00000002" / "meta.json"
    saved = json.loads(meta.read_text(encoding="utf-8"))
    for text, problem in (
        ("{", "not the description of a checkpoint"),
        (json.dumps(saved | {"files": ["config.json"]}), "not the description of a checkpoint"),
        (json.dumps({k: v for k, v in saved.items() if k != "stage"}), "holds no stage"),
    ):
        meta.write_text(text, encoding="utf-8")
        said = refuses(*resume)
        assert "no checkpoint is whole" in said
        assert problem in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ds_config", "nothing.json"], "zero2.json"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--set", "train_batch_size=5"], "is not whole"),
        (["--set", "nothing=1"], "neither a field of the model"),
        (["--set", "ds_config.zero_optimisation.stage=2"], "zero_optimisation"),
        (["--set", "ds_config.zero_optimization.stages=2"], "stages"),
        (["--set", "ds_config.fp16.enabled=true"], "fp16"),
        (["--model", "gpt5"], "minimind2-small"),
        (["--seq_len", "65536"], "max_position_embeddings"),
        (["--from_checkpoint", "nowhere"], "nowhere"),
        (["--set", "vocab_size=100"], "the model only 100"),
        (["--set", 'lr_factors={"nothing": 0.1}'], "nothing"),
        (["--set", 'ds_config.scheduler={"type": "NoSuch"}'], "NoSuch"),
        (["--set", 'ds_config.scheduler={"type": "WarmupLR", "params": {"warm": 1}}'], "warm"),
    ],
)
def test_what_is_wrong_is_named_and_ends_with_status_2(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
):
    assert train(*flags, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_output_folder_that_is_a_file_is_named(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    assert train(*flags, "--output_dir", str(folder)) == 2
    said = capsys.readouterr().err
    assert f"--output_dir {folder}: {tmp_path / 'file'} is a file; name a folder" in said


def test_a_validation_loss_that_is_no_number_is_not_the_best_for_good(
    train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loss, calls = Pretrain.loss, []

    def first_nan(self: Pretrain, policy: Policy, batch: Batch) -> LossSum:
        result = loss(self, policy, batch)
        if torch.is_grad_enabled():
            return result
        calls.append(1)
        return replace(result, total=result.total * math.nan) if len(calls) == 1 else result

    monkeypatch.setattr(Pretrain, "loss", first_nan)
    assert train(*flags) == 0
    assert next(val for _, _, val in read_losses(tmp_path / "run") if val) == "nan"
    assert (tmp_path / "run" / "checkpoints" / "best").resolve().name == "step-00000006"


@pytest.mark.parametrize(
    ("value", "message"),
    [("fast", "MINIMIND_KERNELS='fast' is not known"), ("triton", "needs a CUDA or ROCm GPU")],
)
def test_a_choice_of_kernels_that_cannot_be_met(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    message: str,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backend, "interpreting", lambda: False)
    monkeypatch.setenv("MINIMIND_KERNELS", value)
    backend.kernels_setting.cache_clear()
    try:
        assert train(*flags) == 2
    finally:
        backend.kernels_setting.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_of_two_ranks_one_says_what_is_wrong_and_both_leave(
    train: Train, flags: list[str], tmp_path: Path
):
    """With what rank 0 alone looks at."""
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    done = train_in_a_process(*flags, ranks=2)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert said.count("already holds a run's checkpoints") == 1
    assert "Traceback" not in said


def test_an_empty_file_and_a_json_that_is_none(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert train(*flags, "--data", str(empty)) == 2
    assert "empty.jsonl" in capsys.readouterr().err
    broken = tmp_path / "broken.json"
    broken.write_text('{"train_batch_size": ', encoding="utf-8")
    assert train(*flags, "--ds_config", str(broken)) == 2
    assert "broken.json: not valid JSON" in capsys.readouterr().err


def test_a_dry_run_says_what_would_happen_and_does_nothing(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(*flags, "--dry_run") == 0
    said = capsys.readouterr().out
    for part in ("parameters", "ZeRO stage 2", "6 steps", "tokens", "memory"):
        assert part in said
    assert not (tmp_path / "run").exists()


def test_a_schedule_in_the_json_is_used_instead(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    parts = '{"type": "WarmupLR", "params": {"warmup_max_lr": 0.002, '
    scheduler = parts + '"warmup_num_steps": 4, "warmup_type": "linear"}}'
    with_schedule = [*flags, "--set", f"ds_config.scheduler={scheduler}"]
    assert train(*with_schedule) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
    rates = [float(row.split(",")[3]) for row in rows]
    assert rates[-1] == pytest.approx(0.002)
    assert rates[0] < 0.001
    assert train(*with_schedule, "--learning_rate", "1e-3") == 2
    assert "contradicts" in capsys.readouterr().err
