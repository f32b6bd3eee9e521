"""The parts of bench.gpu: what they run, and what a command that breaks or hangs leaves."""

from __future__ import annotations

import json
import signal
import sys
import tarfile
from pathlib import Path

import pytest

from bench.gpu import parts as gpu_parts
from bench.gpu.__main__ import build_parser, main, run_command
from bench.gpu.parts import CALLS, PARTS, Command, list_commands
from minimind.stages import STAGES


@pytest.mark.parametrize("flags", [[], ["--small"]])
def test_no_two_commands_write_one_file(flags: list[str]) -> None:
    options = build_parser().parse_args(flags)
    commands = [command for part in PARTS for command in list_commands(part, options)]
    assert len({command.name for command in commands}) == len(commands)


def test_data_and_tokenizer_reach_the_training_parts() -> None:
    options = build_parser().parse_args(["--data", "a.jsonl", "--tokenizer", "t"])
    for part in ("train", "compare", "profile", "curve"):
        for command in list_commands(part, options):
            assert "a.jsonl" in command.arguments
            assert "t" in command.arguments


def test_every_stage_is_measured() -> None:
    commands = list_commands("stages", build_parser().parse_args(["--data", "a.jsonl"]))
    assert [c.arguments[c.arguments.index("--stage") + 1] for c in commands] == [
        stage for stage in STAGES if stage != "pretrain"
    ]
    assert not any("a.jsonl" in c.arguments for c in commands)


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--parts", "kernels,trian"])
    assert "trian: the parts are tests, sanitizer" in capsys.readouterr().err


def test_what_is_correct_comes_before_what_is_quick() -> None:
    parts = build_parser().parse_args([]).parts
    assert parts == list(PARTS)
    assert parts[:2] == ["tests", "sanitizer"]


def test_calls_hold_all_parts_between_them() -> None:
    assert sorted(part for parts in CALLS.values() for part in parts) == sorted(PARTS)
    for name, parts in CALLS.items():
        assert build_parser().parse_args(["--parts", f"{name},tests"]).parts == list(
            dict.fromkeys((*parts, "tests"))
        )


def test_make_takes_parts_that_are_known() -> None:
    """And leaves the curves to those who ask for them."""
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    (line,) = (line for line in makefile.splitlines() if line.startswith("PARTS ?= "))
    parts = build_parser().parse_args(["--parts", line.removeprefix("PARTS ?= ")]).parts
    assert set(PARTS) - set(parts) == {"curve", "curve_original"}


def test_the_workflow_takes_parts_that_are_known() -> None:
    workflow = (Path(__file__).parents[3] / ".github/workflows/gpu.yml").read_text()
    (line,) = (line for line in workflow.splitlines() if line.strip().startswith("parts: "))
    calls = json.loads(line.strip().removeprefix("parts: "))
    parts = [p for call in calls for p in build_parser().parse_args(["--parts", call]).parts]
    assert parts == [part for part in PARTS if part in parts], "in the order of their worth"
    assert {"tests", "sanitizer", "train", "scaling"} <= set(parts)


def test_every_kernel_is_watched_by_the_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "find_program", lambda name: f"/cuda/{name}")
    commands = list_commands("sanitizer", build_parser().parse_args([]))
    assert [command.under[2:3] for command in commands] == [
        (), ("memcheck",), ("racecheck",), ("initcheck",)
    ]  # fmt: skip
    assert not any(command.missing for command in commands)
    assert all(
        c.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" and "--error-exitcode" in c.under
        for c in commands[1:]
    )


def test_a_sanitizer_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    watched = list_commands("sanitizer", build_parser().parse_args([]))[1:]
    assert all(run_command(command, tmp_path, 60.0)["failed"] is False for command in watched)
    said = "left out: compute-sanitizer not installed"
    assert capsys.readouterr().out.splitlines().count(said) == 3


