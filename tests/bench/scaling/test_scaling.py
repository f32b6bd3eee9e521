"""bench.scaling: what is launched, what is measured, what is predicted and drawn of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.scaling import __main__ as scaling
from bench.scaling import rank as scaling_rank
from bench.scaling.plot import plot_rows
from bench.scaling.rows import Link, StepModel, build_row, format_rows, predict_row
from minimind.rehearsal.rehearse import rehearse
from minimind.run.arguments import parse_arguments
from minimind.run.run import Run
from minimind.runtime.devices import find_device
from minimind.runtime.ranks import read_ranks

MACHINE = {"device": "A machine", "kind": "cpu", "cores": 2, "date": "2026-11-21T00:00"}
LINK = Link(bytes_per_s=1e9, latency_s=1e-4)
TINY = ["--model", "tiny", "--seq_len", "64", "--set", "num_hidden_layers=1", "--set",
        "ds_config.bf16.enabled=false", "--set", "micro_batch_size=1"]  # fmt: skip


def make_model(stage: int, **changes: Any) -> StepModel:
    fields: dict[str, Any] = {
        "world_size": 1,
        "micro_batches": 8,
        "compute_s": 8.0,
        "update_s": 1.0,
        "data_wait_s": 0.0,
        "zero": {"stage": stage},
    }
    return StepModel(**(fields | changes))


MB = 1_000_000
ZERO_2 = {"all_reduce": (6, 400 * MB), "all_gather": (1, 100 * MB)}
"""Four micro-batches' gradients and two small sums, then the weights."""


def test_a_step_predicted_by_hand() -> None:
    # Two ranks: half the micro-batches, half the update; 4 gradients of 100 MB pass once each way,
    # half of the weights' 100 MB are received; seven collectives are waited for.
    expected = 4.0 + 0.5 + 4 * 0.1 + 0.05 + 7e-4
    assert make_model(2).step_s(2, 4, LINK, ZERO_2) == pytest.approx(expected)
    # Stage 0 reduces once, updates everything on every rank and gathers nothing.
    once = {"all_reduce": (3, 100 * MB)}
    assert make_model(0).step_s(2, 4, LINK, once) == pytest.approx(4.0 + 1.0 + 0.1 + 3e-4)
    assert make_model(2).step_s(1, 8, LINK, ZERO_2) == pytest.approx(9.0)


def test_gradients_leave_behind_the_backward_pass() -> None:
    model = make_model(2, zero={"stage": 2, "overlap_comm": True})
    assert model.step_s(2, 4, LINK, ZERO_2) == pytest.approx(4.0 + 0.5 + 0.05 + 7e-4)
    slow = Link(bytes_per_s=1e8, latency_s=0.0)
    exposed = 4 * 1.0 - 4.0 * 2 / 3
    assert model.step_s(2, 4, slow, ZERO_2) == pytest.approx(4.5 + exposed + 0.5)


