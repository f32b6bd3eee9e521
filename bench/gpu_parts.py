"""What each part of `python -m bench.gpu` runs: the commands, and how large they are."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.scaling import counts_here
from minimind.runtime.devices import find_device
from minimind.stages import STAGES

DENSE, EXPERTS = ("minimind2-small", "minimind2", "minimind3"), ("minimind2-moe", "minimind3-moe")
_OURS = ("--rows", "plain_loop,engine")
_TEST_PROCESSES = 8
"""They share the GPU; most of a kernel's first test is its compilation."""
_ORIGINAL_BATCH = "32"
"""Documents of a padded row's micro-batch, as the original trains with."""


_SANITIZER_LIMITS_S = {"memcheck": 150.0, "racecheck": 120.0, "initcheck": 90.0}
"""By tool: accesses out of bounds, races in shared memory, reads of what nobody wrote."""


@dataclass(frozen=True, slots=True)
class Command:
    """One process: `python -m <module> <arguments>`, with `--json` where it writes results, by
    itself or `under` another program."""

    name: str
    arguments: tuple[str, ...]
    writes_json: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """Packages without which it is left out, which is no failure."""
    under: tuple[str, ...] = ()
    """A program that watches it, with flags; without the program it is left out likewise."""
    limit_s: float = float("inf")
    """Beside that of its part."""

    @property
    def missing(self) -> list[str]:
        programs = [name for name in self.under[:1] if find_program(name) is None]
        return programs + [name for name in self.needs if importlib.util.find_spec(name) is None]


def find_program(name: str) -> str | None:
    """Where it is: on the path or, as most of CUDA's, beside its compiler alone."""
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin"
    return shutil.which(name) or shutil.which(name, path=str(toolkit))


def _tests(options: argparse.Namespace) -> list[Command]:
    chosen = ["tests/kernels/test_backend.py"] if options.small else ["-m", "gpu", *_gpu_folders()]
    if importlib.util.find_spec("xdist") and not options.small:
        chosen += ["--numprocesses", str(_TEST_PROCESSES)]
    return [Command("tests", ("pytest", "-q", *chosen), writes_json=False, limit_s=300)]


def _gpu_folders() -> list[str]:
    """Those with tests that want a GPU: the others' modules may import packages that a machine
    without a network lacks, and then no test of any would run."""
    found = Path("tests").rglob("*.py")
    return sorted({str(path.parent) for path in found if "pytest.mark.gpu" in path.read_text()})


