"""Generation by our engine and by `transformers` in turns: `python -m bench.inference --json FILE`.

All rows load the same random weights from one Hugging Face folder, in the same dtype, and continue
the same prompts greedily to the same length. A round is one batch through each row, in random
order. Then launch/serve.py answers clients on the same machine.

The row "held" is our engine with every sequence held to a JSON schema by a mask.

Exit status: 0 done, 1 a row broke, 2 bad usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import harness
from bench.inference_rows import ROWS, GenerationTime, InferenceSpec, Prompts, ServedRow
from bench.turns import pass_turn
from bench.workers import Worker
from minimind.config.model import ModelConfig, load_model_config
from minimind.errors import ConfigError
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.runtime.devices import Device, find_device, limit_threads
from minimind.runtime.logging import set_up_logging
from minimind.samples.text import load_sample_tokenizer

_SERVER_SLOTS = 32


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: measure(options))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.inference",
        description="Measures generation: time to first token, tokens/s, memory.",
        allow_abbrev=False,
    )

    def add(name: str, default: Any, about: str, **more: Any) -> None:
        text = f"{about} (default: {default})"
        parser.add_argument(f"--{name}", default=default, help=text, **more)

    number: dict[str, Any] = {"type": _whole_number, "metavar": "N"}
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results file")
    add("model", "minimind2-small", "preset or JSON file", metavar="NAME")
    add("batch", "1,8,32", "prompts at once", metavar="A,B")
    add("prompt", 128, "tokens of a prompt", **number)
    add("new", 256, "tokens made of each", **number)
    add("rows", ",".join(ROWS), "which rows to measure", metavar="A,B")
    add("rounds", 5, "timed batches of each row", **number)
    add("clients", "1,8,64", "of the server at once; none: no server", metavar="A,B")
    add("calls", 2, "timed calls of each client", **number)
    add("precision", "auto", "auto: bf16 where the device has it", choices=("auto", "bf16", "fp32"))
    add("seed", 0, "of weights, prompts and turns", type=int, metavar="N")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Raises MiniMindError for what the user can mend, WorkerError where a row breaks."""
    names = [name.strip() for name in options.rows.split(",")]
    if unknown := [name for name in names if name not in ROWS]:
        raise ConfigError(f"--rows {unknown[0]}: no such row; rows: {', '.join(ROWS)}")
    if options.new < 3:
        raise ConfigError(f"--new {options.new}: give at least 3, to tell decoding from the rest")
    batches = _numbers("--batch", options.batch)
    clients = [] if options.clients == "none" else _numbers("--clients", options.clients)
    for package in ("fastapi", "httpx2") if clients else ():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--clients needs {package}: pip install '.[dev]', or --clients none")
    harness.check_writable(options.json)
    device, config = find_device(), load_model_config(options.model)
    limit_threads(1)
    dtype = _dtype(options.precision, device)
    machine = harness.describe_machine(device)
    print(f"{machine['device']}, {machine['cores']} cores, load {machine['load_average'][0]}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        _save_random_model(Path(folder), config, options.seed)
        # Written after each batch: a run that is cut off loses only what was under way.
        for batch in batches:
            specs = [_spec(name, folder, dtype, device, batch, options) for name in names]
            rows += _measure_batch(specs, options, config)
            harness.write_results(options.json, "inference", machine, vars(options), rows)
        served = _measure_server(folder, dtype, device, clients, options)
        harness.write_results(options.json, "inference", machine, vars(options), rows + served)
    print(f"{format_rows(rows)}\nwritten: {options.json}")


def _spec(
    name: str,
    folder: str,
    dtype: torch.dtype,
    device: Device,
    batch: int,
    options: argparse.Namespace,
) -> InferenceSpec:
    return InferenceSpec(
        kind=name,
        folder=Path(folder),
        dtype=dtype,
        device=device.torch_device,
        batch=batch,
        prompt_tokens=options.prompt,
        new_tokens=options.new,
    )


def _measure_server(
    folder: str,
    dtype: torch.dtype,
    device: Device,
    clients: Sequence[int],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    if not clients:
        return []
    from bench import server_load

    spec = _spec("server", folder, dtype, device, _SERVER_SLOTS, options)
    with server_load.running_server(spec) as (url, process):
        rows = [
            {"model": options.model}
            | server_load.measure_clients(
                url, process, spec, number, number * options.calls, options.seed
            )
            for number in tqdm(clients, desc="server", disable=None)
        ]
    print(server_load.format_rows(rows))
    return rows


def _measure_batch(
    specs: Sequence[InferenceSpec], options: argparse.Namespace, config: ModelConfig
) -> list[dict[str, Any]]:
    generator = random.Random(options.seed)

    def prompts() -> Prompts:
        ids = range(config.vocab_size)
        return [generator.choices(ids, k=options.prompt) for _ in range(specs[0].batch)]

    with _started(specs) as workers:
        built = [worker.call("build") for worker in workers]
        warm_up = prompts()
        for worker in workers:
            worker.call("generate", warm_up)
            worker.call("start_timing")
        times: list[list[GenerationTime]] = [[] for _ in workers]
        for _ in tqdm(range(options.rounds), desc=f"batch {specs[0].batch}", disable=None):
            given = prompts()
            pass_turn()
            for turn in generator.sample(range(len(workers)), len(workers)):
                times[turn].append(workers[turn].call("generate", given))
        measured = [worker.call("measure", warm_up) for worker in workers]
    rows = [
        _build_row(spec, options.model, of_row) | more | memory
        for spec, of_row, more, memory in zip(specs, times, built, measured, strict=True)
    ]
    by_kind = {spec.kind: of_row for spec, of_row in zip(specs, times, strict=True)}
    for row, of_row in zip(rows, times, strict=True):
        row |= _compare(of_row, by_kind.get("transformers"))
        if row["name"] == "held":
            # No share of like sequences, but the price of the mask.
            found = _ratio(of_row, by_kind["minimind"]) if "minimind" in by_kind else None
            row |= {"same_sequences": None, "ratio_to_free": found and found["median"]}
            row["ratio_to_free_error"] = found and found["standard_error"]
    return rows


def _build_row(spec: InferenceSpec, model: str, times: Sequence[GenerationTime]) -> dict[str, Any]:
    decode = harness.summarize([one.decode_tokens_per_s for one in times])
    tokens = spec.batch * spec.new_tokens
    return {
        "name": spec.kind,
        "model": model,
        "precision": str(spec.dtype).removeprefix("torch."),
        "batch": spec.batch,
        "prompt_tokens": spec.prompt_tokens,
        "new_tokens": spec.new_tokens,
        "useful_tokens_per_s": decode["median"],
        "useful_tokens_per_s_p10": decode["p10"],
        "useful_tokens_per_s_p90": decode["p90"],
        "first_token_s": harness.summarize([one.first_token_s for one in times]),
        "whole_tokens_per_s": harness.summarize([tokens / one.total_s for one in times]),
    }


def _compare(
    times: Sequence[GenerationTime], base: Sequence[GenerationTime] | None
) -> dict[str, Any]:
    """With the row of `transformers`: the ratio of decoding speeds taken in turns, and the share of
    sequences with the same tokens to the end (near-ties decide the others, more in bf16)."""
    if base is None:
        return dict.fromkeys(("ratio_to_transformers", "ratio_error", "same_sequences"))
    ratio = _ratio(times, base)
    pairs = [
        ours == theirs
        for one, other in zip(times, base, strict=True)
        for ours, theirs in zip(one.ids, other.ids, strict=True)
    ]
    return {
        "ratio_to_transformers": ratio["median"],
        "ratio_error": ratio["standard_error"],
        "same_sequences": sum(pairs) / len(pairs),
    }


def _ratio(times: Sequence[GenerationTime], base: Sequence[GenerationTime]) -> dict[str, Any]:
    return harness.paired_ratio(
        *([one.decode_tokens_per_s for one in row] for row in (times, base))
    )


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table a reader looks at first."""
    header = (
        "row", "batch", "precision", "first token ms", "decode tokens/s", "p10–p90",
        "× transformers", "× free", "same", "peak MB", "resident MB",
    )  # fmt: skip
    return harness.format_table(header, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    ratio, same, resident = (
        row[name] for name in ("ratio_to_transformers", "same_sequences", "peak_resident_bytes")
    )
    return [
        f"{row['model']} {row['name']}",
        str(row["batch"]),
        row["precision"],
        f"{1e3 * row['first_token_s']['median']:,.0f}",
        f"{row['useful_tokens_per_s']:,.0f}",
        f"{row['useful_tokens_per_s_p10']:,.0f}–{row['useful_tokens_per_s_p90']:,.0f}",
        "–" if ratio is None else f"{ratio:.2f} ± {row['ratio_error']:.2f}",
        f"{row['ratio_to_free']:.3f} ± {row['ratio_to_free_error']:.3f}"
        if row.get("ratio_to_free")
        else "–",
        "–" if same is None else f"{same:.0%}",
        f"{row['peak_bytes'] / 1e6:,.0f}",
        "not measured" if resident is None else f"{resident / 1e6:,.0f}",
    ]


def _save_random_model(folder: Path, config: ModelConfig, seed: int) -> None:
    model = Transformer(config)
    model.init_weights(seed)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_hf_folder(folder, config, weights, torch.float32)
    load_sample_tokenizer().save(folder)


def _dtype(precision: str, device: Device) -> torch.dtype:
    if precision == "auto" and device.precision != "bf16":
        print(f"fp32: {device.why_not_bf16}")
        return torch.float32
    return torch.float32 if precision == "fp32" else torch.bfloat16


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [_whole_number(part) for part in text.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        raise ConfigError(f"{flag} {text}: give whole numbers above 0, as in 1,8,32") from None


def _whole_number(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


@contextlib.contextmanager
def _started(specs: Sequence[InferenceSpec]) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for spec in specs:
            workers.append(Worker(spec.kind, ServedRow, spec))
        yield workers
    finally:
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    sys.exit(main())
