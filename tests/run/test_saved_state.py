"""The state of a run as a checkpoint's meta.json holds it, which anyone may have written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from saved_checkpoints import META

from minimind.engine.callbacks import RunState
from minimind.engine.checkpoint import Checkpoint
from minimind.errors import CheckpointError
from minimind.run.build import _load_state

STATE = {"step": 3, "tokens": 7, "best_val_loss": "inf", "skipped_steps": 1, "passed_over": [1, 2]}


def load(state: dict[str, Any]) -> RunState:
    return _load_state(Checkpoint(Path("somewhere"), META | {"state": state}))


def test_a_state_is_loaded_as_it_was_saved():
    assert load(STATE) == RunState(3, 7, math.inf, 1, (1, 2))
    assert load({"step": 3, "tokens": 7, "best_val_loss": 1.5}) == RunState(3, 7, 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "3"}, "step is '3'; it must be a valid integer"),
        ({"best_val_loss": "low"}, "holds no best_val_loss that is a number"),
        ({"best_val_loss": None}, "holds no best_val_loss that is a number"),
        ({"passed_over": [1, "x"]}, r"passed_over\[1\] is 'x'"),
        ({"speed": 1}, "no such field: speed"),
    ],
)
def test_a_state_that_cannot_be_used_is_named(changes: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=rf"^somewhere/meta\.json: state.*{message}"):
        load(STATE | changes)
