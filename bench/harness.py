"""Holds what every benchmark shares: the machine, statistics, the results file and tables.

A results file is one object: `benchmark`, `schema_version`, `machine`, `arguments`, `rows`. Every
row repeats the machine, so that a table can be made of rows from several files. It has every field
of ROW_FIELDS, null where a benchmark does not measure it, and fields of its own.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.ceilings import measure_ceilings
from minimind.errors import ConfigError
from minimind.runtime.devices import Device
from minimind.runtime.text_table import align_cells
from minimind.runtime.whole_files import write_whole

SCHEMA_VERSION = 2
ROW_FIELDS = (
    "name", "model", "ds_config", "resolved_ds_config", "world_size",
    "useful_tokens_per_s", "useful_tokens_per_s_p10", "useful_tokens_per_s_p90", "median_us",
    "mfu", "mfu_causal", "step_s", "step_parts_s", "collectives",
    "peak_bytes", "peak_reserved_bytes", "peak_resident_bytes",
    "peak_bytes_per_rank", "peak_reserved_bytes_per_rank",
    "dispatched_operators", "cuda_launches", "sync_operators",
)  # fmt: skip
"""`useful_tokens_per_s` is a median over steps and counts the tokens of all ranks without padding.
`mfu` assumes 6N + 12·L·D·T FLOP per token; `mfu_causal` counts attention only over the tokens that
each token of a document sees. `step_parts_s` is made by bench/train/step_parts.py. Fields of bytes
hold the largest value of any rank; with several ranks, a list holds the value of each."""
_PACKAGES = (
    *("torch", "triton", "deepspeed", "tokenizers"),
    *("liger-kernel", "quack-kernels", "cut-cross-entropy", "nvidia-cutlass-dsl"),
)
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
NOT_MEASURED = "not measured"

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
"""The headings of a table, each with the function that makes a row's cell."""


def describe_machine(device: Device) -> dict[str, Any]:
    """Describes the machine, its software and its present load, which a figure needs to mean
    anything."""
    return {
        "device": device.name,
        "kind": device.kind,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu_memory_bytes": device.memory_bytes if device.kind == "gpu" else None,
        "supports_bf16": device.supports_bf16,
        "peak_flops": device.peak_flops,
        "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "ceilings": measure_ceilings(device),
    }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Gives median, p10, p90 and their distance as a share of the median."""
    tenths = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
    median, p10, p90 = statistics.median(values), tenths[0], tenths[-1]
    return {"median": median, "p10": p10, "p90": p90, "spread": (p90 - p10) / median}


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Gives the median of the ratios of values taken in turns, and its standard error (1.25 times
    that of the mean, as for normal noise). A disturbance of both values of a pair cancels."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    error = 1.2533 * statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
    return {"median": statistics.median(ratios), "standard_error": error}


def check_writable(path: Path) -> None:
    """Raises ConfigError for a file that cannot be written, before minutes are spent on
    measuring."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}") from None
    if not path.stat().st_size:
        path.unlink()


def write_results(
    path: Path,
    benchmark: str,
    machine: Mapping[str, Any],
    arguments: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:
    """Writes a results file, whole or not at all."""
    machine, missing = dict(machine), dict.fromkeys(ROW_FIELDS)
    results = {
        "benchmark": benchmark,
        "schema_version": SCHEMA_VERSION,
        "machine": machine,
        "arguments": {name: _without_folder(value) for name, value in arguments.items()},
        **more,
        "rows": [{**missing, **row, "machine": machine} for row in rows],
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, default=str) + "\n"
    with write_whole(path) as new:
        new.write_text(text, encoding="utf-8")


def _without_folder(value: Any) -> Any:
    """Gives the last part of an absolute path: its folder means nothing on another machine."""
    is_path = isinstance(value, str | Path) and os.path.isabs(value)
    return Path(value).name if is_path else value


def results_folder(machine: Mapping[str, Any]) -> Path:
    """Gives the folder of a machine's results: bench/results/<device>."""
    device = re.sub(r"\((r|tm)\)|processor", "", machine["device"].lower())
    if machine["kind"] == "cpu":
        device += f" {machine['cores']} cores"
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", device).strip("-")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Makes a Markdown table with the first column aligned to the left, the others to the right."""
    return align_cells([header, *rows], numbers=True)


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Makes a Markdown table without padding, for cells that are too long to be aligned."""
    lines = [header, ["-"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def format_rows(rows: Sequence[Row], columns: Columns) -> str:
    """Makes the table of some rows."""
    return format_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def shown(
    value: float | None, form: str = ",.0f", per: float = 1, missing: str = NOT_MEASURED
) -> str:
    """Formats a value in units of `per`; gives `missing` for None."""
    return missing if value is None else format(value / per if per != 1 else value, form)


def with_error(
    value: float | None, error: float | None, digits: int = 2, missing: str = NOT_MEASURED
) -> str:
    """Formats a value and, where it has one, its standard error."""
    text = shown(value, f".{digits}f", missing=missing)
    return text if value is None or error is None else f"{text} ± {error:.{digits}f}"


def rate_range(row: Row) -> str:
    """Gives the rates of the slowest and the quickest tenth of the steps."""
    return f"{row['useful_tokens_per_s_p10']:,.0f}–{row['useful_tokens_per_s_p90']:,.0f}"


def describe_place(machine: Row) -> str:
    """Names a machine for a table."""
    if machine["kind"] != "cpu":
        return machine["device"]
    cores = machine["cores"]
    return f"{machine['device']}, {cores} core{'s' if cores > 1 else ''}"


def rates(name: str, values: Sequence[float]) -> dict[str, float]:
    """Gives the fields of a row for a rate: its median, p10 and p90."""
    found = summarize(values)
    return {name: found["median"], f"{name}_p10": found["p10"], f"{name}_p90": found["p90"]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Gives the commit of this checkout, with "-dirty" where tracked files differ from it. Without
    git, as on a machine to which only files were copied, gives the value of GIT_COMMIT."""
    git = ("git", "--no-optional-locks", "-C", str(ROOT))
    commit = _run(*git, "rev-parse", "HEAD")
    changed = _run(*git, "status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return os.environ.get("GIT_COMMIT")
    return f"{commit}-dirty" if changed else commit


def _run(*command: str) -> str | None:
    """Gives what a program prints; None where there is no such program, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
