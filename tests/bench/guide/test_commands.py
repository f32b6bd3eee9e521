"""What the chapters of the guide end with: each command runs, in the order of the chapters."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.guide.pages import GUIDE
from bench.harness import ROOT

CHAPTERS = re.findall(r"\]\((\w+)\.md\)", (GUIDE / "en" / "README.md").read_text("utf-8"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder that looks like a checkout to the commands, with `minimind` and `python`."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("docs", "bench", "minimind", "kernels", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    programs = folder / "programs"
    programs.mkdir()
    for name, start in (("python", ""), ("minimind", "-m minimind")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {start} "$@"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_last_command_of_a_chapter_runs(chapter: str, checkout: Path) -> None:
    last = (GUIDE / "en" / f"{chapter}.md").read_text("utf-8").split("\n## ")[-1]
    (script,) = re.findall(r"```bash\n(.*?)```", last, re.DOTALL)
    roots = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=checkout,
        env=os.environ | {
            "PATH": f"{checkout / 'programs'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": roots,
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
