"""The parts of bench.gpu: what they run, and what a command that breaks or hangs leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.gpu import build_parser, main, run_command
from bench.gpu_parts import PARTS, Command
from minimind.stages import STAGES


@pytest.mark.parametrize("flags", [[], ["--small"]])
def test_no_two_commands_write_one_file(flags: list[str]) -> None:
    options = build_parser().parse_args(flags)
    commands = [command for part in PARTS.values() for command in part(options)]
    assert len({command.name for command in commands}) == len(commands)


def test_data_and_tokenizer_reach_the_training_parts() -> None:
    options = build_parser().parse_args(["--data", "a.jsonl", "--tokenizer", "t"])
    for part in ("train", "compare", "profile", "curve"):
        for command in PARTS[part](options):
            assert "a.jsonl" in command.arguments
            assert "t" in command.arguments


def test_every_stage_is_measured() -> None:
    commands = PARTS["stages"](build_parser().parse_args(["--data", "a.jsonl"]))
    assert [c.arguments[c.arguments.index("--stage") + 1] for c in commands] == [
        stage for stage in STAGES if stage != "pretrain"
    ]
    assert not any("a.jsonl" in c.arguments for c in commands)


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--parts", "kernels,trian"])
    assert "trian: the parts are tests, kernels" in capsys.readouterr().err


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
    monkeypatch.setitem(PARTS, "tests", lambda options: [command])
    assert main(["--parts", "tests", "--output", str(tmp_path)]) == 0
    (done,) = json.loads((tmp_path / "gpu.json").read_text())["commands"]
    assert done["result"] == "left out: a_package_nobody_has not installed"


def test_the_limit_of_all_parts_holds(tmp_path: Path) -> None:
    assert main(["--parts", "tests", "--small", "--output", str(tmp_path), "--limit_s", "0"]) == 1
    (done,) = json.loads((tmp_path / "gpu.json").read_text())["commands"]
    assert done["result"] == "no time left"


def test_one_broken_command_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit(1)")
    (tmp_path / "fine.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    commands = [Command(name, (name,), writes_json=False) for name in ("broken", "fine")]
    monkeypatch.setitem(PARTS, "tests", lambda options: commands)
    assert main(["--parts", "tests", "--output", str(tmp_path / "out")]) == 1
    done = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [row["result"] for row in done["commands"]] == ["exit status 1", "ok"]
    assert sys.version.split()[0] == done["machine"]["versions"]["python"]
