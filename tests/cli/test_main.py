"""`minimind VERB …`: the right verb with the right flags, by every door."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from training_runs import ROOT

import minimind
from minimind.cli import main as command
from minimind.cli.verb_parser import VerbParser
from minimind.errors import ConfigError, TrainingError

DOORS = {"tokenizer": "train_tokenizer"}
"""Scripts in launch/ that are not named as their verb."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], str]]:
    """(verb, its flags, the name in its usage lines) of each run, in place of the run."""
    found: list[tuple[str, list[str], str]] = []

    def fake(name: str) -> SimpleNamespace:
        verb = name.removeprefix("minimind.cli.")

        def main(argv: list[str]) -> int:
            found.append((verb, argv, Path(sys.argv[0]).name))
            return 7

        return SimpleNamespace(main=main)

    monkeypatch.setattr(command.importlib, "import_module", fake)
    monkeypatch.setattr(sys, "argv", ["/bin/minimind"])
    return found


@pytest.mark.parametrize("verb", command.VERBS)
def test_every_verb_gets_its_flags(verb: str, calls) -> None:
    assert command.main([verb, "--help", "chat"]) == 7
    assert calls == [(verb, ["--help", "chat"], f"minimind {verb}")]


def test_training_ends_the_process_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that wait for each other must not be left behind."""
    from minimind.cli import train

    monkeypatch.setattr(train, "run_process", lambda argv: list(argv))
    assert command.run_verb("train", ["--dry_run"]) == ["--dry_run"]


def test_flags_come_from_the_command_line(calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/minimind", "chat", "--thinking"])
    assert command.main() == 7
    assert calls == [("chat", ["--thinking"], "minimind chat")]


def test_deepspeeds_local_rank_stands_before_the_verb(calls) -> None:
    assert command.main(["--local_rank=1", "train", "--stage", "sft"]) == 7
    assert calls == [("train", ["--local_rank=1", "--stage", "sft"], "minimind train")]


def test_help_has_a_line_for_each_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb, text in command.VERBS.items():
        assert any(line.split() == [verb, *text.split()] for line in shown.splitlines())
    assert command.main([]) == 2
    assert capsys.readouterr().err == shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"minimind {minimind.__version__}\n"


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("serv", "there is no verb 'serv' (did you mean serve?)"),
        ("tokeniser", "did you mean tokenizer?"),
        ("xyz", "the verbs are train, chat,"),
        ("--stage", "there is no verb '--stage'"),
    ],
)
def test_a_verb_that_is_none(verb: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([verb]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("module", "extra"),
    [("fastapi", "serve"), ("openai", "serve"), ("lm_eval.tasks", "eval"), ("streamlit", "web")],
)
def test_a_missing_extra_is_named(
    module: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(command.importlib, "import_module", fail)
    assert command.run_verb("serve", []) == 2
    package = module.partition(".")[0]
    wanted = f"error: serve needs {package}, which is not installed: "
    assert capsys.readouterr().err == f"{wanted}pip install 'minimind[{extra}]'\n"


def test_a_module_of_our_own_that_is_missing_is_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'minimind.no'", name="minimind.no")

    monkeypatch.setattr(command.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError):
        command.run_verb("serve", [])


@pytest.mark.parametrize("verb", sorted({*command.VERBS} - {"train"}))
def test_an_unknown_flag_is_named_before_what_is_missing(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.run_verb(verb, ["--hlep"])
    assert ended.value.code == 2
    assert "error: unknown flag: --hlep (did you mean --help?)\n" in capsys.readouterr().err


def test_values_and_beginnings_of_flags_are_no_unknown_flags() -> None:
    parser = VerbParser()
    parser.add_argument("--ask", nargs="+")
    parser.add_argument("--output_dir")
    given = parser.parse_args(["--out=a", "--ask", "--what is this", "-3"])
    assert given.output_dir == "a"
    assert given.ask == ["--what is this", "-3"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("no \x1b[2J"), 2, "error: no \ufffd[2J\n"),
        (TrainingError("it broke"), 1, "error: it broke\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_stops_a_verb_is_said_by_its_exit_status(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(command.importlib, "import_module", lambda _: SimpleNamespace(main=main))
    assert command.run_verb("evaluate", []) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("reader_left", [True, False])
def test_a_reader_that_has_enough(reader_left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe inside the program that breaks is another matter."""
    read, write = os.pipe()
    if reader_left:
        os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as out:

        def main(argv: list[str]) -> int:
            out.write("result")
            out.flush()
            raise BrokenPipeError

        verb = SimpleNamespace(main=main)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(command.importlib, "import_module", lambda _: verb)
        if reader_left:
            assert command.run_verb("evaluate", []) == 1
        else:
            with pytest.raises(BrokenPipeError):
                command.run_verb("evaluate", [])
    if not reader_left:
        os.close(read)


def test_every_verb_has_its_file_and_its_script() -> None:
    files = Path(command.__file__).parent.glob("[!_]*.py")
    verbs = {path.stem for path in files if "\ndef main(" in path.read_text(encoding="utf-8")}
    assert verbs - {"main"} == set(command.VERBS)
    for verb in command.VERBS:
        assert (ROOT / "launch" / f"{DOORS.get(verb, verb)}.py").is_file()


@pytest.mark.parametrize("verb", ["chat", "tokenizer"])
def test_scripts_and_module_are_the_same_verb(verb: str) -> None:
    """But for the name in the usage lines, whose width differs."""
    script = f"{DOORS.get(verb, verb)}.py"
    shown = []
    for command_line in ([str(ROOT / "launch" / script)], ["-m", "minimind", verb]):
        done = subprocess.run(
            [sys.executable, *command_line, "--help"], capture_output=True, text=True, check=True
        )
        shown.append(done.stdout)
    by_script, by_module = shown
    assert by_script.startswith(f"usage: {script} ")
    assert by_module.startswith(f"usage: minimind {verb} ")
    assert by_script.partition("\n\n")[2] == by_module.partition("\n\n")[2]


def test_packages_in_the_wheel_are_all_there_are() -> None:
    """setuptools is told their names: one that is left out would be missing from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {
        str(path.parent.relative_to(root)).replace("/", ".")
        for root, package in ((ROOT, "minimind"), (ROOT / "kernels", "minimind_kernels"))
        for path in (root / package).rglob("__init__.py")
    }
    assert listed == found | {"minimind.ds_configs", "minimind.recipes"}
