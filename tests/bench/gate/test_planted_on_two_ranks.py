"""What the gate must catch where it is planted on two ranks alone: time, and memory of one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.gate import __main__ as compare
from minimind.samples.text import load_sample_tokenizer

ROOT = Path(__file__).resolve().parents[3]
MODEL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": load_sample_tokenizer().vocab_size,
}  # fmt: skip
PLANT = """

import time as _time

_kept = []
_whole_step = Run.step_ahead


def _slower(self):
    if self.ranks.world_size == 2:
        _time.sleep(1.0)
    if self.ranks.rank == 1 and not _kept:
        import torch

        _kept.append(torch.zeros(1 << 20))
    return _whole_step(self)


Run.step_ahead = _slower
"""


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This checkout as it is, and the same with the plant, as two commits that are compared."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard",
         "bench/*.py", "kernels", "minimind", "ds_configs", "pyproject.toml"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    for name in listed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]

    def commit() -> None:
        for arguments in (["add", "."], ["commit", "--quiet", "-m", "x"]):
            subprocess.run([*git, *arguments], cwd=tmp_path, check=True)

    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    commit()
    with (tmp_path / "minimind" / "run" / "run.py").open("a") as file:
        file.write(PLANT)
    commit()
    monkeypatch.setattr(compare, "ROOT", tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("commits", "no_launcher")
def test_what_is_planted_on_two_ranks_is_found_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two pairs show it, however noisy the rest is.
    monkeypatch.setattr(compare, "needs_more_pairs", lambda pairs, part: False)
    path, model = tmp_path / "results" / "verdict.json", tmp_path / "small.json"
    model.write_text(json.dumps(MODEL))
    arguments = ["HEAD~1", "HEAD", "--parts", "scaling", "--pairs", "2", "--model", str(model)]
    assert compare.main([*arguments, "--json", str(path)]) == 1
    one, two = json.loads(path.read_text())["rows"]
    assert (one["name"][-5:], two["name"][-5:]) == (" on 1", " on 2")
    assert (two["verdict"], two["why"]) == ("worse", "slower, more memory")
    assert two["memory_ratio"] > 1.01, "that of the second rank"
    assert one["memory_ratio"] == 1.0
