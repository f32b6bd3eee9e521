"""bench.counts: what makes the host wait is seen, whether an operator does it or a call."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

import pytest
import torch

from bench.train.counts import SYNC_OPERATORS, count_step, waiting_copy


def tensor(device: str, pinned: bool = False) -> Any:
    found = mock.Mock(device=torch.device(device))
    found.is_pinned.return_value = pinned
    return cast(Any, found)


@pytest.mark.parametrize(
    ("source", "target", "is_async", "kind"),
    [
        (tensor("cpu"), tensor("cpu"), False, None),
        (tensor("cuda"), tensor("cuda"), False, None),
        (tensor("cuda"), tensor("cpu"), False, "device_to_host"),
        (tensor("cuda"), tensor("cpu"), True, None),
        (tensor("cpu", pinned=True), tensor("cuda"), False, "host_to_device"),
        (tensor("cpu"), tensor("cuda"), True, "pageable_copy"),
        (tensor("cpu", pinned=True), tensor("cuda"), True, None),
    ],
)
def test_copies_that_wait(source: Any, target: Any, is_async: bool, kind: str | None) -> None:
    assert waiting_copy(source, target, is_async=is_async) == kind


def test_calls_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
        monkeypatch.setattr(owner, "synchronize", lambda *_: None)

    def step() -> None:
        torch.ones(2).sum().item()
        torch.cuda.synchronize()
        cast(Any, torch.cuda.Event).synchronize(None)
        cast(Any, torch.cuda.Stream).synchronize(None)

    found = count_step(step, torch.device("cpu"))
    counted = {name: count for name, count in found["sync_operators"].items() if count}
    assert counted == {
        "_local_scalar_dense": 1,
        "synchronize": 1,
        "stream_synchronize": 1,
        "event_synchronize": 1,
    }
    assert found["sync_operators"].keys() == set(SYNC_OPERATORS)
    assert found["dispatched_operators"] > 1
    assert found["kernel_calls"] == 0
