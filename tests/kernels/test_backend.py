import subprocess
import sys

import minimind_kernels as K
import pytest
import torch
from minimind_kernels import backend


def test_an_explicit_request_without_a_gpu_is_an_error(setting):
    setting("TRITON_INTERPRET", "0")
    setting("MINIMIND_KERNELS", "triton")
    with pytest.raises(
        RuntimeError, match=r"MINIMIND_KERNELS=triton, but the tensors are on the cpu"
    ):
        K.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-5)


@pytest.mark.parametrize("name", ["MINIMIND_KERNELS", "MINIMIND_COMPILE"])
def test_an_unknown_value_is_an_error(name, setting):
    setting(name, "fast")
    with pytest.raises(ValueError, match=f"{name}='fast' is not known; use one of auto"):
        backend.kernels_setting(), backend.compile_setting()


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("MINIMIND_KERNELS", "fast", ValueError, "MINIMIND_KERNELS='fast' is not known"),
        ("MINIMIND_COMPILE", "yes", ValueError, "MINIMIND_COMPILE='yes' is not known"),
        ("MINIMIND_KERNELS", "triton", RuntimeError, "tensors are on the cpu"),
        ("MINIMIND_COMPILE", "1", RuntimeError, "no C[+][+] compiler"),
    ],
)
def test_settings_are_checked_before_the_first_operation(
    name, value, error, words, setting, monkeypatch
):
    monkeypatch.setattr(backend, "_has_compiler", lambda: False)
    for other, usual in (("TRITON_INTERPRET", "0"), ("MINIMIND_KERNELS", "auto")):
        setting(other, usual)
    setting("MINIMIND_COMPILE", "auto")
    backend.check_settings(torch.device("cpu"))
    setting(name, value)
    with pytest.raises(error, match=words):
        backend.check_settings(torch.device("cpu"))


def test_the_choice_is_said_once(setting, caplog):
    setting("MINIMIND_KERNELS", "torch")
    backend._say_once.cache_clear()
    with caplog.at_level("INFO", logger="minimind_kernels"):
        for _ in range(2):
            K.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-5)
    assert [r.message for r in caplog.records] == ["kernels: PyTorch: MINIMIND_KERNELS=torch"]


def test_generated_code_is_chosen_by_shape(setting):
    setting("MINIMIND_COMPILE", "1")
    assert backend.use_compiled_cpu(2048, 2048 * 512)
    assert not backend.use_compiled_cpu(32, 32 * 5632)
    assert not backend.use_compiled_cpu(2048, 2048 * 16)
    setting("MINIMIND_COMPILE", "0")
    assert not backend.use_compiled_cpu(2048, 2048 * 512)


def test_importing_needs_torch_alone():
    code = "import sys, minimind_kernels; print('triton' in sys.modules, 'minimind' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
