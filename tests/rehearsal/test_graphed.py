"""A step with CUDA graphs beside one without, on a GPU that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind.config.model import load_model_config
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.rehearsal.rehearse import Point, rehearse_all
from minimind.rehearsal.report import Rehearsal
from minimind.run.arguments import collect_arguments
from minimind.samples.text import load_sample_tokenizer

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)

SIZES: dict[str, Any] = {"seq_len": 256, "micro_batch_size": 4, "train_batch_size": 16}
"""Two micro-batches on each of two ranks."""
SIZES |= {"optimizer": "AdamW"}
"""It copies nothing: each clone that is counted is a graph's."""


def save_model(folder: Path) -> str:
    tokenizer = load_sample_tokenizer()
    config = load_model_config("tiny", {}, tokenizer_vocab=tokenizer.vocab_size)
    save_hf_folder(folder, config, dict(Transformer(config).named_parameters()), torch.float32)
    tokenizer.save(folder)
    return str(folder)


def rehearse_both(runs: list[dict[str, Any]]) -> list[tuple[Rehearsal, Rehearsal]]:
    """(without graphs, with them) of each."""
    options = [run | SIZES | {"cuda_graph": graphed} for run in runs for graphed in (False, True)]
    points = [Point(arguments=collect_arguments(o), device="H200", ranks=2) for o in options]
    found = rehearse_all(points)
    return list(zip(found[::2], found[1::2], strict=True))


def test_the_host_asks_for_little_and_the_device_for_the_same(tmp_path: Path) -> None:
    """One test, so that the runs share a process."""
    folder = save_model(tmp_path / "model")
    trained = {"from_checkpoint": folder}
    runs: list[dict[str, Any]] = [
        {"model": "minimind3", "num_hidden_layers": 2},
        {"model": "minimind2-moe", "num_hidden_layers": 2, "ds_config": "zero1.json"},
        {"model": "tiny", "dropout": 0.1, "ds_config": "zero0.json"},
        {"stage": "sft", **trained},
        {"stage": "lora", **trained},
        {"stage": "distill", "teacher": folder, **trained},
    ]
    for run, (eager, graphed) in zip(runs, rehearse_both(runs), strict=True):
        assert graphed.operators["replay"] == 4, run
        assert not graphed.launches, run
        assert eager.num_launches > 0
        assert graphed.num_operators < eager.num_operators, run
        assert graphed.flops == eager.flops, run
        assert "clone" not in graphed.operators or graphed.operators["clone"] < 16, run
        assert set(graphed.forbidden_waits) <= set(eager.forbidden_waits), run
        # The graphs' pool keeps what the eager step holds for a moment, and the gradients stay in
        # it beside the copy that DeepSpeed takes.
        assert graphed.peak_bytes > 0.9 * eager.peak_bytes, run
        assert graphed.peak_bytes < eager.peak_bytes + 4 * eager.peak["weights"], run
