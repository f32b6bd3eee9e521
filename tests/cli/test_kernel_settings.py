"""What the environment asks of the kernels is checked when a program starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minimind.cli.main import run_verb

FLAGS = {
    "answer": ("--data", "none.jsonl", "--output", "none.jsonl"),
    "chat": (),
    "evaluate": ("--prompts", "a"),
    "serve": (),
}


@pytest.mark.parametrize("program", FLAGS)
def test_kernels_that_cannot_be_had(
    setting: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    tmp_path: Path,
) -> None:
    setting("MINIMIND_KERNELS", "fast")
    monkeypatch.chdir(tmp_path)
    assert run_verb(program, ["--checkpoint", "nowhere", *FLAGS[program]]) == 2
    assert "MINIMIND_KERNELS='fast' is not known" in capsys.readouterr().err
