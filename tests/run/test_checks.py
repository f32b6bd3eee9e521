"""What a resolved run is refused for on a given device, and whether the advice helps."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind.errors import ConfigError
from minimind.run.checks import check_memory, check_packages
from minimind.run.describe import predict_memory_of
from minimind.run.run import Run, collect_arguments, parse_arguments
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks

GIB = 1 << 30
CPU = Device(torch.device("cpu"), "some CPU", False, "fp32", "", None, 4 * GIB)
GPU = Device(torch.device("cuda", 0), "some GPU", True, "bf16", "", None, 4 * GIB)
SIZES: dict[str, Any] = {"model": "minimind3", "seq_len": 512, "batch_size": 64}


def resolve(device: Device, num_ranks: int = 1, **options: Any) -> Run:
    return Run.on(collect_arguments(SIZES | options), Ranks(0, 0, num_ranks), device)


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch_size": 64},
        {"set": {"ds_config.train_micro_batch_size_per_gpu": 64}},
        {"set": {"ds_config.gradient_accumulation_steps": 1}},
    ],
    ids=["flag", "micro-batch of the JSON", "accumulation of the JSON"],
)
def test_memory_that_is_not_there_is_refused_with_the_largest_that_fits(options: dict[str, Any]):
    run = resolve(GPU, **options)
    with pytest.raises(ConfigError, match=r"more than the 4\.00 GiB of some GPU") as caught:
        check_memory(run.resolved, run.ranks)
    (rows,) = re.findall(r"micro-batch of (\d+) rows fits", str(caught.value))
    needed = predict_memory_of(run.resolved.with_micro_batch(2 * int(rows))).peak_bytes
    assert needed > 4 * GIB
    # The advice, added to what was given.
    given = [f"--set {key}={value}" for key, value in options.get("set", {}).items()]
    advice = str(caught.value).split("fits: ")[1]
    flags = "--model minimind3 --seq_len 512 --batch_size 64 " + " ".join([*given, advice])
    again = Run.on(parse_arguments(flags.split()), Ranks(0, 0, 1), GPU)
    assert again.resolved.micro_batch_size == int(rows)
    assert again.resolved.train_batch_size == 64
    check_memory(again.resolved, again.ranks)


def test_memory_that_nobody_looked_at_refuses_nothing():
    run = resolve(dataclasses.replace(GPU, memory_bytes=None), micro_batch_size=64)
    check_memory(run.resolved, run.ranks)


def test_ranks_on_cpus_share_the_machines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)  # an earlier run's
    monkeypatch.setenv("LOCAL_SIZE", "2")
    run = resolve(CPU, 2, micro_batch_size=1)
    needed = predict_memory_of(run.resolved).peak_bytes
    for there, fits in ((2 * needed, True), (2 * needed - 1, False)):
        device = dataclasses.replace(CPU, memory_bytes=there)
        run = resolve(device, 2, micro_batch_size=1)
        if fits:
            check_memory(run.resolved, run.ranks)
        else:
            with pytest.raises(ConfigError, match=r"for 2 ranks, more.*no micro-batch fits"):
                check_memory(run.resolved, run.ranks)
    other = dataclasses.replace(GPU, memory_bytes=needed)
    run = resolve(other, 2, micro_batch_size=1)
    check_memory(run.resolved, run.ranks)


def test_a_folder_of_a_loggers_name_is_no_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "swanlab").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="pip install swanlab"):
        check_packages(resolve(CPU, swanlab=True).resolved)
    (tmp_path / "swanlab" / "__init__.py").touch()
    check_packages(resolve(CPU, swanlab=True).resolved)


def test_an_optimizer_of_a_package_that_is_missing():
    run = resolve(GPU, set={"ds_config.optimizer.type": "MuAdam"})
    with pytest.raises(ConfigError, match=r"optimizer.type MuAdam needs mup installed"):
        check_packages(run.resolved)


def test_a_flash_attention_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIMIND_FLASH", "3")
    with pytest.raises(ConfigError, match="MINIMIND_FLASH=3, but the run is on cpu"):
        resolve(CPU).check()
