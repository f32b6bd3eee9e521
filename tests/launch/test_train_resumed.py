"""Resumed runs: after a signal, a kill or a damaged checkpoint, and at another number of ranks."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    WITHOUT_CLIPPING,
    Train,
    assert_same_run,
    final_weights,
    read_column,
    read_losses,
    train_until_killed,
)
from two_ranks import TrainOnTwo

from minimind.data.tokenizer_training import train_tokenizer
from minimind.engine.loop import Loop
from minimind.model.state_dict import load_hf_folder


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
@pytest.mark.faults(
    "SIGINT in a run", "a checkpoint is saved, and the run resumes with the same bits"
)
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
    ("after", "calls", "kind"),
    [
        ("loop.seed_micro_batch", 9, "bf16"),  # between two micro-batches of step 5
        ("checkpoint_store.save_hf_folder", 2, "fp32"),  # in the middle of the second save
        ("publish._set_aside", 2, "bf16"),  # all is written, but has no name yet
        ("checkpoint_store.prune", 2, "bf16"),  # just after it has its name
    ],
)
@pytest.mark.faults("kill -9 anywhere in a run", "resumed, it ends with the same bits")
def test_a_run_killed_anywhere_resumes_bitwise(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: str,
    calls: int,
    kind: str,
):
    monkeypatch.setenv("MINIMIND_PRECISION", kind)
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    train_until_killed(*flags, after=f"minimind.engine.{after}", calls=calls)
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
    train_on_two("--resume", "--output_dir", str(tmp_path / "run"))
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
    rate = read_column(run, "learning_rate")[-1]
    half = ["--set", f"weight_decay={0.01 + 0.5 / rate}"]
    assert train(*more, *half, "--output_dir", str(other)) == 0
    _, before = load_hf_folder(other / "checkpoints" / "step-00000002" / "model")
    plain, decayed = final_weights(run), final_weights(other)
    for weight_name, weight in decayed.items():
        expected = plain[weight_name] - 0.5 * before[weight_name]
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("fp32")
@pytest.mark.faults("what cannot be resumed", "says why")
def test_what_cannot_be_resumed_says_why(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
