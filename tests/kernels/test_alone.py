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
x = torch.randn(6, 8, requires_grad=True)
total, y = K.add_rms_norm(K.rms_norm(x, torch.ones(8), 1e-5), x, torch.ones(8), 1e-5)
q, k, v = K.qk_rope(y.repeat(1, 2), torch.ones(6, 2), torch.zeros(6, 2), torch.arange(6), 2, 1)
hidden = K.swiglu(q.flatten(1)) + k.flatten(1) + v.flatten(1)
head, labels = torch.randn(5, 4), torch.arange(6) % 5
loss = K.linear_cross_entropy(hidden, head, labels) - K.linear_log_prob(hidden, head, labels)
loss = loss + K.linear_token_loss(hidden, head, labels, lambda log_prob, rows: log_prob.exp())[0]
(loss + K.linear_kl(hidden, head, total, torch.randn(5, 8))).sum().backward()
assert x.grad.isfinite().all()
from minimind_kernels import triton_impl
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
