"""What bench.compare measures for which change, and how it takes commits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import compare
from minimind.errors import ConfigError


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ([], []),
        (["README.md", "docs/decisions.md", "tests/kernels/test_form.py"], []),
        (["kernels/minimind_kernels/rope.py"], ["train_step", "kernels", "inference"]),
        (["minimind/inference/sampling.py"], ["train_step", "inference"]),
        (["ds_configs/zero2.json"], ["train_step"]),
    ],
)
def test_affected_parts_alone(files: list[str], parts: list[str]) -> None:
    assert compare.affected_parts(files) == parts


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits; the second changes code, the working tree changes more."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet", "--initial-branch", "main")
    (tmp_path / "README.md").write_text("one")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    (tmp_path / "minimind").mkdir()
    (tmp_path / "minimind" / "types.py").write_text("x = 1")
    git("add", ".")
    git("commit", "--quiet", "-m", "second")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    return tmp_path


def test_changed_files(repository: Path) -> None:
    assert compare.changed_files("HEAD~1", "HEAD") == ["minimind/types.py"]
    assert compare.changed_files("HEAD", ".") == []
    (repository / "README.md").write_text("two")
    (repository / "new.py").write_text("")
    assert compare.changed_files("HEAD", ".") == ["README.md", "new.py"]


def test_nothing_affected_is_nothing_measured(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["HEAD", "HEAD"]) == 0
    assert "nothing that is measured has changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-commit", "HEAD"], "no-such-commit"),
        (["HEAD~1", "HEAD", "--parts", "speed"], "--parts speed: the parts are train_step"),
    ],
)
def test_bad_usage(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert compare.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_worktree_is_removed_again(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    with compare._checkout("HEAD~1", folder) as path:
        assert sorted(p.name for p in path.iterdir()) == [".git", "README.md"]
    assert not folder.exists()
    with pytest.raises(ConfigError):
        compare._resolve("HEAD~7")
