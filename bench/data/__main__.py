"""Measures the way from text to batches: `python -m bench.data --json FILE`.

Each format has three rows: `tokenise` a file into the token cache, `pack` its documents into rows,
`load` the rows as a training run reads them. Each row has its own process and works on two files,
one four times as large as the other: the growth of its memory shows whether a file must fit in
memory.

Exit status: 0 done, 1 a row broke, 2 bad usage or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import harness
from bench.data.rows import FORMATS, ROWS, DataRow, DataSpec
from bench.harness import Columns, Row, shown
from bench.program import NUMBER, Options, parse_names, run_program
from bench.workers import started
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.runtime.devices import find_device
from minimind.samples.text import load_sample_tokenizer

_SMALL_SHARE = 4


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), lambda options: print(format_rows(measure(options))), argv)


def build_parser() -> Options:
    parser = Options("data", __doc__)
    add = parser.add
    add("formats", ",".join(FORMATS), "which to measure", metavar="A,B")
    add("megabytes", 16.0, "of the large file", type=float, metavar="X")
    add("tokenizer", None, "its folder (default: the sample data's own)", metavar="DIR")
    add("seq_len", 1024, "tokens of a row", **NUMBER)
    add("micro_batch", 16, "rows", **NUMBER)
    add("rounds", 5, "of each row", **NUMBER)
    return parser


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every row. Raises MiniMindError for errors that the user can correct, WorkerError
    where a row breaks."""
    formats = parse_names(options.formats, "--formats", list(FORMATS))
    if options.megabytes <= 0:
        raise ConfigError(f"--megabytes {options.megabytes}: must be above 0")
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
            # Written after each format: if a later one breaks, these rows stay.
            harness.write_results(options.json, "data", machine, vars(options), rows)
    return rows


def write_data(path: Path, format: str, num_bytes: int) -> None:
    """Writes sample rows until the file has that size."""
    with path.open("wb") as file:
        for row, *_ in FORMATS[format].sample_data.rows(0):
            num_bytes -= file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if num_bytes <= 0:
                return


def _measure_row(spec: DataSpec, small: Path, large: Path) -> dict[str, Any]:
    with started(DataRow, [spec]) as (worker,):
        of_small, of_large = (worker.call("measure", path) for path in (small, large))
    file_bytes, seconds = of_large["file_bytes"], of_large["seconds"]
    row: dict[str, Any] = {"name": spec.name, "file_bytes": file_bytes}
    for name, count in (
        ("useful_tokens_per_s", of_large["tokens"]),
        ("rows_per_s", of_large["rows"]),
        ("bytes_per_s", file_bytes),
    ):
        if count is not None:
            row |= harness.rates(name, [count / s for s in seconds])
    cpu_s = sum(of_large["cpu_seconds"]) / len(of_large["cpu_seconds"])
    resident = [found["peak_resident_bytes"] for found in (of_small, of_large)]
    growth = None if None in resident else resident[1] - resident[0]
    return row | {
        "cores_busy": cpu_s / harness.summarize(seconds)["median"],
        "bytes_per_core_s": file_bytes / cpu_s,
        "peak_resident_bytes": resident[1],
        "resident_growth_per_file_byte": (
            None if growth is None else growth / (file_bytes - of_small["file_bytes"])
        ),
        "padding_share": of_large["padding_share"],
    }


def format_rows(rows: Sequence[Row]) -> str:
    columns: Columns = {
        "row": lambda row: row["name"],
        "MB/s": lambda row: shown(row["bytes_per_s"], ",.1f", 1e6),
        "MB/s a core": lambda row: shown(row["bytes_per_core_s"], ",.1f", 1e6),
        "cores busy": lambda row: shown(row["cores_busy"], ".1f"),
        "tokens/s": lambda row: shown(row["useful_tokens_per_s"]),
        "rows/s": lambda row: shown(row.get("rows_per_s"), missing="–"),
        "resident MB": lambda row: shown(row["peak_resident_bytes"], per=1e6),
        "grows by, a byte of file": lambda row: shown(row["resident_growth_per_file_byte"], ".2f"),
        "padding": lambda row: shown(row["padding_share"], ".2%", missing="–"),
    }
    return harness.format_rows(rows, columns)


if __name__ == "__main__":
    sys.exit(main())
