"""Which flash attention runs on which GPU; the capability is given, so no test needs one."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from minimind.errors import ConfigError
from minimind.model.flash_attention import check_flash, use_newest_flash, why_not_flash

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
H200, B200, A100, L4, T4, V100 = (9, 0), (10, 0), (8, 0), (8, 9), (7, 5), (7, 0)


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability"),
    [
        (torch.bfloat16, 64, H200),
        (torch.float16, 96, A100),
        (torch.bfloat16, 80, L4),
        (torch.bfloat16, 256, L4),
        (torch.bfloat16, 200, A100),
        (torch.bfloat16, 8, B200),
        (torch.bfloat16, 128, None),
    ],
)
def test_flash_attention_runs(
    dtype: torch.dtype, head_size: int, capability: tuple[int, int] | None
):
    assert why_not_flash(dtype, head_size, capability) is None


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "words"),
    [
        (torch.float32, 64, H200, "takes fp16 and bf16, not float32"),
        (torch.float16, 64, T4, "needs sm_80 .* this GPU is sm_75"),
        (torch.float16, 64, V100, "this GPU is sm_70"),
        (torch.bfloat16, 12, H200, "multiples of 8, not 12"),
        (torch.bfloat16, 264, H200, "up to 256 .* not 264"),
        (torch.bfloat16, 12, None, "multiples of 8, not 12"),
        (torch.bfloat16, 224, L4, "no backward for head size 224 on sm_89"),
    ],
)
def test_what_keeps_it_from_running(
    dtype: torch.dtype, head_size: int, capability: tuple[int, int] | None, words: str
):
    problem = why_not_flash(dtype, head_size, capability)
    assert problem is not None
    with pytest.raises(RuntimeError, match=words):
        raise RuntimeError(problem)


@pytest.fixture
def activated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hopper GPU with FlashAttention 3 installed; what is activated of it."""
    found: list[str] = []
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: object() if name == "flash_attn_interface" else real(name),
    )
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", found.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H200)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv("MINIMIND_FLASH", raising=False)
    return found


@pytest.mark.parametrize("setting", ["", "auto", "3"])
def test_version_3_where_it_is_installed(
    activated: list[str],
    setting: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("MINIMIND_FLASH", setting)
    with caplog.at_level("INFO", logger="minimind"):
        use_newest_flash(CUDA, deterministic=False)
    assert activated == ["FA3"]
    assert "FlashAttention 3 is installed and used" in caplog.text


@pytest.mark.parametrize("setting", ["auto", "2"])
@pytest.mark.parametrize("reason", ["deterministic", "missing", "A100", "CPU", "ROCm"])
def test_else_pytorchs_own(
    activated: list[str], setting: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    """Without a word: nothing is missing that a user asked for."""
    monkeypatch.setenv("MINIMIND_FLASH", setting)
    explain(reason, monkeypatch)
    device = CPU if reason == "CPU" else CUDA
    use_newest_flash(device, deterministic=reason == "deterministic")
    assert activated == []


def explain(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "missing":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if reason == "A100":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: A100)
    if reason == "ROCm":
        monkeypatch.setattr(torch.version, "hip", "6.4")


def test_switched_off(activated: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIMIND_FLASH", "2")
    use_newest_flash(CUDA, deterministic=False)
    assert activated == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("deterministic", "deterministic=true is for PyTorch's own"),
        ("missing", "FlashAttention 3 is not installed"),
        ("A100", "needs a Hopper GPU .* this one is sm_80"),
        ("CPU", "the run is on cpu"),
        ("ROCm", "the run is on ROCm"),
    ],
)
def test_an_explicit_request_in_vain_is_an_error(
    activated: list[str], reason: str, words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINIMIND_FLASH", "3")
    explain(reason, monkeypatch)
    device = CPU if reason == "CPU" else CUDA
    for ask in (check_flash, use_newest_flash):
        with pytest.raises(ConfigError, match=f"MINIMIND_FLASH=3, but .*{words}.*auto or 2"):
            ask(device, deterministic=reason == "deterministic")
    assert activated == []


def test_an_unknown_setting_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIMIND_FLASH", "fast")
    with pytest.raises(ConfigError, match="MINIMIND_FLASH='fast' is not known; use auto, 2, 3"):
        check_flash(CPU, deterministic=False)


@pytest.mark.parametrize("setting", ["auto", "3"])
def test_a_package_that_does_not_load(
    activated: list[str],
    setting: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """One built for another PyTorch: said under auto, an error where it was asked for."""

    def fail(name: str) -> None:
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", fail)
    monkeypatch.setenv("MINIMIND_FLASH", setting)
    if setting == "3":
        with pytest.raises(ConfigError, match="FlashAttention 3 cannot be loaded: undefined"):
            use_newest_flash(CUDA, deterministic=False)
        return
    with caplog.at_level("INFO", logger="minimind"):
        use_newest_flash(CUDA, deterministic=False)
    assert "FlashAttention 3 cannot be loaded: undefined symbol" in caplog.text


def test_pytorch_knows_the_name():
    """The one that is asked for, in the installed PyTorch."""
    assert "FA3" in torch.nn.attention.list_flash_attention_impls()
