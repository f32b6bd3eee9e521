"""bench.moe_step: its rows compute the same thing, or as much of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import moe_step
from bench.moe_rows import ROWS, LoopedExperts, dense_config
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


def test_a_run_writes_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MINIMIND_COMPILE", "0")
    path = tmp_path / "moe.json"
    small = ["--set", "hidden_size=32", "--set", "num_hidden_layers=1"]
    small += ["--seq_len", "64", "--micro_batch", "1", "--steps", "2", "--warmup", "0"]
    assert moe_step.main(["--json", str(path), "--model", "minimind3-moe", *small]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == list(ROWS)
    assert rows[0]["step_ratio_to_dense"] == 1
    for row in rows:
        assert row["useful_tokens_per_s"] > 0
        assert row["peak_bytes"] > 4 * row["parameters"]
        assert row["machine"]["device"]


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    arguments = ["--json", str(tmp_path / "moe.json"), "--model", "minimind2"]
    assert moe_step.main(arguments) == 2