def _sanitizer(options: argparse.Namespace) -> list[Command]:
    """Every kernel at small odd sizes: by itself, which compiles them, then watched."""
    small = ("bench.kernels.small",)
    commands = [Command("small_kernels", small, writes_json=False)]
    if options.small:
        return commands
    return commands + [
        Command(
            f"sanitizer-{tool}", small, writes_json=False, limit_s=limit_s,
            under=("compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool, limit_s in _SANITIZER_LIMITS_S.items()
    ]  # fmt: skip


def _kernels(options: argparse.Namespace) -> list[Command]:
    sizes = ("--tokens", "256") if options.small else ()
    return [Command("kernels", ("bench.kernels", *sizes))]


def _train(options: argparse.Namespace) -> list[Command]:
    """The engine and the bare loop of every preset, the smallest beside the original too."""
    first, *others = _models(options, DENSE + EXPERTS)
    return [
        _train_step(options, f"train_step-{first}", first),
        *(_train_step(options, f"train_step-{model}", model, *_OURS) for model in others),
    ]


def _compare(options: argparse.Namespace) -> list[Command]:
    """The smallest preset with the kernels off, beside what others make of it, with other
    micro-batches and under other ZeRO stages."""
    (first,) = _models(options, DENSE[:1])
    commands = [
        _train_step(options, f"train_step-{first}-torch", first, *_OURS,
                    environment={"MINIMIND_KERNELS": "torch"}),
        _train_step(options, f"train_step-{first}-transformers", first,
                    "--rows", "engine,transformers", needs=("transformers",)),
        _train_step(options, f"train_step-{first}-compiled", first, "--rows", "engine,compiled"),
        _train_step(options, f"train_step-{first}-zero", first, "--rows", "engine",
                    "--ds_config", "zero0.json", "zero1.json", "zero2.json", "zero3.json"),
    ]  # fmt: skip
    if not options.small:
        commands += [
            _train_step(options, f"train_step-{first}-micro{n}", first, *_OURS, "--micro_batch", n)
            for n in ("32", "128")
        ]
    return commands


def _experts(options: argparse.Namespace) -> list[Command]:
    """Mixtures of experts beside their dense equals."""
    sizes = ("--micro_batch", "32")
    if options.small:
        sizes = ("--set", "num_hidden_layers=1", "--steps", "2", "--warmup", "1",
                 "--seq_len", "64", "--micro_batch", "2")  # fmt: skip
    models = EXPERTS[1:] if options.small else EXPERTS
    return [
        Command(f"moe_step-{model}", ("bench.moe_step", "--model", model, *sizes))
        for model in models
    ]


def _stages(options: argparse.Namespace) -> list[Command]:
    """Every other stage beside what it is judged by, on its own sample data: --data is text."""
    (model,) = _models(options, DENSE[:1])
    stages = [stage for stage in STAGES if stage != "pretrain"]
    return [
        _train_step(options, f"train_step-{stage}", model, "--stage", stage, reads_text=False)
        for stage in stages
    ]


def _profile(options: argparse.Namespace) -> list[Command]:
    steps = () if options.small else ("--steps", "3")
    return [
        _train_step(options, f"profile-{model}", model, *_OURS, "--profile", *steps)
        for model in _models(options, DENSE + EXPERTS[:1])
    ]


def _inference(options: argparse.Namespace) -> list[Command]:
    module, alone, ours = "bench.inference", ("--clients", "none"), ("--rows", "minimind")
    rows = ours if importlib.util.find_spec("transformers") is None else ()
    if options.small:
        sizes = ("--model", "tiny", "--batch", "1,2", "--prompt", "8", "--new", "8")
        return [Command("inference", (module, *sizes, "--rounds", "2", *rows, *alone))]
    return [
        Command("inference", (module, "--batch", "1,8,32", *rows, *alone)),
        Command("inference-256", (module, "--batch", "256", "--rounds", "3", *ours, *alone)),
        Command("inference-server", (module, "--batch", "1", "--rounds", "1", *ours),
                needs=("fastapi", "uvicorn", "httpx2", "prometheus_client")),
    ]  # fmt: skip


def _scaling(options: argparse.Namespace) -> list[Command]:
    """As many GPUs as are here, doubled each time; with one alone there is nothing to scale."""
    if options.small:
        sizes = ("--model", "tiny", "--seq_len", "64", "--micro_batch", "2", "--steps", "1")
        return [
            Command("scaling", ("bench.scaling", "--num_gpus", "1,2", "--threads", "1", *sizes))
        ]
    counts = counts_here(find_device())
    if len(counts) < 2:
        return []
    numbers = ("--num_gpus", ",".join(map(str, counts)), *_data(options))
    return [
        Command(f"scaling-{model}", ("bench.scaling", "--model", model, *numbers))
        for model in DENSE[:2]
    ]


def _curve(row: str) -> Callable[[argparse.Namespace], list[Command]]:
    """Minutes of training by one row: --data is worth giving."""

    def commands(options: argparse.Namespace) -> list[Command]:
        sizes = ("--original_batch", _ORIGINAL_BATCH, "--accumulation", "1",
                 "--minutes", str(options.minutes))  # fmt: skip
        if options.small:
            sizes = ("--model", "tiny", "--minutes", "0.02", "--points", "2")
        held_out = ("--val_data", options.val_data) if options.val_data else ()
        arguments = ("bench.loss_curves", "--rows", row, *sizes, *_data(options), *held_out)
        return [Command(f"loss_curves-{row}", arguments)]

    return commands


def _models(options: argparse.Namespace, models: Sequence[str]) -> Sequence[str]:
    return ("tiny",) if options.small else models


def _data(options: argparse.Namespace, *, reads_text: bool = True) -> tuple[str, ...]:
    data = ("--data", options.data) if options.data and reads_text else ()
    return data + (("--tokenizer", options.tokenizer) if options.tokenizer else ())


def _train_step(
    options: argparse.Namespace, name: str, model: str, *more: str,
    environment: Mapping[str, str] | None = None, reads_text: bool = True,
    needs: tuple[str, ...] = (),
) -> Command:  # fmt: skip
    sizes = ("--accumulation", "2", "--original_batch", _ORIGINAL_BATCH)
    if options.small:
        sizes = ("--steps", "2", "--warmup", "1", "--accumulation", "1", "--seq_len", "64",
                 "--micro_batch", "2")  # fmt: skip
    data = _data(options, reads_text=reads_text)
    arguments = ("bench.train_step", "--model", model, *sizes, *data, *more)
    return Command(name, arguments, environment=environment or {}, needs=needs)


PARTS: dict[str, Callable[[argparse.Namespace], list[Command]]] = {
    "tests": _tests,
    "sanitizer": _sanitizer,
    "train": _train,
    "kernels": _kernels,
    "experts": _experts,
    "inference": _inference,
    "profile": _profile,
    "compare": _compare,
    "stages": _stages,
    "scaling": _scaling,
    "curve": _curve("engine"),
    "curve_original": _curve("original"),
}
"""What is wanted most comes first: whether it is correct, then how quick."""

CALLS = {
    "correctness": ("tests", "sanitizer"),
    "speed": ("train", "kernels"),
    "breadth": ("experts", "inference", "profile"),
    "learning": ("curve", "curve_original"),
    "others": ("compare", "stages"),
    "ranks": ("scaling",),
}
"""Parts that are meant to fit one call of ten minutes, by name; between them all parts."""
