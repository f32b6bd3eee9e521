"""What a rank will hold, by component, before a run: `python -m bench.memory --model M`.

The prediction is that of `launch/train.py --dry_run`, for as many DeepSpeed JSONs as are given and
for the documents that bench.train_step measures with; `--measure` measures too, on one rank.

Exit status: 0 done, 1 a measurement is further from its prediction than --within, 2 bad usage.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import harness
from bench.documents import PackedSteps, draw_documents
from minimind.config.recipe import default_sizes
from minimind.data.sample_files import sample_data_path
from minimind.data.sample_text import load_sample_tokenizer
from minimind.data.token_cache import build_token_cache
from minimind.engine.memory_prediction import MemoryPrediction
from minimind.errors import ConfigError
from minimind.run.describe import predict_memory_of
from minimind.run.resolve import ResolvedRun
from minimind.run.run import Run, parse_arguments
from minimind.runtime.devices import Device, find_device
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import Ranks

_WARMUP, _STEPS, _DOCUMENT_TOKENS, _SEED = 1, 2, 340, 0
"""Of the measurement: bench.train_step's defaults, but for the number of steps."""
_PARTS = (
    "weights",
    "helpers",
    "masters",
    "optimizer",
    "gradients",
    "buckets",
    "activations",
    "logits_chunk",
    "attention_mask",
    "batches",
)


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: check(options))


def check(options: argparse.Namespace) -> int:
    """Prints the predictions; 1 where one lies further from what was measured than `--within`."""
    if options.json:
        harness.check_writable(options.json)
    rows = list_rows(options)
    print(format_rows(rows))
    if options.json:
        machine = harness.describe_machine(find_device())
        harness.write_results(options.json, "memory", machine, vars(options), rows)
    apart = [row["predicted_to_measured"] for row in rows if row["predicted_to_measured"]]
    return int(any(abs(ratio - 1) > options.within for ratio in apart))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    add = parser.add_argument
    add("--model", default="minimind2-small", help="preset or JSON file (default: %(default)s)")
    add(
        "--ds_config", nargs="+", default=["zero2.json"], metavar="JSON", help="default: zero2.json"
    )
    add("--num_gpus", type=int, default=1, metavar="N", help="ranks (default: 1)")
    add("--seq_len", type=int, metavar="N", help="tokens of a row (default: the preset's)")
    add("--micro_batch", type=int, metavar="N", help="rows (default: the preset's)")
    add("--accumulation", type=int, default=4, metavar="N", help="micro-batches (default: 4)")
    add("--set", default=[], action="append", metavar="KEY=VALUE", help="as for launch/train.py")
    add("--measure", action="store_true", help="on one rank, beside the prediction")
    add("--within", type=float, default=0.05, help="share a prediction may be off (default: 0.05)")
    add("--json", type=Path, metavar="FILE", help="results file")
    return parser


def list_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each JSON. Raises MiniMindError."""
    if options.measure and options.num_gpus > 1:
        raise ConfigError("--measure measures one rank; bench.scaling measures several")
    device = find_device()
    measured = _measure(options) if options.measure else {}
    rows = []
    for name in options.ds_config:
        run = resolve(options, name, device)
        predicted = predict(run)
        peak = measured.get(name)
        rows.append(
            {
                "name": "memory",
                "model": options.model,
                "ds_config": name,
                "world_size": options.num_gpus,
                "micro_batch": run.micro_batch_size,
                "seq_len": run.seq_len,
                "predicted": predicted.to_dict(),
                "peak_bytes": peak,
                "predicted_to_measured": predicted.peak_bytes / peak if peak else None,
            }
        )
    return rows


def resolve(options: argparse.Namespace, ds_config: str, device: Device) -> ResolvedRun:
    micro = options.micro_batch or default_sizes(device.kind, options.model).micro_batch_size
    rows = micro * options.accumulation * options.num_gpus
    argv = ["--model", options.model, "--ds_config", ds_config]
    argv += ["--seq_len", str(options.seq_len)] if options.seq_len else []
    settings = [*options.set, f"micro_batch_size={micro}", f"train_batch_size={rows}"]
    for setting in settings:
        argv += ["--set", setting]
    return Run.on(parse_arguments(argv), Ranks(0, 0, options.num_gpus), device).resolved


def predict(run: ResolvedRun) -> MemoryPrediction:
    """With the documents of the measurement, as many steps of them as it takes."""
    tokenizer = load_sample_tokenizer()
    accumulation = int(run.ds_config["gradient_accumulation_steps"])
    steps = _WARMUP + _STEPS + 2
    documents = draw_documents(
        build_token_cache(str(sample_data_path("train")), tokenizer),
        max_tokens=_DOCUMENT_TOKENS,
        wanted_tokens=run.micro_batch_size * accumulation * run.seq_len * steps,
        pad_id=tokenizer.pad_id,
        seed=_SEED,
    )
    packed = PackedSteps(
        documents,
        seq_len=run.seq_len,
        micro_batch=run.micro_batch_size,
        accumulation=accumulation,
    )
    batches = [batch for index in range(steps - 1) for batch in packed.step(index).batches]
    lengths = [
        [b - a for a, b in itertools.pairwise(batch.cu_seqlens.tolist())] for batch in batches
    ]
    return predict_memory_of(run, lengths)


def _measure(options: argparse.Namespace) -> dict[str, int]:
    """Peak bytes of bench.train_step's engine rows, by JSON. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as folder:
        path = Path(folder) / "results.json"
        command = [sys.executable, "-m", "bench.train_step", "--json", str(path)]
        command += ["--rows", "engine", "--model", options.model]
        command += ["--ds_config", *options.ds_config, "--accumulation", str(options.accumulation)]
        command += ["--steps", str(_STEPS), "--warmup", str(_WARMUP)]
        for name in ("seq_len", "micro_batch"):
            value = getattr(options, name)
            command += [f"--{name}", str(value)] if value else []
        for setting in options.set:
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"bench.train_step: {done.stderr[-2000:]}")
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["ds_config"]: row["peak_bytes"] for row in rows}


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """MB by component; the last column says how the prediction did."""
    header = ("model", "JSON", "ranks", *(part.replace("_", " ") for part in _PARTS), "peak MB",
              "measured MB", "predicted / measured")  # fmt: skip
    return harness.format_table(header, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    parts, peak = row["predicted"], row["peak_bytes"]
    return [
        row["model"],
        row["ds_config"],
        str(row["world_size"]),
        *(f"{parts[part] / 1e6:,.1f}" for part in _PARTS),
        f"{parts['peak_bytes'] / 1e6:,.1f}",
        f"{peak / 1e6:,.1f}" if peak else "not measured",
        f"{row['predicted_to_measured']:.3f}" if peak else "–",
    ]


if __name__ == "__main__":
    sys.exit(main())
