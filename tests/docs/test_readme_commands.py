"""Every command of README.md, and of the documents that it leads to, runs: in their order and in
one folder, as by somebody who types them. README_zh.md has the same (test_languages.py)."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_session import Session, SmallSession, WholeSession
from readme_commands import Command, read_commands, run_here, write_inputs
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
    """Trains the model that pages begin with, until it ends an answer: `minimind answer` leaves out
    what has no end."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [
        {"conversations": [{"role": "user", "content": f"{n} plus 1?"},
                           {"role": "assistant", "content": "Yes, it is."}]}
        for n in range(40)
    ]  # fmt: skip
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--stage", "sft", "--from_checkpoint", "none", "--output_dir", str(folder / "run")]
    flags += ["--data", str(folder / "chat.jsonl"), "--max_steps", "60", "--seq_len", "64"]
    assert run_here("train", [*flags, "--set", "num_hidden_layers=2"], small=False) == 0
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


@pytest.mark.parametrize(
    "wrong",
    [
        "minimind train --learning_rat 1",
        "python launch/train.py --stage stf",
        "deepspeed --module minimind train --set hidden_sise=4",
        "torchrun --nproc_per_node 2 launch/train.py --ds_config zero9",
        "python launch/trian.py --stage sft",
        "minimind chat --checkpoint runs/nothing",
        "make trian",
        "pip install '.[sevre]'",
        "nvidia-smi",
    ],
)
def test_a_command_that_cannot_work_is_found(wrong: str, here: Session) -> None:
    if wrong.startswith("make") and shutil.which("make") is None:
        pytest.skip("needs make")
    write_inputs([], here.folder)
    with pytest.raises(AssertionError, match=r"page\.md:7"):
        here.run_command(Command("page.md", 7, tuple(shlex.split(wrong))))


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
