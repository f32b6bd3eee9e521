"""Resolves runs as the command does, without building them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from parsed_flags import parse
from resolved_runs import CPU, AfterPretrain, Resolve
from small_models import random_model

from minimind.cli.train import main
from minimind.config.model import ModelConfig
from minimind.data.tokenizer import Tokenizer
from minimind.model.state_dict import save_hf_folder
from minimind.run import run as run_module
from minimind.run.arguments import parse_arguments
from minimind.run.resolve import ResolvedRun, find_tokenizer, resolve_run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """resolved(*argv, device=…, ranks=…) as launch/train.py does it."""
    monkeypatch.setitem(STAGES, "after", AfterPretrain)

    def run(*argv: str, device: Device = CPU, ranks: int = 1) -> ResolvedRun:
        arguments = parse_arguments(list(argv))
        return resolve_run(arguments, find_tokenizer(arguments), Ranks(0, 0, ranks), device)

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """checkpoint(config, tokenizer=…) -> a Hugging Face folder with a tokenizer."""

    def make(config: ModelConfig, tokenizer: Tokenizer | None = None) -> Path:
        weights = dict(random_model(config).named_parameters())
        save_hf_folder(tmp_path / "weights", config, weights, torch.float32)
        (tokenizer or load_sample_tokenizer()).save(tmp_path / "weights")
        return tmp_path / "weights"

    return make


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """fails(*argv) -> what was said on stderr, the exit status being 2."""

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as caught:
            parse(*argv)
        assert caught.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """refused(command, *more) -> what `minimind train` said on stderr, its exit status being 2 and
    nothing built."""

    def built(*arguments: object) -> NoReturn:
        raise AssertionError("it was built")

    monkeypatch.setattr(run_module, "build_trained", built)

    def run(command: str, *more: str) -> str:
        try:
            status = main([*command.split(), *filter(None, more)])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        assert (status, said.out) == (2, "")
        assert "Traceback" not in said.err
        return said.err

    return run
