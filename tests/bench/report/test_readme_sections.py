"""bench.report: README's figures, in both languages, are those of the results files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.report.readme import README_SECTIONS
from bench.results import Results

LANGUAGES = pytest.mark.parametrize("suffix", ["", "_zh"])


def machine(kind: str = "cpu", date: str = "1", device: str = "Some CPU") -> dict[str, Any]:
    return {"device": device, "kind": kind, "cores": 2, "date": date}


def training(name: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "model": "minimind2-small", "precision": "fp32", "peak_bytes": 2_500_000,
        "useful_tokens_per_s": rate, "useful_tokens_per_s_p10": rate - 1,
        "useful_tokens_per_s_p90": rate + 1, "stage": "pretrain", **more,
    }  # fmt: skip


def results(*found: dict[str, Any]) -> Results:
    return Results({Path(f"{number}/x.json"): one for number, one in enumerate(found)})


def train_step(*rows: dict[str, Any], **of_machine: Any) -> dict[str, Any]:
    return {"benchmark": "train_step", "machine": machine(**of_machine), "rows": list(rows)}


@LANGUAGES
def test_nothing_measured_is_said(suffix: str) -> None:
    for name in ("numbers", "time_and_memory"):
        assert "not measured" in README_SECTIONS[name + suffix](Results({}))


@LANGUAGES
def test_numbers(suffix: str) -> None:
    rows = [
        {"name": "minimind", "model": "m", "batch": batch, "ratio_to_transformers": ratio}
        for batch, ratio in ((8, 9.9), (1, 1.84), (32, 2.56))
    ]
    scaled = [
        {"name": mode, "model": "m", "world_size": ranks, "efficiency": efficiency}
        for mode, ranks, efficiency in (
            ("strong", 1, 1.0), ("strong", 2, 0.89), ("strong", 4, None), ("weak", 2, 0.5),
        )
    ]  # fmt: skip
    found = results(
        train_step(training("original", 351), training("engine", 1276, ratio_to_original=3.68)),
        {"benchmark": "inference", "machine": machine(), "rows": rows},
        {"benchmark": "scaling", "machine": machine(), "rows": scaled},
    )
    lines = README_SECTIONS["numbers" + suffix](found).splitlines()
    assert [sorted(re.findall(r"\d(?:[\d.,]*\d)?", line)) for line in lines] == [
        sorted(["3.7", "32", "1,276", "351", "2", "2"]),
        sorted(["1.8", "2.6", "32", "2"]),
        sorted(["89", "2", "2"]),
    ]
    assert all("Some CPU, 2 cores" in line for line in lines)


@LANGUAGES
def test_a_gpu_stands_before_a_newer_cpu(suffix: str) -> None:
    def rows(ratio: float) -> list[dict[str, Any]]:
        return [training("original", 10), training("engine", 20, ratio_to_original=ratio)]

    found = results(
        train_step(*rows(2.0), kind="gpu", device="Some GPU"), train_step(*rows(3.0), date="2")
    )
    assert "**2.0" in README_SECTIONS["numbers" + suffix](found)


@LANGUAGES
def test_time_and_memory(suffix: str) -> None:
    rows = [
        {"name": "RTX 3090", "model": model, "world_size": ranks, "peak_bytes": 3 * 2**29,
         "tokens_per_step": 100_000, "least_step_s": seconds}
        for model in ("small", "large")
        for ranks, seconds in ((1, 0.9), (2, 0.09), (8, 0.009))
    ]  # fmt: skip
    found = results({"benchmark": "cards", "machine": machine(), "rows": rows})
    header, _, *lines = README_SECTIONS["time_and_memory" + suffix](found).splitlines()
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [
        *("RTX 3090", "2 × RTX 3090", "8 × RTX 3090"),
    ]  # fmt: skip
    numbers = [re.findall(r"\d[\d.]*", line) for line in lines]
    assert numbers == [["2.5", "1.5", "15", "1.5", "90", "1.5"]] * 2
