"""From text to batches: `python -m bench.data --json FILE`.

For each format three rows: `tokenise` a file into the token cache, `pack` its documents into rows,
`load` the rows as a training run reads them. Each row has a process of its own and works on two
files, one four times as large: what its memory grows by tells whether a file must fit in memory.

Exit status: 0 done, 1 a row broke, 2 bad usage or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import harness
from bench.data_rows import FORMATS, ROWS, DataRow, DataSpec
from bench.workers import Worker
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.runtime.devices import find_device
from minimind.runtime.logging import set_up_logging
from minimind.samples.text import load_sample_tokenizer

_SMALL_SHARE = 4


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: print(format_rows(measure(options))))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.data",
        description="Measures tokenising, packing and loading: MB/s, rows/s, memory.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="results file")
    add("--formats", default=",".join(FORMATS), metavar="A,B", help="default: all of them")
    add("--megabytes", type=float, default=16, metavar="X", help="of the large file (default: 16)")
    add("--tokenizer", metavar="DIR", help="its folder (default: the sample data's own)")
    add("--seq_len", type=int, default=1024, metavar="N", help="default: 1024")
    add("--micro_batch", type=int, default=16, metavar="N", help="rows (default: 16)")
    add("--rounds", type=int, default=5, metavar="N", help="of each row (default: 5)")
    return parser


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Raises MiniMindError for what the user can mend, WorkerError where a row breaks."""
    formats = [part.strip() for part in options.formats.split(",")]
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError(f"--formats {unknown[0]}: the formats are {', '.join(FORMATS)}")
    if options.megabytes <= 0 or options.rounds < 1:
        raise ConfigError("--megabytes must be above 0, --rounds 1 or more")
    harness.check_writable(options.json)
    tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer else load_sample_tokenizer()
    machine = harness.describe_machine(find_device())
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-data-") as temporary:
        folder = Path(temporary)
        tokenizer.save(folder / "tokenizer")
        for name in tqdm(formats, desc="formats", file=sys.stderr, disable=None):
            files = [folder / f"{size}-{name}.jsonl" for size in ("small", "large")]
            for path, share in zip(files, (_SMALL_SHARE, 1), strict=True):
                write_data(path, name, int(options.megabytes * 1e6 / share))
            for row in ROWS:
                spec = DataSpec(
                    row=row,
                    format=name,
                    tokenizer=folder / "tokenizer",
                    cache=folder / "cache",
                    seq_len=options.seq_len,
                    micro_batch=options.micro_batch,
                    rounds=options.rounds,
                )
                rows.append(_measure_row(spec, *files))
            # As they come: what breaks a later format leaves these.
            harness.write_results(options.json, "data", machine, vars(options), rows)
    return rows


def write_data(path: Path, format: str, num_bytes: int) -> None:
    """Sample rows, as many as make that size."""
    with path.open("wb") as file:
        for row, *_ in FORMATS[format].sample_data.rows(0):
            num_bytes -= file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if num_bytes <= 0:
                return


def _measure_row(spec: DataSpec, small: Path, large: Path) -> dict[str, Any]:
    worker = Worker(f"{spec.row} {spec.format}", DataRow, spec)
    try:
        of_small, of_large = (worker.call("measure", path) for path in (small, large))
    finally:
        worker.close()
    file_bytes = of_large["file_bytes"]
    rates = {
        name: harness.summarize([count / s for s in of_large["seconds"]])
        for name, count in (
            ("useful_tokens_per_s", of_large["tokens"]),
            ("rows_per_s", of_large["rows"]),
            ("bytes_per_s", file_bytes),
        )
        if count is not None
    }
    row: dict[str, Any] = {"name": f"{spec.row} {spec.format}", "file_bytes": file_bytes}
    for name, rate in rates.items():
        row |= {name: rate["median"], f"{name}_p10": rate["p10"], f"{name}_p90": rate["p90"]}
    cpu_s = sum(of_large["cpu_seconds"]) / len(of_large["cpu_seconds"])
    resident = [found["peak_resident_bytes"] for found in (of_small, of_large)]
    growth = None if None in resident else resident[1] - resident[0]
    return row | {
        "cores_busy": cpu_s / harness.summarize(of_large["seconds"])["median"],
        "bytes_per_core_s": file_bytes / cpu_s,
        "peak_resident_bytes": resident[1],
        "resident_growth_per_file_byte": (
            None if growth is None else growth / (file_bytes - of_small["file_bytes"])
        ),
        "padding_share": of_large["padding_share"],
        "cores": len(os.sched_getaffinity(0)),
    }


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "row", "MB/s", "MB/s a core", "cores busy", "tokens/s", "rows/s", "resident MB",
        "grows by, a byte of file", "padding",
    )  # fmt: skip
    return harness.format_table(header, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    growth, resident = row["resident_growth_per_file_byte"], row["peak_resident_bytes"]
    return [
        row["name"],
        f"{row['bytes_per_s'] / 1e6:,.1f}",
        f"{row['bytes_per_core_s'] / 1e6:,.1f}",
        f"{row['cores_busy']:.1f}",
        f"{row['useful_tokens_per_s']:,.0f}",
        f"{row['rows_per_s']:,.0f}" if row.get("rows_per_s") else "–",
        "not measured" if resident is None else f"{resident / 1e6:,.0f}",
        "not measured" if growth is None else f"{growth:.2f}",
        "–" if row["padding_share"] is None else f"{row['padding_share']:.2%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
