"""Chooses the flash attention of a GPU: PyTorch's own (FlashAttention 2), FlashAttention 3, or
none.

One setting is read from the environment when a run starts:

`MINIMIND_FLASH`
    `auto` (default): FlashAttention 3 where it is installed and the GPU is a Hopper, else PyTorch's
    own.
    `2`: PyTorch's own.
    `3`: FlashAttention 3, or an error that says why there is none.
"""

from __future__ import annotations

import importlib.util
import logging
import os

import torch

from minimind.errors import ConfigError

logger = logging.getLogger("minimind")

_SETTINGS = ("auto", "2", "3")
_FLASH_3_PACKAGE = "flash_attn_interface"
"""The name by which PyTorch too imports the package flash-attn-3."""
_MAX_HEAD_SIZE = 256


def why_not_flash(
    dtype: torch.dtype, head_size: int, capability: tuple[int, int] | None
) -> str | None:
    """Gives the reason why flash attention cannot train here, or None if it can. `capability` is
    the GPU's, (9, 0) for sm_90, or None on ROCm, whose kernels require none."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention takes fp16 and bf16, not {str(dtype).removeprefix('torch.')}"
    if head_size % 8 or head_size > _MAX_HEAD_SIZE:
        return (
            f"flash attention takes head sizes up to {_MAX_HEAD_SIZE} that are multiples of 8, "
            f"not {head_size}"
        )
    if capability is None:
        return None
    name = f"sm_{capability[0]}{capability[1]}"
    if capability < (8, 0):
        return f"flash attention needs sm_80 (Ampere) or newer, and this GPU is {name}"
    # On other GPUs the backward of these sizes does not fit into shared memory; that of 256 does.
    if 192 < head_size <= 224 and capability not in ((8, 0), (9, 0)):
        return f"flash attention has no backward for head size {head_size} on {name}"
    return None


def check_flash(device: torch.device, *, deterministic: bool) -> None:
    """Raises ConfigError for an unknown value of MINIMIND_FLASH, and for one that `device` cannot
    run."""
    if _read_setting() == "3" and (problem := _why_not_flash_3(device, deterministic)):
        raise ConfigError(_cannot_be_met(problem))


def use_newest_flash(device: torch.device, *, deterministic: bool) -> None:
    """Makes PyTorch call FlashAttention 3 from now on, in the whole process, where MINIMIND_FLASH
    and `device` allow it, and logs that. Raises the same ConfigErrors as `check_flash`."""
    check_flash(device, deterministic=deterministic)
    setting = _read_setting()
    if setting == "2" or _why_not_flash_3(device, deterministic):
        return
    try:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl("FA3")
    except Exception as error:  # a package compiled for another PyTorch fails in many ways
        problem = f"FlashAttention 3 cannot be loaded: {error}"
        if setting == "3":
            raise ConfigError(_cannot_be_met(problem)) from error
        logger.info("attention: PyTorch's own flash attention: %s", problem)
    else:
        logger.info(
            "attention: FlashAttention 3 is installed and used (MINIMIND_FLASH=%s)", setting
        )


def _why_not_flash_3(device: torch.device, deterministic: bool) -> str | None:
    if device.type != "cuda" or torch.version.hip:
        return f"the run is on {device.type if device.type != 'cuda' else 'ROCm'}, not on CUDA"
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        return f"FlashAttention 3 needs a Hopper GPU (sm_90), and this one is sm_{major}{minor}"
    if importlib.util.find_spec(_FLASH_3_PACKAGE) is None:
        return "FlashAttention 3 is not installed (the package flash-attn-3)"
    # Its backward has a deterministic form that has not been measured yet.
    return "deterministic=true is for PyTorch's own" if deterministic else None


def _cannot_be_met(problem: str) -> str:
    return f"MINIMIND_FLASH=3, but {problem}; use MINIMIND_FLASH=auto or 2"


def _read_setting() -> str:
    value = os.environ.get("MINIMIND_FLASH") or "auto"
    if value not in _SETTINGS:
        raise ConfigError(f"MINIMIND_FLASH={value!r} is not known; use {', '.join(_SETTINGS)}")
    return value
