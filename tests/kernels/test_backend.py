import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        (
            "MINIMIND_KERNELS",
            "fast",
            ValueError,
            "MINIMIND_KERNELS='fast' is not known; use one of auto",
        ),
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
    assert [r.message for r in caplog.records] == ["kernels    PyTorch (MINIMIND_KERNELS=torch)"]


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


H200, T4, V100 = (9, 0), (7, 5), (7, 0)


@pytest.fixture
def gpu(setting, monkeypatch, tmp_path):
    """Says, for a GPU that need not be there, whether Triton's form runs; all it asks for is there
    until `without` takes it away."""
    (tmp_path / "Python.h").touch()
    caches = (
        backend._has_triton,
        backend._why_not_triton_on_gpu,
        backend._capability,
        backend._why_no_launcher,
        backend._say_once,
    )
    state = SimpleNamespace(capability=H200, programs={"gcc"}, folder=tmp_path, packages={"triton"})
    setting("MINIMIND_KERNELS", "auto")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: state.capability)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in state.programs else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(state.folder))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in state.packages else None
    )

    def runs_triton(dtype=torch.float16, has_products=False):
        for cache in caches:
            cache.cache_clear()
        tensor = SimpleNamespace(
            device=torch.device("cuda", 0), dtype=dtype, is_floating_point=lambda: True
        )
        backend.check_settings(tensor.device)
        return backend.use_triton("an operation", tensor, has_products=has_products)

    state.runs_triton = runs_triton
    yield state
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("compiler", ["gcc", "clang", "CC"])
def test_triton_where_it_can_start_kernels(compiler, gpu, monkeypatch):
    gpu.programs = {compiler}
    if compiler == "CC":
        gpu.programs = {"icx"}
        monkeypatch.setenv("CC", "icx")
    assert gpu.runs_triton()


def take_away(reason, gpu, monkeypatch):
    if reason == "compiler":
        gpu.programs = {"g++", "cc"}  # which Triton does not look for
    if reason == "CC":
        monkeypatch.setenv("CC", "icx")
    if reason == "headers":
        gpu.folder = gpu.folder / "none"
    if reason == "V100":
        gpu.capability = V100
    if reason == "Triton":
        gpu.packages = set()


REASONS = {
    "compiler": r"neither gcc nor clang: install one [(]apt install gcc[)], or name one in CC",
    "CC": "CC=icx, which Triton starts a kernel with, is no program",
    "headers": r"none has no Python.h: install them [(]apt install python3-dev[)]",
    "V100": "Triton needs sm_75 or newer, and this GPU is sm_70",
    "Triton": "Triton is not installed",
}


@pytest.mark.parametrize("reason", REASONS)
def test_pytorch_with_a_word_where_triton_cannot(reason, gpu, monkeypatch, caplog):
    take_away(reason, gpu, monkeypatch)
    with caplog.at_level("INFO", logger="minimind_kernels"):
        assert not gpu.runs_triton()
    said = rf"kernels    PyTorch \(MINIMIND_KERNELS=auto\): .*{REASONS[reason]}"
    assert re.search(said, caplog.text)


@pytest.mark.parametrize("reason", REASONS)
def test_an_explicit_request_says_the_same(reason, gpu, setting, monkeypatch):
    take_away(reason, gpu, monkeypatch)
    setting("MINIMIND_KERNELS", "triton")
    with pytest.raises(RuntimeError, match=f"MINIMIND_KERNELS=triton, but .*{REASONS[reason]}"):
        gpu.runs_triton()


def test_no_compiler_is_asked_for_where_pytorch_is_wanted(gpu, setting, monkeypatch):
    take_away("compiler", gpu, monkeypatch)
    setting("MINIMIND_KERNELS", "torch")
    assert not gpu.runs_triton()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_t4_runs_all_but_products(dtype, gpu, setting, caplog):
    """Those would spill thousands of bytes; who asks for them gets them."""
    gpu.capability = T4
    assert gpu.runs_triton(dtype)
    with caplog.at_level("INFO", logger="minimind_kernels"):
        assert not gpu.runs_triton(dtype, has_products=True)
    assert "Triton makes the products of experts well from sm_80 on" in caplog.text
    setting("MINIMIND_KERNELS", "triton")
    assert gpu.runs_triton(dtype, has_products=True)


def test_rocm_is_not_asked_for_a_capability(gpu, monkeypatch):
    gpu.capability = V100
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert gpu.runs_triton(torch.bfloat16, has_products=True)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_torch_compile_traces_the_choice(setting):
    """The look at the machine, which it cannot trace, is left out."""
    setting("MINIMIND_KERNELS", "auto")

    def double_in_triton(x):
        tracing = torch.compiler.is_compiling()
        return x if backend._why_not_triton_on(torch.device("cuda", 0), tracing) else 2 * x

    compiled = torch.compile(double_in_triton, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [2, 2]
