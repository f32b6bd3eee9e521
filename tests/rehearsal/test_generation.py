"""A step of a generation on a GPU that is not there: one graph, one wait, for its own tokens."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from minimind.rehearsal.rehearse import rehearse_generation

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)

EVERYTHING = {
    "temperature": 0.8,
    "top_k": 20,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "logprobs": 2,
}


@pytest.mark.parametrize(
    ("model", "params"), [("tiny", {}), ("minimind3-moe", EVERYTHING)], ids=["greedy", "everything"]
)
def test_a_step_waits_for_its_tokens_alone(model: str, params: dict[str, Any]) -> None:
    """A wait within a capture would break the rehearsal."""
    found = rehearse_generation(model, batch=4, length=256, **params)
    (wait,) = found.waits
    assert (wait.kind, wait.count) == ("event.synchronize", 1)
    assert "pending_tokens.py" in wait.place
    assert found.operators == {"replay": 1, "_to_copy": 1}
    assert not found.launches
    assert found.flops > 0
    assert found.peak["weights"] > 0
    assert found.peak["cache"] > 0