def test_a_program_beside_cudas_compiler_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "watcher"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "watched: $*"\n')
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    command = Command("x", ("some.module",), writes_json=False, under=("watcher", "--tool", "t"))
    assert run_command(command, tmp_path, 60.0)["result"] == "ok"
    said = (tmp_path / "x.log").read_text()
    assert said == f"watched: --tool t {sys.executable} -m some.module\n"


def test_what_a_command_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text("import sys; print('said', sys.argv[1:])")
    (tmp_path / "bad.py").write_text("print('before'); raise SystemExit(3)")
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = {
        name: run_command(Command(name, (name, "x")), tmp_path, limit)["result"]
        for name, limit in (("good", 60.0), ("bad", 60.0), ("hangs", 0.5), ("late", -1.0))
    }
    assert results == {
        "good": "ok",
        "bad": "exit status 3",
        "hangs": "stopped after 0 s",
        "late": "no time left",
    }
    assert str(tmp_path / "good.json") in (tmp_path / "good.log").read_text()
    assert (tmp_path / "bad.log").read_text() == "before\n"


def test_what_needs_a_package_that_is_not_here_is_left_out_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command("x", ("x",), needs=("json", "a_package_nobody_has"))
    monkeypatch.setitem(PARTS, "tests", [command])
    assert main(["--parts", "tests", "--output", str(tmp_path)]) == 0
    (done,) = json.loads((tmp_path / "gpu.json").read_text())["commands"]
    assert done["result"] == "left out: a_package_nobody_has not installed"


def made_of(
    monkeypatch: pytest.MonkeyPatch, folder: Path, programs: dict[str, dict[str, str]]
) -> None:
    """Parts whose commands are these programs, each of which may write where `--json` says."""
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for part, sources in programs.items():
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        commands = [Command(name, (name,)) for name in sources]
        monkeypatch.setitem(PARTS, part, commands)


WRITES = "import sys; open(sys.argv[-1], 'w').write('{}'); "


def test_the_archive_holds_what_this_call_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, archive = tmp_path / "card", tmp_path / "day.tar.gz"
    output.mkdir()
    (output / "earlier.json").write_text("{}")
    made_of(monkeypatch, tmp_path, {
        "tests": {"good": WRITES, "dies": f"{WRITES} import os; os.kill(os.getpid(), 9)"},
        "train": {"after": f"{WRITES} raise SystemExit(3)"},
    })  # fmt: skip
    arguments = ["--parts", "tests,train", "--output", str(output), "--archive", str(archive)]
    assert main(arguments) == 1
    with tarfile.open(archive) as file:
        assert sorted(file.getnames()) == [
            "card/after.json", "card/after.log", "card/dies.json", "card/dies.log",
            "card/good.json", "card/good.log", "card/gpu.json",
        ]  # fmt: skip
        done = json.loads(file.extractfile("card/gpu.json").read())["commands"]  # type: ignore[union-attr]
    assert [row["result"] for row in done] == ["ok", "ended by signal 9", "exit status 3"]
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"


def test_an_interrupted_call_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of(monkeypatch, tmp_path, {
        "tests": {"waits": f"{WRITES} import os, signal, time; "
                           "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"},
        "train": {"never": WRITES},
    })  # fmt: skip
    output, archive = tmp_path / "card", tmp_path / "day.tar.gz"
    arguments = ["--parts", "tests,train", "--output", str(output), "--archive", str(archive)]
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(arguments) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    with tarfile.open(archive) as file:
        assert sorted(file.getnames()) == ["card/gpu.json", "card/waits.json", "card/waits.log"]


def test_the_limit_of_all_parts_holds(tmp_path: Path) -> None:
    assert main(["--parts", "tests", "--small", "--output", str(tmp_path), "--limit_s", "0"]) == 1
    (done,) = json.loads((tmp_path / "gpu.json").read_text())["commands"]
    assert done["result"] == "no time left"
