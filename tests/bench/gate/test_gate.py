"""What bench.gate measures for which change, and how it takes commits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.gate import __main__ as compare
from minimind.errors import ConfigError


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ([], list(compare.PARTS)),
        (["README.md", "docs/decisions/README.md", "tests/kernels/test_form.py"], []),
        (
            ["kernels/minimind_kernels/rope.py"],
            ["step_counts", "train", "scaling", "kernels", "inference"],
        ),
        (["minimind/inference/sampling.py"], ["inference"]),
        (["minimind/serving/app.py"], []),
        (["ds_configs/zero2.json"], ["step_counts", "train", "scaling"]),
        (["minimind/run/run.py"], ["step_counts", "train", "scaling"]),
    ],
)
def test_affected_parts_alone(files: list[str], parts: list[str]) -> None:
    assert compare.affected_parts(files) == parts


def commit(repository: Path, message: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["add", "."], ["commit", "--quiet", "-m", message]):
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits; the second changes code, the working tree changes more."""

    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main"], cwd=tmp_path, check=True)
    (tmp_path / "README.md").write_text("one")
    commit(tmp_path, "first")
    (tmp_path / "minimind").mkdir()
    (tmp_path / "minimind" / "types.py").write_text("x = 1")
    commit(tmp_path, "second")
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
    (repository / "README.md").write_text("two")
    assert compare.main(["HEAD", "."]) == 0
    assert "nothing that is measured has changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-commit", "HEAD"], "no-such-commit"),
        (["HEAD~1", "HEAD", "--parts", "speed"], "--parts speed: there are step_counts"),
    ],
)
def test_bad_usage(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert compare.main(arguments) == 2
    assert message in capsys.readouterr().err


MEASURE = """
import json, pathlib, sys
work = float(pathlib.Path("minimind/types.py").read_text().split()[-1])
row = {{"name": "x", "useful_tokens_per_s": 100 / work, "peak_bytes": 1000, "launches": 7}}
if {fails}:
    sys.exit("no such benchmark")
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps({{"rows": [row]}}))
"""


@pytest.fixture
def measuring(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """compare.main on two commits whose own benchmark says how quick each is; the second does
    `work` times what the first does."""

    def run(work: float, *more: str, base_fails: bool = False, head_fails: bool = False) -> int:
        (repository / "bench").mkdir(exist_ok=True)
        module = repository / "bench" / "train.py"
        (repository / "minimind" / "types.py").write_text("x = 1")
        module.write_text(MEASURE.format(fails=base_fails))
        commit(repository, "base")
        (repository / "minimind" / "types.py").write_text(f"x = {work}")
        module.write_text(MEASURE.format(fails=head_fails))
        commit(repository, "head")
        return compare.main(["HEAD~1", "HEAD", "--parts", "train", *more])

    monkeypatch.setattr(compare, "probe_product", lambda device: 1.0)
    return run


def test_each_commit_is_measured_by_its_own_code(
    measuring: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "verdict.json"
    assert measuring(1.25, "--pairs", "2", "--json", str(path)) == 1
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["ratio"], row["pairs"], row["why"]) == (0.8, 2, "slower")
    assert "### Benchmarks: worse" in capsys.readouterr().out
    assert not (tmp_path / ".git" / "worktrees").exists()


def test_what_the_base_cannot_measure_is_not_compared(
    measuring: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert measuring(2.0, "--pairs", "2", base_fails=True) == 0
    found = capsys.readouterr()
    assert "not compared" in found.out
    assert "no such benchmark" in found.err


def test_a_head_that_cannot_be_measured_is_worse(
    measuring: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert measuring(2.0, "--pairs", "2", head_fails=True) == 1
    found = capsys.readouterr()
    assert "### Benchmarks: worse" in found.out
    assert "no such benchmark" in found.err


def test_a_commit_is_compared_with_itself(
    measuring: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    measuring(1.0, "--pairs", "1", "--budget_s", "0")
    capsys.readouterr()
    path = tmp_path / "noise.json"
    arguments = ["HEAD", "HEAD", "--parts", "train", "--pairs", "3", "--json", str(path)]
    assert compare.main(arguments) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["verdict"], row["ratios"]) == ("same", [1.0] * 3)
    said = capsys.readouterr().out
    assert "varies by 0.0%" in said
    assert "Both are the same code" in said


def test_a_budget_that_ends_first_leaves_it_too_noisy(measuring: Callable[..., int]) -> None:
    assert measuring(1.0, "--budget_s", "0") == 3


SCALES = """
import json, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
work = float(pathlib.Path("minimind/types.py").read_text().split()[-1])
rows = [
    {"name": options["--modes"], "model": options["--model"], "world_size": n,
     "useful_tokens_per_s": 100 * n / (work if n == 2 else 1), "peak_bytes": 1000}
    for n in map(int, options["--num_gpus"].split(","))
]
pathlib.Path(options["--json"]).write_text(json.dumps({"rows": rows}))
"""


def test_what_is_slower_on_two_ranks_alone_is_found(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (repository / "bench").mkdir()
    (repository / "bench" / "scaling.py").write_text(SCALES)
    commit(repository, "base")
    (repository / "minimind" / "types.py").write_text("x = 1.2")
    commit(repository, "head")
    monkeypatch.setattr(compare, "probe_product", lambda device: 1.0)
    monkeypatch.setattr(compare, "counts_here", lambda device: [1, 2])
    path = tmp_path / "verdict.json"
    arguments = ["HEAD~1", "HEAD", "--parts", "scaling", "--pairs", "2", "--json", str(path)]
    assert compare.main(arguments) == 1
    rows = json.loads(path.read_text())["rows"]
    assert {row["name"]: (row["verdict"], row["why"]) for row in rows} == {
        "scaling strong tiny on 1": ("same", ""),
        "scaling strong tiny on 2": ("worse", "slower"),
    }


def test_a_worktree_is_removed_again(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    with compare._checkout("HEAD~1", folder) as path:
        assert sorted(p.name for p in path.iterdir()) == [".git", "README.md"]
    assert not folder.exists()
    with pytest.raises(ConfigError):
        compare._resolve("HEAD~7")
