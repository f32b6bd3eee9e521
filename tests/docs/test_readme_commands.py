"""Every command of README.md, and of the documents that it leads to, runs, in their order and in one
folder. README_zh.md has the same commands (test_languages.py)."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_session import Session, SmallSession, WholeSession
from readme_commands import read_commands, run_here
from training_runs import ROOT

PAGES = (
    "README.md",
    "docs/migration.md",
    "docs/reinforcement.md",
    "docs/deepspeed_json.md",
    "docs/runs.md",
    "docs/serving.md",
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains the model that pages begin with: it ends its answers, or there would be none."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--stage", "sft", "--from_checkpoint", "none", "--output_dir", str(folder / "run")]
    flags += ["--max_steps", "150", "--seq_len", "128", "--set", "num_hidden_layers=2"]
    assert run_here("train", flags, small=False) == 0
    return folder / "run"


@pytest.fixture
def here(tmp_path: Path, no_launcher: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n"))
    with SmallSession(tmp_path, monkeypatch) as session:
        yield session


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, here: Session, trained: Path) -> None:
    here.run_page(ROOT / page, trained)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_with_their_launchers(
    page: str, tmp_path: Path, trained: Path
) -> None:
    with WholeSession(tmp_path) as session:
        session.run_page(ROOT / page, trained)


def test_flags_are_parsed_and_not_passed_over(tmp_path: Path, here: Session) -> None:
    page = tmp_path / "page.md"
    for wrong in ("--learning_rat 1", "--stage stf", "--set hidden_sise=4", "--ds_config zero9"):
        page.write_text(f"```sh\nminimind train {wrong} --output_dir runs/a\n```\n")
        with pytest.raises(AssertionError, match=r"page\.md:2"):
            here.run_page(page, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        "python launch/trian.py --stage sft",
        "make trian",
        "pip install '.[sevre]'",
        "nvidia-smi",
        "minimind chat --checkpoint runs/nothing",
    ],
)
def test_a_command_that_cannot_work_is_found(wrong: str, tmp_path: Path, here: Session) -> None:
    if wrong.startswith("make") and shutil.which("make") is None:
        pytest.skip("needs make")
    page = tmp_path / "page.md"
    page.write_text(f"```sh\n{wrong}\n```\n")
    with pytest.raises(AssertionError):
        here.run_page(page, tmp_path)


def test_a_line_is_one_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```sh\n# one; two\na 'b; c' \\\n    d  # e > f\n\ng\n```\n")
    assert [(command.line, command.words) for command in read_commands(page)] == [
        (5, ("a", "b; c", "d")),
        (8, ("g",)),
    ]
    for line in ("a | b", "a && b", "a > b", "a $(b)"):
        page.write_text(f"```sh\n{line}\n```\n")
        with pytest.raises(ValueError, match="one command a line"):
            read_commands(page)
