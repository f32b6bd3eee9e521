"""bench.kernels.compiled_table: what becomes worse is said, and what is written is read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.kernels import compiled_table
from bench.kernels.compile_report import Usage
from bench.kernels.disassembly import Structure

STRUCTURE = Structure(barriers=2, load_groups=1, load_bits=128, products="HMMA.16816")
USAGE = Usage(
    "expert_gemm.up", "sm_90", "bfloat16", 128, 66048, 0, blocks=2, structure=STRUCTURE
)  # fmt: skip
WORSE = {
    "spills 8, in": replace(USAGE, spills=8),
    "shared_bytes 66560, in": replace(USAGE, shared_bytes=66560),
    "blocks 1, in": replace(USAGE, blocks=1),
    "barriers 3, in": replace(USAGE, structure=STRUCTURE._replace(barriers=3)),
    "load_groups 2, in": replace(USAGE, structure=STRUCTURE._replace(load_groups=2)),
    "load_bits 32, in": replace(USAGE, structure=STRUCTURE._replace(load_bits=32)),
    "products by FFMA, in": replace(USAGE, structure=STRUCTURE._replace(products="FFMA")),
    "not in compiled.csv": replace(USAGE, kernel="expert_gemm.down"),
}


@pytest.fixture
def _table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_table, "TABLE", tmp_path / "compiled.csv")
    compiled_table.write([USAGE, replace(USAGE, sizes="others", spills=24)])


@pytest.mark.usefixtures("_table")
@pytest.mark.parametrize("text", WORSE)
def test_what_is_worse_than_the_table_is_said(text: str):
    (problem,) = compiled_table.compare([WORSE[text]])
    assert text in problem


@pytest.mark.usefixtures("_table")
def test_what_is_no_worse_passes():
    better = replace(USAGE, blocks=3, structure=STRUCTURE._replace(barriers=0))
    unread = replace(USAGE, structure=None)
    # The table is of the dtype that a target trains in.
    other_dtype = replace(USAGE, dtype="float32", spills=100)
    for found in (USAGE, better, unread):
        assert not compiled_table.compare([found, other_dtype])


def test_a_row_is_the_worst_of_its_variants():
    other = replace(
        USAGE, registers=255, blocks=1, structure=STRUCTURE._replace(load_bits=64, products="")
    )
    (row,) = compiled_table.summarize([USAGE, other])
    assert (row["registers"], row["blocks"], row["load_bits"]) == (255, 1, 64)
    assert row["products"] == "HMMA.16816"
    old = replace(USAGE, target="sm_75", dtype="float16")
    assert "sm_75: PyTorch's form (backend.py) runs for expert_ffn" in compiled_table.format_report(
        [old]
    )


def test_the_table_is_of_the_kernels_there_are():
    from minimind_kernels import OPS

    lines = compiled_table.TABLE.read_text(encoding="utf-8").splitlines()[1:]
    named = {line.partition(",")[0] for line in lines}
    assert named == {kernel for op in OPS.values() for kernel in op.registers}
