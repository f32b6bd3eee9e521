"""Lists the commands of each part of `python -m bench.gpu`, and their sizes."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minimind.stages import STAGES

DENSE, EXPERTS = ("minimind2-small", "minimind2", "minimind3"), ("minimind2-moe", "minimind3-moe")
_FIRST = DENSE[0]
_OURS = "--rows plain_loop,engine"
_NOT_THEIRS = "" if importlib.util.find_spec("transformers") else "--rows minimind"
_STEPS = "bench.train --accumulation 2 --original_batch 32"
"""The original batch is as many documents as the original trains with in a micro-batch."""
_SMALL = {
    "pytest": "--collect-only",
    "bench.kernels": "--tokens 256",
    "bench.train": "--set num_hidden_layers=1 --steps 2 --warmup 1 --accumulation 1 --seq_len 64 "
    "--micro_batch 2",
    "bench.learning": "--model tiny --tokens 8192 --points 2",
    "bench.inference": "--model tiny --batch 1,2 --prompt 8 --new 8 --rounds 2",
    "bench.scaling": "--model tiny --num_gpus 1,2 --threads 1 --seq_len 64 --micro_batch 2 "
    "--steps 1",
}
"""The arguments that `--small` adds to a program. Where an option is given twice, the last one
counts."""


@dataclass(frozen=True, slots=True)
class Command:
    """Describes one process, `python -m <module> <arguments>`: with `--json` where it writes
    results, by itself or `under` another program."""

    name: str
    arguments: tuple[str, ...]
    writes_json: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """The packages without which the command is left out; that is no failure."""
    under: tuple[str, ...] = ()
    """A program that watches the command, with its flags; without the program the command is left
    out."""
    limit_s: float = float("inf")
    """The seconds that the command may take; its part has a limit, too."""
    takes: tuple[str, ...] = ()
    """The options of bench.gpu that are handed on to the command."""
    is_small: bool = True
    """Whether `--small` runs it too."""

    @property
    def missing(self) -> list[str]:
        programs = [name for name in self.under[:1] if find_program(name) is None]
        return programs + [name for name in self.needs if importlib.util.find_spec(name) is None]


def find_program(name: str) -> str | None:
    """Finds a program on the path or, as most of CUDA's lie there, beside CUDA's compiler."""
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin"
    return shutil.which(name) or shutil.which(name, path=str(toolkit))


def list_commands(part: str, options: argparse.Namespace) -> list[Command]:
    """Lists the commands of a part, with the options that bench.gpu was given."""
    commands = []
    for command in PARTS[part]:
        if options.small and not command.is_small:
            continue
        arguments = list(command.arguments)
        for name in command.takes:
            value = getattr(options, name)
            arguments += [] if value is None else [f"--{name}", str(value)]
        if options.small:
            arguments += _SMALL.get(arguments[0], "").split()
        commands.append(dataclasses.replace(command, arguments=tuple(arguments)))
    return commands


def _train(of: Iterable[str], more: str = "", name: str = "train_step-{}") -> list[Command]:
    """Lists the pretraining of some models; `--small` runs the first alone."""
    return [
        Command(
            name.format(model),
            tuple(f"{_STEPS} --model {model} {more}".split()),
            takes=("data", "tokenizer"),
            is_small=number == 0,
        )
        for number, model in enumerate(of)
    ]


def _beside(name: str, more: str, **others: object) -> Command:
    """Gives a command that pretrains the smallest model with the further options `more`."""
    (command,) = _train([_FIRST], more, f"train_step-{{}}-{name}")
    return dataclasses.replace(command, **others)  # type: ignore[arg-type]


def _plain(name: str, arguments: str, *needs: str, is_small: bool = True) -> Command:
    return Command(name, tuple(arguments.split()), needs=needs, is_small=is_small)


def _tests() -> list[Command]:
    """Gives a command for the tests that need a GPU, by their folders: test files in other folders
    may import packages that a machine without a network lacks, and then no test would run. Eight
    processes share the GPU; most of the first test of a kernel is its compilation."""
    found = Path("tests").rglob("*.py")
    folders = sorted({str(p.parent) for p in found if "pytest.mark.gpu" in p.read_text()})
    processes = ["--numprocesses", "8"] if importlib.util.find_spec("xdist") else []
    arguments = ("pytest", "-q", "-m", "gpu", *folders, *processes)
    return [Command("tests", arguments, writes_json=False, limit_s=300)]


def _sanitizer() -> list[Command]:
    """Lists runs of every kernel at small odd sizes: a plain run, which compiles the kernels, then
    runs under compute-sanitizer for accesses out of bounds, races in shared memory and reads of
    uninitialised memory."""
    once = Command("small_kernels", ("bench.kernels.small",), writes_json=False)
    limits_s = {"memcheck": 150.0, "racecheck": 120.0, "initcheck": 90.0}
    return [once] + [
        dataclasses.replace(
            once, name=f"sanitizer-{tool}", limit_s=limit_s, is_small=False,
            under=("compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool, limit_s in limits_s.items()
    ]  # fmt: skip


def _curve(method: str) -> list[Command]:
    """Gives the command for the learning curve of one method; --data is handed on to it."""
    takes = ("data", "tokenizer", "val_data", "tokens")
    arguments = f"bench.learning --methods {method}"
    return [Command(f"learning-{method}", tuple(arguments.split()), takes=takes)]


_ZERO = "--rows engine --ds_config zero0.json zero1.json zero2.json zero3.json"
_LOOPS = "--rows plain_loop,dense,expert_loop --accumulation 1 --micro_batch 32"
_SERVER = ("fastapi", "uvicorn", "httpx2", "prometheus_client")
PARTS: dict[str, list[Command]] = {
    "tests": _tests(),
    "sanitizer": _sanitizer(),
    "train": [*_train([_FIRST]), *_train([*DENSE[1:], *EXPERTS], _OURS)],
    "kernels": [_plain("kernels", "bench.kernels")],
    "experts": _train(EXPERTS, _LOOPS, "train_step-{}-experts"),
    "inference": [
        _plain("inference", f"bench.inference --batch 1,8,32 {_NOT_THEIRS} --clients none"),
        _plain("inference-256", "bench.inference --batch 256 --rounds 3 --rows minimind "
               "--clients none", is_small=False),
        _plain("inference-server", "bench.inference --batch 1 --rounds 1 --rows minimind",
               *_SERVER, is_small=False),
    ],
    "profile": _train([*DENSE, EXPERTS[0]], f"{_OURS} --profile --steps 3", "profile-{}"),
    "compare": [
        _beside("torch", _OURS, environment={"MINIMIND_KERNELS": "torch"}),
        _beside("transformers", "--rows engine,transformers", needs=("transformers",)),
        _beside("compiled", "--rows engine,compiled"),
        _beside("zero", _ZERO),
        *(_beside(f"micro{n}", f"{_OURS} --micro_batch {n}", is_small=False) for n in (32, 128)),
    ],
    # On their own sample data: --data is text.
    "stages": [
        _plain(f"train_step-{stage}", f"{_STEPS} --model {_FIRST} --stage {stage}")
        for stage in STAGES
        if stage != "pretrain"
    ],
    "scaling": [
        Command(f"scaling-{model}", ("bench.scaling", "--model", model),
                takes=("data", "tokenizer"), is_small=model == _FIRST)
        for model in DENSE[:2]
    ],
    "curve": _curve("default"),
    "curve_original": _curve("original"),
}  # fmt: skip
"""The parts of a GPU day, the most important first: correctness, then speed."""

CALLS = {
    "correctness": ("tests", "sanitizer"),
    "speed": ("train", "kernels"),
    "breadth": ("experts", "inference", "profile"),
    "learning": ("curve", "curve_original"),
    "others": ("compare", "stages"),
    "ranks": ("scaling",),
}
"""The parts of one call of ten minutes, by the name of the call; together these are all parts."""
