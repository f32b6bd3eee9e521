"""Compilations that DeepSpeed asks for: said, and not waited for where nobody compiles."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import deepspeed
import pytest
import torch
from torch.utils import cpp_extension

from minimind.engine import deepspeed_engine, operators
from minimind.engine.operators import announced_operators, clear_way
from minimind.errors import ConfigError
from minimind.runtime.devices import find_device


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(operators, "_LOOK_AGAIN_S", 0.0)
    caplog.set_level(logging.INFO, logger="minimind")


def test_a_compilation_is_said_and_a_compiled_operator_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    clear_way("cpu_adam", tmp_path)
    (said,) = caplog.messages
    assert said.startswith(f"compiling DeepSpeed's cpu_adam in {tmp_path} (once")
    (tmp_path / "cpu_adam.so").touch()
    clear_way("cpu_adam", tmp_path)
    assert len(caplog.messages) == 1


def test_a_lock_that_nobody_holds_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    lock = tmp_path / "lock"
    lock.touch()
    clear_way("cpu_adam", tmp_path)
    assert not lock.exists()
    assert caplog.messages[0].startswith(f"removing {lock}")
    assert caplog.messages[1].startswith("compiling")


def test_a_lock_that_a_process_holds_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    lock = tmp_path / "lock"
    held = os.open(lock, os.O_CREAT | os.O_EXCL)
    looks: list[float] = []

    def release(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:  # more than a lock without a holder gets
            os.close(held)
            lock.unlink()

    monkeypatch.setattr("time.sleep", release)
    clear_way("cpu_adam", tmp_path)
    assert len(looks) == 5
    assert f"waiting for process {os.getpid()}, which compiles" in caplog.messages[0]
    assert not any("removing" in said for said in caplog.messages)


def test_a_holder_by_another_path_is_found(tmp_path: Path):
    """A folder may be mounted in two places; a link stands for that here."""
    held = os.open(tmp_path / "lock", os.O_CREAT | os.O_EXCL)
    os.link(tmp_path / "lock", tmp_path / "elsewhere")
    assert operators._find_holders(tmp_path / "elsewhere") == [os.getpid()]
    os.close(held)
    assert operators._find_holders(tmp_path / "elsewhere") == []


def test_a_killed_holder_is_not_waited_for_any_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    held = os.open(tmp_path / "lock", os.O_CREAT | os.O_EXCL)
    closes = iter([lambda: os.close(held)])
    monkeypatch.setattr("time.sleep", lambda _: next(closes, lambda: None)())
    clear_way("cpu_adam", tmp_path)
    assert [said.split()[0] for said in caplog.messages] == ["waiting", "removing", "compiling"]


def test_where_other_machines_may_compile_a_lock_is_old_before_it_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(operators, "_is_shared", lambda _: True)
    lock = tmp_path / "lock"
    lock.touch()

    def age(seconds: float) -> None:
        for path in (lock, tmp_path):
            if path.exists():
                times = path.stat()
                os.utime(path, (times.st_atime, times.st_mtime - 60))

    monkeypatch.setattr("time.sleep", age)
    clear_way("cpu_adam", tmp_path)
    assert "waiting for perhaps another machine" in caplog.messages[0]
    assert caplog.messages[1].startswith("removing")


def test_file_systems_that_machines_share_are_told_by_their_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    inner = tmp_path / "home" / "user"
    inner.mkdir(parents=True)
    kinds = {"/": "ext4", str(tmp_path / "home"): "nfs4"}
    mounts = [SimpleNamespace(mountpoint=path, fstype=kind) for path, kind in kinds.items()]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    assert operators._is_shared(inner)
    assert not operators._is_shared(tmp_path)


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
    monkeypatch.setattr(cpp_extension, "load", no_compiler)
    for builder in (CPUAdamBuilder(), CPUAdagradBuilder()):
        lock = tmp_path / builder.name / "lock"
        lock.parent.mkdir(exist_ok=True)
        lock.touch()
        with announced_operators(deepspeed), pytest.raises(ConfigError, match=r"no c\+\+, or so\."):
            builder.jit_load(verbose=False)
        assert not lock.exists()
        # Its optimizers make another error of any.
        with pytest.raises(ConfigError, match=builder.name), announced_operators(deepspeed):
            load_as_an_optimizer(builder)
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
