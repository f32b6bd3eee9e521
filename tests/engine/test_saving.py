"""What a run does with checkpoints that cannot be written."""

from __future__ import annotations

import pytest

from minimind.engine.callbacks import Callbacks, RunState
from minimind.engine.saving import Saving
from minimind.errors import TrainingError


class Disk:
    """Stands for callbacks that write in the background."""

    def __init__(self) -> None:
        self.is_full = False
        self.did: list[str] = []
        self.said: list[str] = []
        self.callbacks = Callbacks(save=self.save, confirm=self.confirm, say=self.say)

    def save(self, state: RunState, is_best: bool) -> None:
        self.did.append("save")

    def confirm(self) -> None:
        self.did.append("confirm")
        if self.is_full:
            raise TrainingError("the disk is full")

    def say(self, text: str, *values: object) -> None:
        self.said.append(text % values)


def test_only_the_last_save_is_waited_for():
    disk = Disk()
    saving = Saving(disk.callbacks, RunState())
    assert saving.save(False, or_go_on=True)
    assert disk.did == ["save"]
    assert saving.save(False, or_go_on=False)
    assert disk.did == ["save", "save", "confirm"]
    disk.is_full = True
    with pytest.raises(TrainingError):
        saving.save(False, or_go_on=False)
    assert disk.said == []


def test_a_best_that_could_not_be_written_leaves_the_place_to_the_next():
    disk, state = Disk(), RunState(best_val_loss=5.0)
    saving = Saving(disk.callbacks, state)
    state.best_val_loss = 3.0
    assert saving.save(True, or_go_on=True)
    disk.is_full = True
    assert not saving.confirm()
    assert state.best_val_loss == 5.0, "4 is then the best"
    assert disk.said == ["the disk is full; training goes on"]
    disk.is_full = False
    state.best_val_loss = 4.0
    assert saving.save(True, or_go_on=True)
    assert saving.confirm()
    disk.is_full = True
    assert not saving.confirm()
    assert state.best_val_loss == 4.0
