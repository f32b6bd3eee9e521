"""Compilations that DeepSpeed asks for: said, and not waited for where nobody compiles."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any, NoReturn

import deepspeed
import pytest
import torch
from torch.utils import cpp_extension

from minimind.engine import deepspeed_engine, operators
from minimind.engine.operators import announce, announced_operators
from minimind.errors import ConfigError
from minimind.runtime.devices import find_device


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(operators, "_LOOK_AGAIN_S", 0.0)
    caplog.set_level(logging.INFO, logger="minimind")


def test_a_compilation_is_said_and_a_compiled_operator_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    announce("cpu_adam", tmp_path)
    assert caplog.messages == ["compiling DeepSpeed's cpu_adam (once, about a minute)"]
    (tmp_path / "cpu_adam.so").touch()
    announce("cpu_adam", tmp_path)
    assert len(caplog.messages) == 1


def test_a_lock_that_nobody_holds_is_an_error_that_names_it(tmp_path: Path):
    lock = tmp_path / "lock"
    lock.touch()
    with pytest.raises(ConfigError, match=f"wait for ever.*rm {lock}"):
        announce("cpu_adam", tmp_path)
    assert lock.exists()


def test_a_lock_that_a_process_holds_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    held = os.open(tmp_path / "lock", os.O_CREAT | os.O_EXCL)
    try:
        announce("cpu_adam", tmp_path)
    finally:
        os.close(held)
    assert f"waiting for process {os.getpid()}, which compiles" in caplog.messages[0]


def load_as_an_optimizer(builder: Any) -> None:
    try:
        builder.load(verbose=False)
    except Exception as error:
        raise RuntimeError("failed to build/load") from error


def no_compiler(**options: Any) -> NoReturn:
    raise RuntimeError("no c++, or so\nand more")


def test_every_operator_of_deepspeed_goes_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    from deepspeed.ops.op_builder.builder import OpBuilder
    from deepspeed.ops.op_builder.cpu import CPUAdagradBuilder, CPUAdamBuilder

    original = OpBuilder.jit_load
    for builder in (CPUAdamBuilder(), CPUAdagradBuilder()):
        folder = tmp_path / builder.name
        folder.mkdir(exist_ok=True)
        (folder / "lock").touch()
        with announced_operators(deepspeed), pytest.raises(ConfigError, match=builder.name):
            builder.jit_load(verbose=False)
        # Its optimizers make another error of any.
        with pytest.raises(ConfigError, match="wait for ever"), announced_operators(deepspeed):
            load_as_an_optimizer(builder)
        (folder / "lock").unlink()
        monkeypatch.setattr(cpp_extension, "load", no_compiler)
        with (
            announced_operators(deepspeed),
            pytest.raises(ConfigError, match=r"no c\+\+, or so\."),
        ):
            builder.jit_load(verbose=False)
    assert OpBuilder.jit_load is original


@pytest.mark.parametrize("name", ["MissingCUDAException", "CUDAMismatchException"])
def test_a_toolkit_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    from deepspeed.ops.op_builder import builder
    from deepspeed.ops.op_builder.cpu import CPUAdamBuilder

    def no_toolkit(**options: Any) -> NoReturn:
        raise getattr(builder, name)("CUDA_HOME does not exist")

    monkeypatch.setattr(cpp_extension, "load", no_toolkit)
    said = "cannot be compiled here: CUDA_HOME does not exist.*torch_adam to true"
    with announced_operators(deepspeed), pytest.raises(ConfigError, match=said):
        CPUAdamBuilder().jit_load(verbose=False)


def test_on_a_gpu_no_other_operator_is_tried(monkeypatch: pytest.MonkeyPatch):
    from deepspeed import ops

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delattr(ops, "__compatible_ops__", raising=False)
    monkeypatch.setattr(ops, "_probe_compatible_ops", dict)
    cpu = find_device()
    deepspeed_engine.import_deepspeed(dataclasses.replace(cpu, torch_device=torch.device("cuda")))
    assert "__compatible_ops__" not in vars(ops)
    deepspeed_engine.import_deepspeed(dataclasses.replace(cpu, torch_device=torch.device("cpu")))
    assert vars(ops)["__compatible_ops__"] == {"deepspeed_shm_comm": False}
