"""Sets up what every test runs under: one thread, a cache of its own, a clean logger."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Compiling the CPU code of the kernels would cost more than the tests; tests/kernels asks for it
# where it is what is tested.
os.environ.setdefault("MINIMIND_COMPILE", "0")
# Folders that tests write are read, and nothing is looked up elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from hypothesis import settings
from minimind_kernels import backend
from training_runs import LAUNCHER_VARIABLES

from minimind.data.tokenizer import Tokenizer
from minimind.runtime.compiler import find_cpp_compiler
from minimind.runtime.memory import freeze_objects
from minimind.samples.text import load_sample_tokenizer

torch.set_num_threads(1)  # also while tests are collected
# On a busy machine any example may take longer than hypothesis allows.
settings.register_profile("untimed", settings(deadline=None))
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """Freezes the objects that exist now: every run in the tests would otherwise scan all of
    them."""
    freeze_objects()


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Puts token caches into a folder of the test session, not into the user's."""
    os.environ["MINIMIND_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives a cache folder for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MINIMIND_CACHE", str(folder))
    return folder


_LOG_LEVEL = logging.getLogger().level


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """Resets the root logger after each test: programs set it up for their whole process, which the
    next test shares. Fixtures may have set it up before this one runs, so no state is saved
    here."""
    yield
    root = logging.getLogger()
    root.setLevel(_LOG_LEVEL)
    root.handlers[:] = [h for h in root.handlers if type(h).__module__.startswith("_pytest")]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Limits PyTorch to one thread: the tests' products are so small that a second thread slows
    them down, several times where other processes need the cores. Programs under test set their own
    number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Loads the tokenizer of the sample data."""
    return load_sample_tokenizer()


@pytest.fixture(params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test twice, with fp32 and with bf16 as what "auto" means, whatever the machine."""
    monkeypatch.setenv("MINIMIND_PRECISION", request.param)
    return request.param


@pytest.fixture
def own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes "auto" mean the device's own precision, whatever the tests are run with."""
    monkeypatch.delenv("MINIMIND_PRECISION", raising=False)


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes "auto" mean fp32, for tests that hold in fp32 only."""
    monkeypatch.setenv("MINIMIND_PRECISION", "fp32")


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the launcher's variables, so that the process is a single rank; changes that a test
    makes to them are undone."""
    for name in LAUNCHER_VARIABLES:
        # Set first: else monkeypatch would not take away what the code under test sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Gives a function that sets one of the kernels' environment variables, as if the process had
    started with it."""
    caches = (backend.kernels_setting, backend.compile_setting, backend.interpreting)

    def set_one(name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        for cache in caches:
            cache.cache_clear()

    yield set_one
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(params=["C++", "PyTorch"])
def decoding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the test twice, with the batch engine decoding in C++ and in PyTorch."""
    from minimind.inference import cpu_library

    if request.param == "C++" and find_cpp_compiler() is None:
        pytest.skip("needs a C++ compiler: without one the engine decodes in PyTorch alone")
    if request.param == "C++":
        monkeypatch.setattr(backend, "compile_setting", lambda: "1")
    yield request.param
    cpu_library.load_library.cache_clear()
