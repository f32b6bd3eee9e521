"""Reads the commands of documents and runs them at small sizes.

A command's own flags are parsed and obeyed. Flags that make it small are put behind them
(`shrink`), and the data files that it names are made from the sample data (`write_inputs`).
`run_here` runs it in this process, `run_for_real` as it is written, with its launcher.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from documents import read_document
from original_models import Plain, random_state
from training_runs import LAUNCHER_VARIABLES, ROOT

from minimind.cli.main import main
from minimind.errors import MiniMindError
from minimind.samples.files import CHAT_DATA, PREFERENCE_DATA, TEXT_DATA, SampleData
from minimind.samples.tasks import SUMS_DATA
from minimind.samples.text import load_sample_tokenizer

_SHELL = re.compile(r"[|<>;&]|\$\(|`")
"""What a line of a document may not have outside quotes: a line is one command."""
_LAUNCHERS = {"deepspeed", "torchrun", "python"}
_VERB_OF_SCRIPT = {"train_tokenizer": "tokenizer"}
_DATA: dict[str, SampleData] = {
    **dict.fromkeys(("text.jsonl", "held_out.jsonl", "pretrain_t2t_mini.jsonl"), TEXT_DATA),
    **dict.fromkeys(("conversations.jsonl", "domain.jsonl"), CHAT_DATA),
    **dict.fromkeys(("sft_t2t_mini.jsonl", "lora_medical.jsonl"), CHAT_DATA),
    **dict.fromkeys(("preferences.jsonl", "dpo.jsonl"), PREFERENCE_DATA),
    **dict.fromkeys(("questions.jsonl", "rlaif.jsonl", "agent_rl.jsonl"), SUMS_DATA),
}
"""The sample data that a data file of a document holds, by its name."""
_OF_STAGE = {
    "pretrain": TEXT_DATA, "sft": CHAT_DATA, "lora": CHAT_DATA, "dpo": PREFERENCE_DATA,
    "grpo": SUMS_DATA,
}  # fmt: skip
"""The sample data of stages whose commands name no data."""
_ROWS = 60
_ROLLOUTS = ("grpo", "ppo")
_OUTPUTS = ("--output_dir", "--output")


@dataclass(frozen=True, slots=True)
class Command:
    """Holds a command of a document, as the shell would split it."""

    document: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {shlex.join(self.words)}"


def read_commands(path: Path) -> list[Command]:
    """Reads the commands of a document's `sh` blocks. Raises ValueError for a line that is more
    than one command."""
    found = []
    for fence in read_document(path).fences:
        if fence.language != "sh":
            continue
        lines = fence.text.replace("\\\n", "\0").split("\n")
        number = fence.line
        for line in lines:
            first, number = number, number + 1 + line.count("\0")
            words = shlex.split(line.replace("\0", " "), comments=True)
            outside = re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line)
            if _SHELL.search(outside):
                raise ValueError(f"{path.name}:{first}: one command a line, so that it is tested")
            if words:
                found.append(Command(path.name, first, tuple(words)))
    return found


def as_verb(command: Command) -> tuple[str, list[str]] | None:
    """Gives the verb of `minimind` that a command runs, with its flags, through whatever launcher;
    None for another program's command. Raises AssertionError for a script that is not there."""
    program, *rest = command.words
    if program == "minimind":
        return rest[0], rest[1:]
    if program not in _LAUNCHERS:
        return None
    for index, word in enumerate(rest):
        if word in ("--module", "-m"):
            assert rest[index + 1] == "minimind", command
            return rest[index + 2], rest[index + 3 :]
        if word.endswith(".py"):
            assert (ROOT / word).is_file(), f"{command}: there is no {word}"
            name = Path(word).stem
            return _VERB_OF_SCRIPT.get(name, name), rest[index + 1 :]
    raise AssertionError(f"{command}: runs no script and no module")


def shrink(verb: str, flags: Sequence[str]) -> list[str]:
    """Gives the flags that make a verb's command small; they stand behind its own, which they
    override."""
    if "--help" in flags:
        return []
    if verb == "train":
        return _shrink_training(flags)
    if verb in ("evaluate", "answer"):
        return ["--max_rows", "4", "--max_new_tokens", "24"]
    if verb == "pipeline":  # tests/pipeline makes one
        return ["--dry_run"]
    if verb == "chat":
        return ["--set", "max_new_tokens=8"]
    return []