@pytest.mark.parametrize(
    ("kind", "here", "counts"),
    [("gpu", 1, [1]), ("gpu", 6, [1, 2, 4]), ("gpu", 8, [1, 2, 4, 8]), ("cpu", 1, [1]),
     ("cpu", 16, [1, 2])],
)  # fmt: skip
def test_counts_that_a_machine_can_be_measured_with(
    kind: str, here: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = replace(find_device(), torch_device=torch.device("cuda" if kind == "gpu" else "cpu"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(here)))
    assert scaling.counts_here(device) == counts


def test_each_count_takes_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that two commits are measured at one count after the other."""
    events: list[str] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(scaling, "pass_turn", lambda: events.append("turn"))
    monkeypatch.setattr(scaling, "_run", lambda options, device, count, *_: events.append(count))
    monkeypatch.setattr(scaling, "build_row", lambda mode, rows, found, device, base: {
        "name": mode, "world_size": 1 + bool(base), "link": None,
    })  # fmt: skip
    monkeypatch.setattr(scaling, "predict", lambda *_: None)
    scaling.measure(scaling.build_parser().parse_args(["--num_gpus", "1,2"]))
    assert events == ["turn", 1, "turn", 2, "turn", 2]


def test_no_hostfile_is_read() -> None:
    command = scaling.build_command("m", [], 2)
    assert command[command.index("--hostfile") + 1] == os.devnull
    assert 20_000 <= int(command[command.index("--master_port") + 1]) < 32_768


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_gpus", "one"], "--num_gpus one"),
        (["--num_gpus", "1024"], "not as many"),
        (["--num_gpus", "1,2", "--rows", "3", "--micro_batch", "1"], "--rows 3 is no multiple"),
        (["--modes", "strong,wide"], "--modes wide"),
    ],
)
def test_bad_usage_is_named(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    assert scaling.main(["--json", str(path), *argv]) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()


def test_a_warm_up_is_two_steps_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--warmup", "1"])
    assert "--warmup: 1 is below 2" in capsys.readouterr().err


@pytest.mark.usefixtures("no_launcher")
def test_a_rank_measures_the_loop_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(timed_steps=3, warmup_steps=2)
    flags = [*TINY, "--set", "train_batch_size=2", "--ds_config", "zero2.json"]
    device = find_device()
    found = scaling_rank.measure(options, flags, read_ranks(), device)
    (rank,) = json.loads(json.dumps(found))["ranks"]
    assert len(rank["step_seconds"]) == len(rank["num_tokens"]) == 3
    assert all(0 < tokens <= 2 * 64 for tokens in rank["num_tokens"])
    assert rank["attended"] >= sum(rank["num_tokens"])
    assert rank["peak_bytes"] >= 16 * found["parameters"]
    parts = rank["step_parts_s"]
    assert min(parts[name] for name in ("forward", "backward", "engine", "optimizer")) > 0

    row = build_row("strong", 2, found, device, None)
    expected = row["useful_tokens_per_step"] / row["step_s"]["median"]
    assert row["useful_tokens_per_s"] == pytest.approx(expected)
    assert row["efficiency"] == 1
    assert row["micro_batches"] == 2
    with_peak = build_row("strong", 2, found, dataclasses.replace(device, peak_flops=1e12), None)
    assert with_peak["mfu"] > 0
    assert with_peak["mfu_causal"] > 0
    rows = [row]
    model = make_model(2, micro_batches=2, compute_s=row["step_s"]["median"], update_s=0.0)
    rehearsed = rehearse(Run.of(parse_arguments([*flags])))
    for count in (1, 2):
        predict_row(rows, model, LINK, "strong", count, 2 // count, rehearsed)
    assert rows[0]["prediction_error"]["useful_tokens_per_s"] == pytest.approx(0)
    assert rows[1]["predicted"]
    assert "useful_tokens_per_s" not in rows[1], "what was not run has no measured number"
    assert "not measured" in format_rows(rows).splitlines()[3]
    plot_rows(rows, MACHINE, tmp_path / "new" / "scaling.png")
    assert (tmp_path / "new" / "scaling.png").read_bytes().startswith(b"\x89PNG")

    def run(options: argparse.Namespace, device: Any, count: int, flags: list[str]) -> Any:
        return found | {"ds_config": flags[flags.index("--ds_config") + 1]}

    monkeypatch.setattr(scaling, "_run", run)
    path = tmp_path / "results.json"
    argv = ["--json", str(path), "--num_gpus", "1", "--modes", "strong", "--micro_batch", "1"]
    argv += ["--ds_config", "zero2.json", "zero0.json", "--rows", "2", *TINY[:-2]]
    assert scaling.main(argv) == 0
    said = capsys.readouterr().out
    assert "| scaling |       JSON | ranks | useful tokens/s" in said
    assert said.count("zero0.json |") == said.count("zero2.json |") == 1
    for row in json.loads(path.read_text())["rows"]:
        prediction = row["prediction"]
        assert sum(prediction["holders"].values()) == prediction["peak_bytes"]
        assert prediction["communication_s"] == 0, "one rank sends nothing"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_move_the_bytes_of_the_model(stage: int, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    argv = ["--num_gpus", "2,4", "--modes", "strong", "--model", "tiny", "--seq_len", "64"]
    argv += ["--micro_batch", "1", "--rows", "4", "--steps", "1", "--threads", "1"]
    argv += ["--ds_config", f"zero{stage}.json", "--set", "num_hidden_layers=1"]
    argv += ["--set", "ds_config.bf16.enabled=false"]
    assert scaling.main(["--json", str(path), *argv]) == 0
    measured, predicted = json.loads(path.read_text())["rows"]
    assert measured["world_size"] == 2
    assert predicted["predicted"]
    assert predicted["useful_tokens_per_s"] is None
    flags = ["--model", "tiny", "--seq_len", "64", "--ds_config", f"zero{stage}.json"]
    for setting in ("num_hidden_layers=1", "ds_config.bf16.enabled=false"):
        flags += ["--set", setting]
    flags += ["--set", "micro_batch_size=1", "--set", "train_batch_size=4"]
    rehearsed = rehearse(Run.of(parse_arguments(flags)), ranks=2)
    for kind, (_, payload) in rehearsed.collectives.items():
        assert measured["collectives"][kind]["payload_bytes"] == pytest.approx(payload, rel=0.01)
    assert measured["link"]["bytes_per_s"] > 0
    assert len(measured["peak_bytes_per_rank"]) == 2
