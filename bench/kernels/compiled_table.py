"""Keeps figures of every compiled kernel in a table, compiled.csv, so that a change of the compiled
code shows.

`python -m bench.kernels --compile-report` compares with it; `--update-budget` writes it anew.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minimind_kernels import OPS

from bench.harness import format_table
from bench.kernels.compile_report import Usage, half_dtype, refused
from bench.kernels.disassembly import Structure
from bench.kernels.targets import TARGETS

TABLE = Path(__file__).with_name("compiled.csv")
_KEY = ("kernel", "target", "sizes")
_WORST: Mapping[str, Callable[..., int]] = {
    "spills": max, "shared_bytes": max, "blocks": min,
    "barriers": max, "load_groups": max, "load_bits": min,
}  # fmt: skip
"""Which counts of a kernel's variants, for several sizes."""
_FIELDS = (*_KEY, *_WORST, "products")

Row = Mapping[str, Any]


def as_rows(report: Sequence[Usage]) -> list[dict[str, Any]]:
    """Gives a row for each compiled kernel, with None for values that were not read."""
    unread = dict.fromkeys(Structure._fields)
    rows = []
    for usage in report:
        row = asdict(usage)
        del row["structure"]
        rows.append(row | (usage.structure._asdict() if usage.structure else unread))
    return rows


def summarize(report: Sequence[Usage]) -> list[dict[str, Any]]:
    """Gives a row for each kernel, target and group of sizes in 16 bits: the worst value of each
    figure."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in as_rows(report):
        if row["dtype"] == str(half_dtype(row["target"])).removeprefix("torch."):
            groups.setdefault(_key(row), []).append(row)
    worst = {"registers": max, **_WORST, "products": _join}
    return [
        dict(zip(_KEY, key, strict=True))
        | {
            name: None if rows[0][name] is None else choose([row[name] for row in rows])
            for name, choose in worst.items()
        }
        for key, rows in sorted(groups.items())
    ]


def compare(report: Sequence[Usage]) -> list[str]:
    """Lists the values that are worse than in the table, and the kernels that are not in it."""
    known, problems = _read_table(), []
    for row in summarize(report):
        name = f"{row['target']} {row['kernel']} ({row['sizes']})"
        entry = known.get(_key(row))
        if entry is None:
            problems.append(f"{name}: not in {TABLE.name}; --update-budget writes it")
            continue
        for field, worst in _WORST.items():
            found, allowed = row[field], int(entry[field])
            if found is not None and worst(found, allowed) != allowed:
                problems.append(f"{name}: {field} {found}, in {TABLE.name} {allowed}")
        products, allowed = row["products"], entry["products"]
        if products is not None and not set(_split(products)) <= set(_split(allowed)):
            problems.append(f"{name}: products by {products}, in {TABLE.name} {allowed}")
    return problems


def write(report: Sequence[Usage]) -> None:
    """Writes the values that were read into the table, and removes kernels that no longer exist."""
    rows = _read_table() if TABLE.exists() else {}
    rows |= {_key(row): row for row in summarize(report) if row["barriers"] is not None}
    kernels = {kernel for op in OPS.values() for kernel in op.registers}
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, _FIELDS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(row for key, row in sorted(rows.items()) if key[0] in kernels)


def _read_table() -> dict[tuple[str, ...], Row]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {_key(row): row for row in csv.DictReader(file)}


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in _KEY)


def format_report(report: Sequence[Usage]) -> str:
    """Makes a table for a reader, and names the operations that are left out."""
    header = ["kernel", "target", "sizes", "registers", *_WORST, "products"]
    lines = [
        ["-" if row[name] is None else str(row[name]) for name in header]
        for row in summarize(report)
    ]
    compiled = {usage.target for usage in report}
    left_out = [
        f"{target}: PyTorch's form (backend.py) runs for {', '.join(op.name for op in ops)}"
        for target in TARGETS
        if target in compiled and (ops := refused(target))
    ]
    return "\n".join([format_table(header, lines), *left_out])


def _split(products: str) -> list[str]:
    return [one for one in products.split("+") if one]


def _join(products: Sequence[str]) -> str:
    return "+".join(sorted({one for text in products for one in _split(text)}))
