"""Writes samples.jsonl: the texts that a stage generated during training, one per line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.runtime.whole_files import write_whole


class SampleLog:
    """Records generated texts with their step, on rank 0."""

    def __init__(self, folder: Path, step: int) -> None:
        """Drops the lines of an earlier part of the run after `step`: the resumed run makes them
        again."""
        self._path = folder / "samples.jsonl"
        if not self._path.exists():
            return
        # Read as bytes: a text may hold characters that str.splitlines() takes for line ends.
        kept = [line for line in self._path.read_bytes().splitlines() if _step(line) <= step]
        with write_whole(self._path) as new:
            new.write_bytes(b"".join(line + b"\n" for line in kept))

    def write(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"step": step, **sample}, ensure_ascii=False) + "\n")


def _step(line: bytes) -> float:
    """Gives the line's step; infinity for a line that a killed process left incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def spell_sample(sample: Mapping[str, Any]) -> str:
    """Writes a sample as one line for the console."""
    texts = [" ".join(str(sample[key]).split()) for key in ("prompt", "completion")]
    reward = sample.get("reward")
    return f"{texts[0]} → {texts[1]}" + ("" if reward is None else f"  (reward {reward:.3g})")