def _shrink_training(flags: Sequence[str]) -> list[str]:
    if "--resume" in flags:
        return ["--max_steps", "3"]
    stage = flags[flags.index("--stage") + 1] if "--stage" in flags else "pretrain"
    small = [] if "--data" in flags else ["--data", _file_of(_OF_STAGE.get(stage, TEXT_DATA))]
    if "--on" in flags:  # sizes are those of the device, and a layer is like the next
        return [*small, "--set", "num_hidden_layers=1"]
    small += ["--max_steps", "2", "--batch_size", "2", "--seq_len", "128"]
    small += ["--set", "micro_batch_size=2", "--set", "eval_rows=2"]
    if "--model" in flags:
        small += ["--model", "tiny", "--set", "num_hidden_layers=2"]
        experts = "moe" in flags[flags.index("--model") + 1]
        small += ["--set", "num_experts=2"] * experts
    if stage in _ROLLOUTS:
        small += ["--set", "num_generations=2", "--set", "max_new_tokens=8"]
    return small


def _file_of(data: SampleData) -> str:
    return f"sample-{data.name}.jsonl"


def write_rows(path: Path, data: SampleData, count: int) -> None:
    """Writes the first rows of some sample data."""
    rows = itertools.islice((row for row, *_ in data.rows(0)), count)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def write_inputs(commands: Sequence[Command], folder: Path) -> None:
    """Writes the files that commands read and that none of them makes."""
    for data in _OF_STAGE.values():
        write_rows(folder / _file_of(data), data, _ROWS)
    for word in {word for command in commands for word in command.words}:
        if data := _DATA.get(Path(word).name):
            write_rows(folder / word, data, _ROWS)
    tokenizer = load_sample_tokenizer()
    tokenizer.save(folder / "model")
    plain = Plain("3", vocab=tokenizer.vocab_size, kv_heads=4)
    (folder / "out").mkdir()
    for path in (folder / "full_sft_768.pth", folder / "out" / "full_sft_768.pth"):
        torch.save(random_state(plain), path)
    tools = 'def search(arguments):\n    return "nothing was found"\n'
    (folder / "my_tools.py").write_text(tools, encoding="utf-8")
    for name in ("launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)


def output_of(flags: Sequence[str]) -> str | None:
    """Gives what a command makes, by its flags."""
    return next((flags[flags.index(flag) + 1] for flag in _OUTPUTS if flag in flags), None)


def unmade_inputs(commands: Sequence[Command]) -> list[str]:
    """Lists the runs that commands read before any of them makes it, in their order."""
    made, unmade = set[str](), dict[str, None]()
    for command in commands:
        verb = as_verb(command)
        flags = verb[1] if verb else []
        output = output_of(flags)
        named = re.findall(r"runs/[\w-]+", " ".join(flags))
        if "--resume" not in flags:
            named = [name for name in named if name != output]
        unmade |= dict.fromkeys(name for name in named if name not in made)
        if output:
            made.add(output)
    return list(unmade)


def run_here(verb: str, flags: Sequence[str], *, small: bool = True) -> int:
    """Runs a verb in this process, and gives its exit status. A flag in the verb's place is one of
    `minimind` itself."""
    if verb.startswith("-"):
        return main([verb, *flags])
    module = importlib.import_module(f"minimind.cli.{verb}")
    try:
        return module.main([*flags, *(shrink(verb, flags) if small else ())])
    except SystemExit as end:  # argparse ends --help and bad flags so
        return int(end.code or 0)
    except MiniMindError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2


def run_for_real(command: Command, flags: Sequence[str], folder: Path) -> str:
    """Runs a command as it is written, with `flags` behind its own. Gives what it printed. Raises
    AssertionError where it fails."""
    words = [*command.words, *flags]
    done = subprocess.run(
        words, cwd=folder, env=environment(), input="你好\n", capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def environment() -> dict[str, str]:
    """Gives the environment of a command: the programs of this Python before all others, and this
    checkout."""
    programs = str(Path(sys.executable).parent)
    variables = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return variables | {
        "PATH": f"{programs}{os.pathsep}{variables['PATH']}",
        "PYTHONPATH": paths,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def check_foreign(command: Command, folder: Path) -> None:
    """Checks a command of another program as far as that is possible without running it. Raises
    AssertionError for one that is not known here."""
    program, *rest = command.words
    if program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert rest[0] == "install", command
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), command
    elif program == ".":
        assert rest == [".venv/bin/activate"], command
    elif program == "tensorboard":
        assert (folder / rest[rest.index("--logdir") + 1]).is_dir(), command
    else:
        raise AssertionError(f"{command}: a program that the test does not know")


def expand_make(command: Command) -> list[Command]:
    """Gives the commands of ours that `make TARGET` would run. Raises AssertionError for a target
    that is none."""
    done = subprocess.run(
        ["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    lines = done.stdout.replace("\\\n", " ").split("\n")
    found = (re.match(r"\S*python (launch/.*)", line) for line in lines)
    return [replace(command, words=("python", *shlex.split(match[1]))) for match in found if match]
