"""Experts in bench.train: its rows compute the same thing, or as much of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.train import __main__ as train_step
from bench.train.goals import measure_goals
from bench.train.rows import LoopedExperts
from bench.train.specs import EXPERT_ROWS, dense_config
from minimind.config.model import ModelConfig, load_model_config
from minimind.model.moe import MixtureOfExperts

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_the_loop_computes_what_our_experts_do() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=24
    )
    ours = MixtureOfExperts(config)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    loop = LoopedExperts(ours)
    outputs, gradients = [], []
    for mixture in (ours, loop):
        x_MD = torch.linspace(-1, 1, 23 * 32).view(23, 32).sin().requires_grad_()
        outputs.append(mixture(x_MD))
        outputs[-1].square().sum().backward()
        gradients.append(x_MD.grad)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
    for number, expert in enumerate(loop.experts):
        torch.testing.assert_close(
            expert.gate_up_proj.weight.grad, ours.gate_up_proj.grad[number], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            expert.down_proj.weight.grad, ours.down_proj.grad[number], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("model", ["minimind2-moe", "minimind3-moe"])
def test_dense_has_as_many_active_parameters(model: str) -> None:
    config = load_model_config(model)
    routers = config.num_hidden_layers * config.num_experts * config.hidden_size
    assert dense_config(config).num_parameters == config.num_active_parameters - routers


def test_a_run_writes_every_row_and_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MINIMIND_COMPILE", "0")
    path = tmp_path / "experts.json"
    small = ["--set", "hidden_size=32", "--set", "num_hidden_layers=1", "--accumulation", "1"]
    small += ["--seq_len", "64", "--micro_batch", "1", "--steps", "2", "--warmup", "1"]
    rows = ["plain_loop", *EXPERT_ROWS]
    argv = ["--json", str(path), "--model", "minimind3-moe", "--rows", ",".join(rows), *small]
    assert train_step.main(argv) == 0
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == rows
    experts, dense, loop = found["rows"]
    assert dense["ratio_to_dense"] == 1
    assert experts["parameters"] == loop["parameters"] > dense["parameters"]
    assert experts["losses"] == pytest.approx(loop["losses"], rel=0.02)
    assert [goal["name"] for goal in found["goals"]] == [
        "step time of experts over a dense model's"
    ]


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("ratio", "is_met"), [(1.09, True), (1.12, False)])
def test_the_goal_of_experts(ratio: float, is_met: bool, on_gpu: bool) -> None:
    rows = [
        {"name": name, "model": "moe", "step_seconds": seconds}
        for name, seconds in (("plain_loop", [ratio, 2 * ratio]), ("dense", [1.0, 2.0]))
    ]
    (goal,) = measure_goals("pretrain", rows, on_gpu)
    assert goal["value"] == pytest.approx(ratio)
    assert (goal["at_most"], goal["is_met"]) == (1.1, is_met)


@pytest.mark.parametrize("row", EXPERT_ROWS)
def test_a_dense_model_is_refused(
    row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--json", str(tmp_path / "a.json"), "--model", "minimind2", "--rows", row]
    assert train_step.main(argv) == 2
    assert "minimind2 has no experts" in capsys.readouterr().err
