"""What a resolved run is refused for on a given device, and whether the advice helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minimind.errors import ConfigError
from minimind.run.arguments import collect_arguments
from minimind.run.checks import check_packages
from minimind.run.run import Run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks

GIB = 1 << 30
CPU = Device(torch.device("cpu"), "some CPU", False, "fp32", "", None, 4 * GIB)
GPU = Device(torch.device("cuda", 0), "some GPU", True, "bf16", "", None, 4 * GIB)
SIZES: dict[str, Any] = {"model": "minimind3", "seq_len": 512, "batch_size": 64}


def resolve(device: Device, num_ranks: int = 1, **options: Any) -> Run:
    return Run.on(collect_arguments(SIZES | options), Ranks(0, 0, num_ranks), device)


def test_an_optimizer_of_a_package_that_is_missing():
    run = resolve(GPU, set={"ds_config.optimizer.type": "MuAdam"})
    with pytest.raises(ConfigError, match=r"optimizer.type MuAdam needs mup installed"):
        check_packages(run.resolved)


def test_a_flash_attention_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIMIND_FLASH", "3")
    with pytest.raises(ConfigError, match="MINIMIND_FLASH=3, but the run is on cpu"):
        resolve(CPU).check()
