"""The project as pip installs it: built, installed beside its dependencies alone, and used from a
folder outside any checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import LAUNCHER_VARIABLES, ROOT

import minimind
from minimind.cli.main import VERBS
from minimind.runtime.ranks import free_port

Run = Callable[..., "subprocess.CompletedProcess[str]"]
_OURS = ("minimind", "__editable__")
"""How the names begin of what an installation of this project leaves in site-packages."""
_CACHES = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".*cache")
_SHORT = ("--max_steps", "3", "--seq_len", "64", "--set", "train_batch_size=4")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools writes beside what it builds, and reads what it once wrote."""
    copy = tmp_path_factory.mktemp("source") / "minimind"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
        elif path.name in (
            "bench",
            "docs",
            "ds_configs",
            "kernels",
            "launch",
            "minimind",
            "recipes",
            "tests",
            ".ci",
            ".github",
        ):
            shutil.copytree(path, copy / path.name, ignore=_CACHES)
    code = "import setuptools.build_meta as backend; backend.build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (archive,) = copy.parent.glob("*.tar.gz")
    shutil.rmtree(copy)
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """From the sdist, which must therefore hold all that it takes."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(sdist.parent), str(sdist)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = sdist.parent.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and links to this one's other packages."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, symlinks=True)
    ours = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", ours))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(_OURS):
            (site / package.name).symlink_to(package)
    python = str(folder / "bin" / "python")
    options = ("--quiet", "--no-deps", "--no-index")
    command = [sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel)]
    # A checkout on PYTHONPATH would be "already satisfied" to pip.
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, env=variables)
    return folder


@pytest.fixture(scope="module")
def run(environment: Path) -> Run:
    """run("chat", …, stdin=…): the `minimind` of the environment; python=True is its Python."""
    elsewhere = environment.parent / "elsewhere"
    elsewhere.mkdir()
    # A run of this process, which another test made, still listens at its own MASTER_PORT.
    ours = ("PYTHONPATH", "VIRTUAL_ENV", *LAUNCHER_VARIABLES)
    variables = {k: v for k, v in os.environ.items() if k not in ours}
    variables |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    variables["MINIMIND_CACHE"] = str(environment.parent / "cache")

    def run(
        *arguments: str, python: bool = False, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        program = environment / "bin" / ("python" if python else "minimind")
        return subprocess.run(
            [str(program), *arguments],
            input=stdin,
            cwd=elsewhere,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


@pytest.fixture(scope="module")
def trained(run: Run) -> str:
    """A run's folder, three steps old."""
    done = run("train", *_SHORT, "--output_dir", "runs/base")
    assert done.returncode == 0, done.stderr
    return "runs/base"


def test_the_sdist_holds_all_that_a_checkout_does(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        *("pyproject.toml", "LICENSE", "CHANGELOG.md", "README_zh.md", "Makefile"),
        *("constraints.txt", "launch/train.py", "launch/chat.py", "ds_configs/zero2.json"),
        *("recipes/tiny.json", "minimind/pipeline/report.html.jinja"),
        *("minimind/inference/cpu_decode.cpp", "minimind/inference/cpu_vectors.h"),
        *("minimind/samples/tokenizer/tokenizer.json", "minimind/py.typed"),
        *("kernels/minimind_kernels/py.typed", "kernels/README.md"),
        *("tests/conftest.py", "tests/cli/test_wheel.py", "bench/harness.py"),
        *("docs/decisions/README.md", ".ci/run", ".github/workflows/test.yml", "Dockerfile"),
    ):
        assert wanted in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_holds_the_packages_and_what_they_read(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("ds_configs", "recipes"):
        shipped = {f"minimind/{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
        assert {name for name in names if name.startswith(f"minimind/{folder}/")} == shipped
    sources = {
        str(path.relative_to(root))
        for root, package in ((ROOT, "minimind"), (ROOT / "kernels", "minimind_kernels"))
        for pattern in ("*.py", "*.json", "*.jinja", "*.cpp", "*.h", "py.typed")
        for path in (root / package).rglob(pattern)
    }
    assert sources <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "minimind",
        "minimind_kernels",
    }


def test_sdist_wheel_and_command_have_the_version_of_the_package(
    sdist: Path, wheel: Path, run: Run
) -> None:
    assert sdist.name == f"minimind-{minimind.__version__}.tar.gz"
    assert wheel.name == f"minimind-{minimind.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert f"\nVersion: {minimind.__version__}\n" in archive.read(name).decode()
    assert run("--version").stdout == f"minimind {minimind.__version__}\n"


def test_the_command_is_the_installed_one(run: Run, environment: Path) -> None:
    helped = run("--help")
    assert helped.returncode == 0
    assert all(f"\n  {verb} " in helped.stdout for verb in VERBS)
    code = "import minimind, minimind_kernels as k; print(minimind.__file__, k.__file__)"
    places = run("-c", code, python=True).stdout.split()
    assert [Path(place).is_relative_to(environment) for place in places] == [True, True]
    assert run("-m", "minimind", "--version", python=True).stdout == run("--version").stdout
    assert "did you mean chat?" in run("chta").stderr


def test_the_shipped_json_is_looked_for_inside_the_package(run: Run) -> None:
    missed = run("train", "--ds_config", "zero9.json")
    names = ", ".join(sorted(path.name for path in (ROOT / "ds_configs").iterdir()))
    assert missed.returncode == 2
    assert f"site-packages/minimind/ds_configs: {names}" in missed.stderr


def test_it_trains_chats_and_converts(run: Run, trained: str, environment: Path) -> None:
    """By the command, and by the three lines of Python that README.md shows."""
    code = f"""
import minimind
short = dict(max_steps=2, seq_len=64)
minimind.train(stage="sft", from_checkpoint={trained!r}, output_dir="runs/chat", **short)
print(minimind.LLM("runs/chat").chat("你好", max_new_tokens=8))
"""
    api = run("-c", code, python=True)
    assert api.returncode == 0, api.stderr
    flags = ("--set", "temperature=0", "--set", "max_new_tokens=8")
    said = run("chat", "--checkpoint", "runs/chat", *flags, stdin="你好\n")
    assert (said.returncode, said.stderr) == (0, "")
    assert api.stdout == said.stdout != ""
    converted = run("convert", "--input", "runs/chat", "--to", "hf", "--output", "model")
    assert converted.returncode == 0, converted.stderr
    assert (environment.parent / "elsewhere" / "model" / "model.safetensors").is_file()


def test_deepspeeds_launcher_takes_the_module(run: Run, environment: Path) -> None:
    """Two ranks."""
    launcher = ("-m", "deepspeed.launcher.runner", "--master_port", str(free_port()))
    ranks = ("--num_accelerators", "2", "--module", "minimind", "train")
    done = run(*launcher, *ranks, *_SHORT, "--output_dir", "runs/two", python=True)
    assert done.returncode == 0, done.stderr
    folder = environment.parent / "elsewhere" / "runs" / "two" / "checkpoints" / "latest"
    assert len(list((folder / "engine").rglob("*optim_states.pt"))) == 2
