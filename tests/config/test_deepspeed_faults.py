"""Options with which DeepSpeed would train wrongly are refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from resolved_json import Resolve

from minimind.errors import ConfigError


def test_gradients_that_stage_1_would_add_twice_are_refused(resolved: Resolve):
    def asked(stage: int, rows: int, bf16: bool = True) -> dict[str, Any]:
        return {
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": rows,
            "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": stage},
            "data_types": {"grad_accum_dtype": "fp32"},
        }

    with pytest.raises(ConfigError, match=r"grad_accum_dtype fp32.*stage 1.*steps 4.*immediate"):
        resolved(asked(1, rows=2))
    once = asked(1, rows=2)
    once["bf16"]["immediate_grad_update"] = True
    for fine in (asked(1, rows=8), asked(2, rows=2), asked(1, rows=2, bf16=False), once):
        resolved(fine)


@pytest.mark.parametrize(
    ("name", "stage", "bf16", "why"),
    [
        ("LBFGS", 0, False, "asks for the loss anew"),
        ("SparseAdam", 0, True, "gradients here are dense"),
        ("Adafactor", 1, False, "use AdamW, or Adafactor with stage 0"),
        ("adagrad", 2, True, "weight decay and the rates of its groups"),
        ("Adafactor", 0, True, ""),
        ("Adagrad", 0, True, ""),
        ("Muon", 2, True, ""),
    ],
)
def test_optimizers_that_deepspeed_gets_wrong_are_refused(
    resolved: Resolve, name: str, stage: int, bf16: bool, why: str
):
    asked = {
        "optimizer": {"type": name, "params": {"lr": 1e-3}},
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage},
    }
    with pytest.raises(ConfigError, match=why) if why else contextlib.nullcontext():
        resolved(asked)
