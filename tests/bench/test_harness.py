"""bench.harness: statistics, the results file and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import harness
from minimind.errors import ConfigError
from minimind.runtime.devices import find_device


def test_summary() -> None:
    summary = harness.summarize([float(value) for value in range(11)])
    assert summary == {"median": 5.0, "p10": 1.0, "p90": 9.0, "spread": 1.6}
    assert harness.summarize([3.0]) == {"median": 3.0, "p10": 3.0, "p90": 3.0, "spread": 0.0}


def test_paired_ratio_cancels_what_moves_both() -> None:
    drift = [1.0, 2.0, 4.0, 8.0]
    ratio = harness.paired_ratio([3 * x for x in drift], drift)
    assert ratio == {"median": 3.0, "standard_error": 0.0}
    assert harness.paired_ratio([1.0, 3.0], [1.0, 1.0])["standard_error"] == pytest.approx(1.2533)


def test_results_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    harness.check_writable(path)
    assert not path.exists()
    machine = harness.describe_machine(find_device())
    arguments = {"a": 1, "data": str(tmp_path / "text.jsonl"), "json": path}
    harness.write_results(path, "kernels", machine, arguments, [{"name": "x"}], notes=["y"])
    found = json.loads(path.read_text())
    assert found["arguments"] == {"a": 1, "data": "text.jsonl", "json": "results.json"}
    (row,) = found["rows"]
    assert row["name"] == "x"
    assert row["machine"] == found["machine"]
    assert set(row) == {*harness.ROW_FIELDS, "machine"}
    assert row["useful_tokens_per_s"] is None, "not measured, and said so"
    assert found["notes"] == ["y"]
    assert found["schema_version"] == harness.SCHEMA_VERSION
    harness.check_writable(path)
    assert json.loads(path.read_text()) == found
    with pytest.raises(ConfigError, match="cannot be written"):
        harness.check_writable(path / "below.json")


def test_ceilings_are_of_this_session() -> None:
    ceilings = harness.describe_machine(find_device())["ceilings"]
    assert ceilings["copy_bytes_per_s"] > 1e8
    assert ceilings["product_flops_per_s"] > 1e8
    assert ceilings["product_dtype"] in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("device", "kind", "folder"),
    [
        ("NVIDIA H200", "gpu", "nvidia-h200"),
        ("NVIDIA H100 80GB HBM3", "gpu", "nvidia-h100-80gb-hbm3"),
        ("Intel(R) Xeon(R) Processor", "cpu", "intel-xeon-2-cores"),
        ("AMD EPYC 9V74 80-Core Processor", "cpu", "amd-epyc-9v74-80-core-2-cores"),
    ],
)
def test_each_machine_has_its_folder(device: str, kind: str, folder: str) -> None:
    found = harness.results_folder({"device": device, "kind": kind, "cores": 2})
    assert found == harness.RESULTS / folder


def test_table_is_aligned() -> None:
    table = harness.format_table(("row", "x"), [("a", "1"), ("long", "1,000")])
    assert table.splitlines() == [
        "| row  |     x |",
        "| ---- | ----: |",
        "| a    |     1 |",
        "| long | 1,000 |",
    ]
