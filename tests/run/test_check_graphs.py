"""Where CUDA graphs are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from minimind.errors import ConfigError
from minimind.run.arguments import collect_arguments
from minimind.run.checks import check_graphs
from minimind.run.run import Run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks

CPU = Device(torch.device("cpu"), "some CPU", False, "fp32", "", None)
GPU = Device(torch.device("cuda", 0), "some GPU", True, "bf16", "", None)


def check(device: Device, **options: Any) -> None:
    arguments = collect_arguments({"model": "tiny", "cuda_graph": True} | options)
    check_graphs(Run.on(arguments, Ranks(0, 0, 1), device).resolved)


REFUSED: dict[str, tuple[Device, dict[str, Any]]] = {
    "the run is on a CPU": (CPU, {}),
    "ZeRO stage 3": (GPU, {"ds_config": "zero3.json"}),
    "activation_checkpointing": (GPU, {"activation_checkpointing": True}),
    "--stage dpo": (GPU, {"stage": "dpo", "from_checkpoint": "none"}),
    "flash attention takes fp16 and bf16, not float32": (
        GPU,
        {"set": {"ds_config.bf16.enabled": False}},
    ),
    "head sizes": (GPU, {"set": {"head_dim": 20}}),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_graphs_are_refused_where_the_host_has_a_part_in_each_micro_batch(
    problem: str, no_launcher: None
) -> None:
    device, options = REFUSED[problem]
    with pytest.raises(ConfigError, match=f"cuda_graph=true, but .*{problem}"):
        check(device, **options)
    check(device, **options, cuda_graph=False)


@pytest.mark.parametrize("name", ["zero0.json", "zero1.json", "zero2.json"])
def test_graphs_are_taken_elsewhere(name: str, no_launcher: None) -> None:
    check(GPU, ds_config=name)
    check(dataclasses.replace(GPU, precision="fp16"), ds_config="zero2_fp16.json")
