"""Provides a training run small enough to be repeated often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_runs import TRAIN, Train
from two_ranks import RankPair, TrainOnTwo


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes documents of very different lengths, so that a mean of means would show."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(90):
            text = f"{number} + {number} = {2 * number}. 数到{number}。" * (1 + number % 7)
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path


@pytest.fixture
def shape() -> list[str]:
    """Gives flags for the model's shape."""
    return ["--set", "hidden_size=32", "--set", "num_hidden_layers=2"]


@pytest.fixture
def run_flags(data: Path, tmp_path: Path) -> list[str]:
    """Gives flags for a run in tmp_path/run with four rows per step in two micro-batches."""
    return [
        *("--ds_config", "zero2.json"),
        *("--data", str(data), "--val_data", str(data)),
        *("--output_dir", str(tmp_path / "run")),
        *("--seq_len", "64", "--max_steps", "6", "--eval_every", "3", "--save_every", "2"),
        *("--set", "train_batch_size=4", "--set", "micro_batch_size=2", "--set", "eval_rows=4"),
    ]


@pytest.fixture
def flags(run_flags: list[str], shape: list[str]) -> list[str]:
    return [*run_flags, *shape]


@pytest.fixture
def train(no_launcher: None, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Gives launch/train.py's main, run in this process."""
    # Bitwise comparisons with runs in a process of their own need its number of threads.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(TRAIN.parent))
    import train as script

    def run(*arguments: str) -> int:
        return script.main(list(arguments))

    return run


@pytest.fixture(scope="session")
def _rank_pair() -> Iterator[RankPair]:
    pair = RankPair()
    yield pair
    pair.stop()


@pytest.fixture
def train_on_two(no_launcher: None, _rank_pair: RankPair) -> TrainOnTwo:
    return _rank_pair.train
