"""Measures generation by our engine and by `transformers` in turns: `python -m bench.inference
--json FILE`.

All rows load the same random weights from one Hugging Face folder, in the same dtype, and continue
the same prompts greedily to the same length. A round is one batch through each row, in random
order. Then the server answers clients on the same machine.

The row "held" is our engine with every sequence constrained to a JSON schema by a mask. The row
"llama.cpp" needs llama-cpp-python and is measured where --rows names it.

Exit status: 0 done, 1 a row broke, 2 bad usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import harness
from bench.harness import Columns, Row, shown, with_error
from bench.inference import llama_cpp_row
from bench.inference.rows import (
    ROWS,
    USUAL_ROWS,
    GenerationTime,
    InferenceSpec,
    Prompts,
    ServedRow,
)
from bench.program import NUMBER, Options, parse_names, parse_numbers, run_program
from bench.workers import ask_all, started, take_turns
from minimind.config.model import ModelConfig, load_model_config
from minimind.errors import ConfigError
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.runtime.devices import Device, find_device, limit_threads
from minimind.samples.text import load_sample_tokenizer

_SERVER_SLOTS = 32


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), measure, argv)


def build_parser() -> Options:
    parser = Options("inference", __doc__)
    add = parser.add
    add("model", "minimind2-small", "preset or JSON file", metavar="NAME")
    add("batch", "1,8,32", "prompts at once", metavar="A,B")
    add("prompt", 128, "tokens of a prompt", **NUMBER)
    add("new", 256, "tokens made of each", **NUMBER)
    add("rows", ",".join(USUAL_ROWS), f"of {', '.join(ROWS)}", metavar="A,B")
    add("rounds", 5, "timed batches of each row", **NUMBER)
    add("clients", "1,8,64", "of the server at once; none: no server", metavar="A,B")
    add("calls", 2, "timed calls of each client", **NUMBER)
    add("precision", "auto", "auto: bf16 where the device has it", choices=("auto", "bf16", "fp32"))
    add("seed", 0, "of weights, prompts and turns", type=int, metavar="N")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Measures every row. Raises MiniMindError for errors that the user can correct, WorkerError
    where a row breaks."""
    names = parse_names(options.rows, "--rows", list(ROWS))
    if options.new < 3:
        raise ConfigError(f"--new {options.new}: give at least 3, to tell decoding from the rest")
    batches = parse_numbers(options.batch, "--batch")
    clients = [] if options.clients == "none" else parse_numbers(options.clients, "--clients")
    for package in ("fastapi", "httpx2") if clients else ():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--clients needs {package}: pip install '.[dev]', or --clients none")
    device, config = find_device(), load_model_config(options.model)
    limit_threads(1)
    machine = harness.describe_machine(device)
    print(f"{machine['device']}, {machine['cores']} cores, load {machine['load_average'][0]}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        _save_random_model(Path(folder), config, options.seed)
        dtype = _dtype(options.precision, device)
        if llama_cpp_row.NAME in names:
            llama_cpp_row.prepare(Path(folder), dtype, device.torch_device)
        build_spec = partial(
            InferenceSpec,
            folder=Path(folder),
            dtype=dtype,
            device=device.torch_device,
            prompt_tokens=options.prompt,
            new_tokens=options.new,
        )
        # Written after each batch size: a run that is cut off loses only the measurement under way.
        for batch in batches:
            specs = [build_spec(name=name, batch=batch) for name in names]
            rows += _measure_batch(specs, options, config)
            harness.write_results(options.json, "inference", machine, vars(options), rows)
        served = []
        if clients:
            served = _measure_server(
                build_spec(name="server", batch=_SERVER_SLOTS), clients, options
            )
        harness.write_results(options.json, "inference", machine, vars(options), rows + served)
    print(f"{format_rows(rows)}\nwritten: {options.json}")


def _measure_server(
    spec: InferenceSpec, clients: Sequence[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    from bench.inference import server

    with server.running_server(spec) as (url, process):
        rows = [
            {"model": options.model}
            | server.measure_clients(
                url, process, spec, number, number * options.calls, options.seed
            )
            for number in tqdm(clients, desc="server", disable=None)
        ]
    print(server.format_rows(rows))
    return rows


def _measure_batch(
    specs: Sequence[InferenceSpec], options: argparse.Namespace, config: ModelConfig
) -> list[dict[str, Any]]:
    generator, batch = random.Random(options.seed), specs[0].batch

    def prompts() -> Prompts:
        return [generator.choices(range(config.vocab_size), k=options.prompt) for _ in range(batch)]

    with started(ServedRow, specs) as workers:
        built = [worker.call("build") for worker in workers]
        warm_up = prompts()
        for worker in workers:
            worker.call("generate", warm_up)
        ask_all(workers, "start_timing")
        rounds = [prompts() for _ in range(options.rounds)]
        times = take_turns(workers, "generate", rounds, options.seed, f"batch {batch}")
        measured = [worker.call("measure", warm_up) for worker in workers]
    of_name = {spec.name: of_row for spec, of_row in zip(specs, times, strict=True)}
    rows = []
    for spec, own, more, memory in zip(specs, times, built, measured, strict=True):
        row = _build_row(spec, options.model, own) | more | memory
        row |= _compare(own, of_name.get("transformers"))
        llama_cpp = of_name.get(llama_cpp_row.NAME)
        if llama_cpp and spec.name != llama_cpp_row.NAME:
            row |= _ratio("ratio_to_llama_cpp", own, llama_cpp)
            row |= _ratio("first_token_to_llama_cpp", own, llama_cpp, of="first_token_s")
        if spec.name == "held":
            # The share of equal sequences means nothing here; the cost of the mask does.
            row["same_sequences"] = None
            row |= _ratio("ratio_to_free", own, of_name.get("minimind"))
        rows.append(row)
    return rows


def _build_row(spec: InferenceSpec, model: str, times: Sequence[GenerationTime]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "model": model,
        "precision": str(spec.dtype).removeprefix("torch."),
        "batch": spec.batch,
        "prompt_tokens": spec.prompt_tokens,
        "new_tokens": spec.new_tokens,
        **harness.rates("useful_tokens_per_s", [one.decode_tokens_per_s for one in times]),
        "first_token_s": harness.summarize([one.first_token_s for one in times]),
    }


def _compare(
    times: Sequence[GenerationTime], base: Sequence[GenerationTime] | None
) -> dict[str, Any]:
    """Compares with the row of `transformers`: the ratio of decoding speeds, and the share of
    sequences with the same tokens to the end (the others part where two tokens are almost equally
    likely, more often in bf16)."""
    ratio = _ratio("ratio_to_transformers", times, base, error="ratio_error")
    if base is None:
        return ratio | {"same_sequences": None}
    pairs = [
        ours == theirs
        for one, other in zip(times, base, strict=True)
        for ours, theirs in zip(one.ids, other.ids, strict=True)
    ]
    return ratio | {"same_sequences": sum(pairs) / len(pairs)}


def _ratio(
    name: str,
    times: Sequence[GenerationTime],
    base: Sequence[GenerationTime] | None,
    *,
    of: str = "decode_tokens_per_s",
    error: str | None = None,
) -> dict[str, float | None]:
    """Gives the fields for the ratio of a row's figures to another row's, measured in turns, and
    for its error; None where the other row was not measured."""
    names = name, error or f"{name}_error"
    if base is None:
        return dict.fromkeys(names)
    found = harness.paired_ratio(*([getattr(one, of) for one in row] for row in (times, base)))
    return dict(zip(names, (found["median"], found["standard_error"]), strict=True))


def format_rows(rows: Sequence[Row]) -> str:
    """Makes the table of the rows without a server."""

    def ratio(name: str, error: str, digits: int, row: Row) -> str:
        return with_error(row.get(name), row.get(error), digits, missing="–")

    columns: Columns = {
        "row": lambda row: f"{row['model']} {row['name']}",
        "batch": lambda row: str(row["batch"]),
        "precision": lambda row: row["precision"],
        "first token ms": lambda row: shown(1e3 * row["first_token_s"]["median"]),
        "decode tokens/s": lambda row: shown(row["useful_tokens_per_s"]),
        "p10–p90": harness.rate_range,
        "× transformers": partial(ratio, "ratio_to_transformers", "ratio_error", 2),
        "× llama.cpp": partial(ratio, "ratio_to_llama_cpp", "ratio_to_llama_cpp_error", 2),
        "× free": partial(ratio, "ratio_to_free", "ratio_to_free_error", 3),
        "same": lambda row: shown(row["same_sequences"], ".0%", missing="–"),
        "peak MB": lambda row: shown(row["peak_bytes"], per=1e6),
        "resident MB": lambda row: shown(row["peak_resident_bytes"], per=1e6),
    }
    return harness.format_rows(rows, columns)


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


if __name__ == "__main__":
    sys.exit(main())
