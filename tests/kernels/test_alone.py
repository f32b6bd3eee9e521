"""The package by itself: installed from its own folder, with torch and triton and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "kernels"
USE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("minimind", "bench", "deepspeed", "transformers"):
            raise ModuleNotFoundError(f"the kernels alone do not know {name}")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import minimind_kernels as K
import torch

assert K.__file__.startswith(sys.argv[1]), K.__file__
for op in K.OPS.values():
    case = op.tested_case(torch.float32, "cpu", tokens=6)
    outputs = case.ours(*case.inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.sum() for output in outputs).backward()
    assert all(t.grad.isfinite().all() for t in case.inputs if t.requires_grad)
    for form in op.forms:
        form.name and form.triton
print("done")
"""


def run(*command, **options):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(shutil.which("pip", path=Path(sys.executable).parent) is None, reason="no pip")
def test_it_installs_and_works_alone(tmp_path):
    source, site = tmp_path / "kernels", tmp_path / "site"
    # Setuptools builds inside the source folder.
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pyc*"))
    install = ("install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target")
    run(sys.executable, "-m", "pip", *install, str(site), str(source))
    packaged = {path.relative_to(site) for path in site.glob("minimind_kernels/**/*.py*")}
    for path in source.glob("minimind_kernels/**/*.py*"):
        assert path.relative_to(source) in packaged
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    program = (sys.executable, "-I", "-c", USE, str(site))
    assert run(*program, env=environment | {"MINIMIND_KERNELS": "torch"}) == "done\n"
