"""Provides small recipes, and a way to run their commands in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_recipes import STEPS, Load, Write

from minimind.cli import train
from minimind.cli.main import run_verb
from minimind.pipeline import plan
from minimind.pipeline.process import Child
from minimind.pipeline.recipe_file import Pipeline, load_pipeline
from minimind.pipeline.step import Place
from minimind.runtime.devices import find_device


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes data and a recipe of `steps` beside them; gives the recipe's path."""
    folder = tmp_path / "data"
    folder.mkdir()
    texts = [{"text": f"{n} + {n} = {2 * n}. 数到{n}。" * (1 + n % 5)} for n in range(60)]
    turns = [("user", "{n} + {n}?"), ("assistant", "It is {m}.")]
    chats = [
        {
            "conversations": [
                {"role": role, "content": text.format(n=n, m=2 * n)} for role, text in turns
            ]
        }
        for n in range(60)
    ]
    for name, rows in (("texts", texts), ("chats", chats)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def write(steps: Sequence[Mapping[str, Any]] = STEPS, **keys: Any) -> Path:
        path = tmp_path / "small.json"
        content = {"data_dir": str(folder), "steps": steps, **keys}
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(write: Write) -> Load:
    def load(steps: Sequence[Mapping[str, Any]] = STEPS, **keys: Any) -> Pipeline:
        return load_pipeline(str(write(steps, **keys)))

    return load


@pytest.fixture
def place(tmp_path: Path, no_launcher: None) -> Place:
    return Place(find_device(), 1, tmp_path / "made")


@pytest.fixture
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out rehearsals, whose processes take seconds to start."""
    monkeypatch.setattr(plan, "why_not", lambda run: "a test")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, no_launcher: None) -> list[list[str]]:
    """Runs the commands of steps in this process, and gives the list of those that were run."""
    ran: list[list[str]] = []

    def run(self: Child, command: Sequence[str], environment: Mapping[str, str]) -> int:
        _, _, _, verb, *flags = command
        ran.append([verb, *flags])
        # run_verb would end this process with the training.
        return train.main(flags) if verb == "train" else run_verb(verb, flags)

    monkeypatch.setattr(Child, "run", run)
    return ran
