"""Everything that wants a GPU, in parts that end within minutes: `python -m bench.gpu`.

Each part is a few commands; each command writes its own results file as it ends, so that a part
that is cut off loses only what was under way. `--small` runs the same commands at sizes for a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.harness import describe_machine, results_folder
from bench.stage_rows import ROWS
from minimind.runtime.devices import find_device

LIMIT_S = 480
"""Of one part."""


@dataclass(frozen=True, slots=True)
class Command:
    """One process: `python -m <module> <arguments>`, with `--json` where it writes results."""

    name: str
    arguments: tuple[str, ...]
    writes_json: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


def _tests(options: argparse.Namespace) -> list[Command]:
    chosen = ("tests/kernels/test_backend.py",) if options.small else ("-m", "gpu")
    return [Command("tests", ("pytest", "-q", *chosen), writes_json=False)]


def _kernels(options: argparse.Namespace) -> list[Command]:
    sizes = ("--tokens", "256") if options.small else ()
    return [Command("kernels", ("bench.kernels", *sizes))]


def _train(options: argparse.Namespace) -> list[Command]:
    """All rows of the smallest preset, the engine and the bare loop of the others; then the
    smallest beside what others make of it, with the kernels off, with other micro-batches, and
    under other ZeRO stages."""
    models = ["tiny"] if options.small else ["minimind2-small", "minimind2", "minimind3"]
    first, *others = models
    ours = ("--rows", "plain_loop,engine")
    commands = [_train_step(options, f"train_step-{first}", first)]
    commands += [_train_step(options, f"train_step-{m}", m, *ours) for m in others]
    commands += [
        _train_step(options, f"train_step-{first}-others", first,
                    "--rows", "engine,compiled,transformers"),
        _train_step(options, f"train_step-{first}-torch", first, *ours,
                    environment={"MINIMIND_KERNELS": "torch"}),
        _train_step(options, f"train_step-{first}-zero", first, "--rows", "engine",
                    "--ds_config", "zero0.json", "zero1.json", "zero2.json", "zero3.json"),
    ]  # fmt: skip
    if not options.small:
        commands += [
            _train_step(options, f"train_step-{first}-micro{n}", first, *ours, "--micro_batch", n)
            for n in ("32", "128")
        ]
    return commands


def _experts(options: argparse.Namespace) -> list[Command]:
    """Mixtures of experts in the engine, and beside their dense equals."""
    if options.small:
        sizes = ("--set", "num_hidden_layers=1", "--steps", "2", "--warmup", "1",
                 "--seq_len", "64", "--micro_batch", "2")  # fmt: skip
        return [Command("moe_step", ("bench.moe_step", "--model", "minimind3-moe", *sizes))]
    models = ("minimind2-moe", "minimind3-moe")
    rows = ("--rows", "plain_loop,engine")
    return [
        *(_train_step(options, f"train_step-{model}", model, *rows) for model in models),
        *(Command(f"moe_step-{model}", ("bench.moe_step", "--model", model)) for model in models),
    ]


def _curve(row: str) -> Callable[[argparse.Namespace], list[Command]]:
    """Five minutes of training by one row: --data is worth giving."""

    def commands(options: argparse.Namespace) -> list[Command]:
        data = ("--data", options.data) if options.data else ()
        data += ("--val_data", options.val_data) if options.val_data else ()
        tokenizer = ("--tokenizer", options.tokenizer) if options.tokenizer else ()
        sizes = ("--original_batch", "32", "--accumulation", "1")
        if options.small:
            sizes = ("--model", "tiny", "--minutes", "0.02", "--points", "2")
        arguments = ("bench.loss_curves", "--rows", row, *sizes, *data, *tokenizer)
        return [Command(f"loss_curves-{row}", arguments)]

    return commands


def _stages(options: argparse.Namespace) -> list[Command]:
    """Every other stage beside what it is judged by, on its own sample data: --data is text."""
    model = "tiny" if options.small else "minimind2-small"
    stages = [stage for stage in ROWS if stage != "pretrain"]
    return [
        _train_step(options, f"train_step-{stage}", model, "--stage", stage, reads_text=False)
        for stage in stages
    ]


def _profile(options: argparse.Namespace) -> list[Command]:
    models = ["tiny"] if options.small else ["minimind2-small", "minimind2", "minimind3"]
    rows = ("--rows", "plain_loop,engine", "--profile")
    return [_train_step(options, f"profile-{model}", model, *rows) for model in models]


def _inference(options: argparse.Namespace) -> list[Command]:
    """The server last: it wants packages that a machine without a network may lack."""
    module, alone = "bench.inference", ("--clients", "none")
    ours = ("--rows", "minimind")
    if options.small:
        sizes = ("--model", "tiny", "--batch", "1,2", "--prompt", "8", "--new", "8")
        return [Command("inference", (module, *sizes, "--rounds", "2", *alone))]
    return [
        Command("inference", (module, "--batch", "1,8,32", *alone)),
        Command("inference-256", (module, "--batch", "256", "--rounds", "3", *ours, *alone)),
        Command("inference-server", (module, "--batch", "1", "--rounds", "1", *ours)),
    ]


def _scaling(options: argparse.Namespace) -> list[Command]:
    """As many GPUs as are here, doubled each time; with one alone there is nothing to scale."""
    if options.small:
        sizes = ("--model", "tiny", "--seq_len", "64", "--micro_batch", "2", "--steps", "1")
        return [
            Command("scaling", ("bench.scaling", "--num_gpus", "1,2", "--threads", "1", *sizes))
        ]
    here = torch.cuda.device_count()
    counts = [str(n) for n in (1, 2, 4, 8) if n <= here]
    if len(counts) < 2:
        return []
    data = ("--data", options.data) if options.data else ()
    tokenizer = ("--tokenizer", options.tokenizer) if options.tokenizer else ()
    return [
        Command(
            f"scaling-{model}",
            ("bench.scaling", "--num_gpus", ",".join(counts), "--model", model, *data, *tokenizer),
        )
        for model in ("minimind2-small", "minimind2")
    ]


def _train_step(
    options: argparse.Namespace, name: str, model: str, *more: str,
    environment: Mapping[str, str] | None = None, reads_text: bool = True,
) -> Command:  # fmt: skip
    sizes = ("--steps", "2", "--warmup", "1", "--accumulation", "1", "--seq_len", "64",
             "--micro_batch", "2") if options.small else ("--accumulation", "2")  # fmt: skip
    data = ("--data", options.data) if options.data and reads_text else ()
    tokenizer = ("--tokenizer", options.tokenizer) if options.tokenizer else ()
    arguments = ("bench.train_step", "--model", model, *sizes, *data, *tokenizer, *more)
    return Command(name, arguments, environment=environment or {})


PARTS: dict[str, Callable[[argparse.Namespace], list[Command]]] = {
    "tests": _tests,
    "kernels": _kernels,
    "train": _train,
    "experts": _experts,
    "stages": _stages,
    "profile": _profile,
    "inference": _inference,
    "scaling": _scaling,
    "curve": _curve("engine"),
    "curve_original": _curve("original"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every command ended well, else 1."""
    options = build_parser().parse_args(argv)
    machine = describe_machine(find_device())
    folder = options.output or results_folder(machine)
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for part in options.parts:
        end = time.monotonic() + LIMIT_S
        for command in PARTS[part](options):
            done.append({"part": part, **run_command(command, folder, end - time.monotonic())})
            text = json.dumps({"machine": machine, "commands": done}, indent=1) + "\n"
            (folder / "gpu.json").write_text(text, encoding="utf-8")
    for row in done:
        print(f"{row['part']:8} {row['name']:40} {row['seconds']:7.1f} s  {row['result']}")
    return int(any(row["result"] != "ok" for row in done))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--parts", type=_parse_parts, default=list(PARTS), metavar="A,B",
        help=f"some of {','.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder (default: bench/results/<device>)")
    parser.add_argument("--data", help="JSON lines of text (default: the embedded sample data)")
    parser.add_argument("--val_data", help="held-out JSON lines, for the curves")
    parser.add_argument("--tokenizer", help="its folder (default: the sample data's own)")
    parser.add_argument("--small", action="store_true", help="a rehearsal at a CPU's sizes")
    return parser


def _parse_parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: the parts are {', '.join(PARTS)}")
    return parts


def run_command(command: Command, folder: Path, limit_s: float) -> dict[str, object]:
    """Runs it with its output on the console and in a log beside its results."""
    start = time.monotonic()
    arguments = [sys.executable, "-m", *command.arguments]
    if command.writes_json:
        arguments += ["--json", str(folder / f"{command.name}.json")]
    print(f"--- {command.name}: {' '.join(command.arguments)}", flush=True)
    result = "no time left in this part"
    if limit_s > 0:
        log = folder / f"{command.name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                arguments, stdout=file, stderr=subprocess.STDOUT,
                env=os.environ | dict(command.environment), start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(limit_s)
                result = "ok" if status == 0 else f"exit status {status}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                result = f"stopped after {limit_s:.0f} s"
        print(log.read_text(encoding="utf-8", errors="replace")[-6000:], flush=True)
    return {"name": command.name, "result": result, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    sys.exit(main())
