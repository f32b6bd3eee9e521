"""Runs commands as a user types them, and prints each one with what it says: `pytest -s` so shows a
transcript."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training_runs import LAUNCHER_VARIABLES, ROOT

LIMIT_S = 600


class Commands:
    """Runs commands in one folder, which is outside the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = (*LAUNCHER_VARIABLES, "PYTHONPATH")
        self._plain = {k: v for k, v in os.environ.items() if k not in names}
        self._plain |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        self._ours = self._plain | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}

    def minimind(self, verb: str, *flags: str) -> str:
        """Runs a verb and gives what it prints to stdout."""
        shown = f"minimind {verb} {' '.join(flags)}"
        return self._run([_script(verb), *flags], self.folder, self._ours, shown)

    def plain(self, script: str, *arguments: str, code: str = "", folder: str = ".") -> str:
        """Runs a script in a folder, without a path to this project. `code` is written into it
        first, if given."""
        place = self.folder / folder
        if code:
            (place / script).write_text(code, encoding="utf-8")
        shown = f"cd {folder} && python {script} {' '.join(arguments)}"
        return self._run([script, *arguments], place, self._plain, shown)

    def _run(self, words: list[str], folder: Path, environment: dict[str, str], shown: str) -> str:
        _show(f"$ {shown}")
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        _show(done.stdout + done.stderr)
        assert done.returncode == 0, f"{shown}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    @contextmanager
    def server(self, *flags: str) -> Iterator[str]:
        """Runs `minimind serve` on a free port until the block ends, and gives its address."""
        _show(f"$ minimind serve {' '.join(flags)}")
        command = [sys.executable, _script("serve"), "--port", "0", *flags]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self._ours, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        try:
            url, said = "", ""
            while not said.startswith("ready"):
                said = json.loads(process.stderr.readline())["message"]
                _show(said)
                url = said.removeprefix("listening on ") if "listening on" in said else url
            yield url
        finally:
            process.terminate()
            process.stderr.close()
            assert process.wait(LIMIT_S) == 0


def _script(verb: str) -> str:
    return str(ROOT / "launch" / f"{verb}.py")


def _show(text: str) -> None:
    print(text, flush=True)  # noqa: T201
