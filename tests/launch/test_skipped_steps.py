"""Steps whose loss is not finite or jumps: by option skipped, or gone back from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Train, assert_same_run, read_losses

from minimind.engine.loop import Loop
from minimind.engine.spikes import LossSpikeError, SpikeWatch
from minimind.model.state_dict import load_hf_folder
from minimind.monitors.background import Monitors
from minimind.monitors.monitor import MonitoredRun
from minimind.monitors.start import start_monitors
from minimind.run import build
from minimind.stages.pretrain import Pretrain
from minimind.types import LossSum

BAD_STEP = 3


@pytest.fixture
def one_bad_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the first micro-batch of one step have a loss that is not a number."""
    calls: list[int] = []
    whole = Pretrain.loss

    def loss(self: Any, policy: Any, batch: Any) -> LossSum:
        if torch.is_grad_enabled():
            calls.append(1)
        is_bad = torch.is_grad_enabled() and len(calls) == 1 + 2 * (BAD_STEP - 1)

        def bad_policy(batch: Any, head: Any) -> Any:
            return policy(batch, head=lambda hidden, weight: head(hidden * float("nan"), weight))

        return whole(self, bad_policy if is_bad else policy, batch)

    monkeypatch.setattr(Pretrain, "loss", loss)


@pytest.mark.usefixtures("precision", "one_bad_loss")
@pytest.mark.parametrize(
    "name",
    ["zero0", "zero2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("zero1", "zero3"))],
)
@pytest.mark.faults(
    "a loss of NaN with skip_steps", "the step is skipped, its rows are written out"
)
def test_a_skipped_step_changes_no_weight_and_names_its_rows(
    train: Train, flags: list[str], tmp_path: Path, name: str
):
    flags = [*flags, "--ds_config", f"{name}.json", "--eval_every", "0", "--max_steps", "5"]
    flags += ["--set", "keep_checkpoints=9", "--save_every", "1"]
    assert train(*flags, "--set", "skip_steps=1") == 0
    weights = [
        load_hf_folder(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "model")[1]
        for step in range(1, 6)
    ]
    for key, before in weights[BAD_STEP - 2].items():
        assert torch.equal(before, weights[BAD_STEP - 1][key]), key
        assert not torch.equal(before, weights[BAD_STEP][key]), key
        assert weights[-1][key].isfinite().all()
    (line,) = (tmp_path / "run" / "skipped_steps.jsonl").read_text("utf-8").splitlines()
    found = json.loads(line)
    assert (found["step"], found["loss"]) == (BAD_STEP, "nan")
    assert all(row.rpartition(":")[2].isdigit() for row in found["rows"])
    assert [step for step, *_ in read_losses(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("save_every", "back_to"), [(3, 3), (2, 2)])
@pytest.mark.faults(
    "a spike of the loss with spike_deviations", "the run goes back and on without it"
)
def test_a_run_goes_back_from_a_spike_and_on_without_it(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    save_every: int,
    back_to: int,
):
    """As a run does that was left alone but for the two steps. The checkpoint of step 4 may hold
    the spike's cause."""
    whole = SpikeWatch.check

    def check(self: SpikeWatch, step: int, loss: float, *, has_checkpoint: bool) -> None:
        if step == 5 and has_checkpoint and not self._returns:
            raise LossSpikeError(step, f"step {step}: the loss jumps")
        whole(self, step, loss, has_checkpoint=has_checkpoint)

    flags = [*flags, "--eval_every", "0", "--max_steps", "8"]
    flags += ["--save_every", str(save_every)]
    monitored: list[bool] = []

    def start(run: MonitoredRun, ds_config: dict[str, Any]) -> Monitors:
        monitored.append(run.resumed)
        return start_monitors(run, ds_config)

    with monkeypatch.context() as patch:
        patch.setattr(SpikeWatch, "check", check)
        patch.setattr(build, "start_monitors", start)
        assert train(*flags) == 0
    assert monitored == [False, True], "the same run of a service goes on"
    said = capsys.readouterr().err
    assert f"step 5: the loss jumps; going back to step {back_to} of" in said
    assert "without steps 4 and 5" in said
    assert [step for step, *_ in read_losses(tmp_path / "run")] == [1, 2, 3, 6, 7, 8]

    meta = tmp_path / "run" / "checkpoints" / "latest" / "meta.json"
    assert json.loads(meta.read_text("utf-8"))["state"]["passed_over"] == [4, 5]
    take = Loop.step

    def step(self: Loop[Any, Any], micro_batches: list[Any]) -> None:
        self.state.passed_over = (4, 5)
        take(self, micro_batches)

    monkeypatch.setattr(Loop, "step", step)
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
