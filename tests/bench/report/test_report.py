"""bench.report: what the documents say is what the results files hold, and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.report import __main__ as report
from bench.report import plots as report_plots
from bench.report.__main__ import DOCUMENTS, NAMES, ROOT, SECTIONS, fill_sections
from bench.report.goals import kernel_goals_section, training_goals_section
from bench.report.tables import (
    CARDS,
    cards_section,
    memory_section,
    scaling_section,
    training_section,
)
from bench.results import Results


def write_results(
    folder: Path, date: str, rate: float, commit: str = "a" * 40, device: str = "NVIDIA H200"
) -> None:
    machine = {"device": device, "kind": "gpu", "cores": 8, "date": date, "commit": commit}
    row: dict[str, Any] = {
        "name": "engine", "model": "minimind2-small", "ds_config": "zero2.json",
        "stage": "pretrain", "precision": "bf16", "ratio_to_original": None, "mfu": 0.4,
        "mfu_causal": 0.35, "useful_tokens_per_s": rate, "useful_tokens_per_s_p10": rate - 1,
        "useful_tokens_per_s_p90": rate + 1, "peak_bytes": 5_000_000,
    }  # fmt: skip
    results = {"benchmark": "train_step", "machine": machine, "rows": [row]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_step.json").write_text(json.dumps(results))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_committed_tables_are_what_the_results_give(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    made = fill_sections(text, Results.load(), NAMES)
    assert made == text, "python -m bench.report writes it anew"


def test_every_section_stands_in_a_document() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    for name in NAMES:
        assert f"<!-- generated: python -m bench.report {name} -->" in text


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    empty = Results.load(tmp_path)
    for make in SECTIONS.values():
        assert "not measured" in make(empty)
    for card in CARDS:
        assert training_section(empty).count(card) == 3
        assert cards_section(empty).count(card) == 1
    for make in (training_section, training_goals_section, kernel_goals_section, cards_section):
        cells = [c.strip() for c in make(empty).replace("\n", "|").split("|")]
        assert not {"–", "0", "0.0"} & set(cells), "a dash or a nought is no word"


def test_each_card_has_goals_of_its_own(tmp_path: Path) -> None:
    write_results(tmp_path / "nvidia-h100", "1", 1_500_000, device="NVIDIA H100 80GB HBM3")
    results = Results.load(tmp_path)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in training_goals_section(results).splitlines()
        if "minimind2-small" in line
    ]
    assert rows == [
        ["NVIDIA H200", "minimind2-small", "1.60M", "2.00M", "2.30M", *["not measured"] * 3],
        ["NVIDIA H100", "minimind2-small", "1.47M", "1.84M", "2.12M",
         "1,500,000", "40.0%", "35.0%"],
    ]  # fmt: skip
    first, second = (line for line in cards_section(results).splitlines() if "NVIDIA" in line)
    assert "not measured" in first
    assert "train_step" in second
    lines = kernel_goals_section(results).splitlines()
    (norm,) = (line for line in lines if "`rms_norm`" in line and "minimind2-small" in line)
    (routing,) = (line for line in lines if "moe_routing" in line)
    assert re.findall(r"≤ (\d+)", norm) == ["11", "16"]
    assert re.findall(r"≤ (\d+)", routing) == ["12", "12"], "launches are as long on both"


def test_a_measured_row_takes_the_place_of_what_was_missing(tmp_path: Path) -> None:
    write_results(tmp_path / "nvidia-h200", "2026-01-01", 2_000_000)
    table = training_section(Results.load(tmp_path))
    line = next(line for line in table.splitlines() if "minimind2-small" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "NVIDIA H200", "minimind2-small", "pretrain engine bf16 zero2.json", "2,000,000",
        "1,999,999–2,000,001", "not measured", "40.0%", "35.0%", "5", "aaaaaaaaa",
    ]  # fmt: skip
    assert "not measured" in scaling_section(Results.load(tmp_path))


def test_only_marked_text_changes() -> None:
    before = "a\n<!-- generated: python -m bench.report scaling -->\nold\n<!-- end -->\nz\n"
    results = Results({})
    after = fill_sections(before, results, ["scaling"])
    assert after.startswith("a\n<!-- generated")
    assert after.endswith("<!-- end -->\nz\n")
    assert "old" not in after
    assert fill_sections(before, results, ["training"]) == before
    with pytest.raises(KeyError):
        fill_sections(before.replace("scaling", "weather"), results, [])


def test_each_json_has_its_scaling_and_its_memory(tmp_path: Path) -> None:
    holders = {"weights": 3_000_000, "optimizer": 6_000_000}
    rows = [
        {"name": "strong", "model": "tiny", "ds_config": name, "world_size": 2, "predicted": False,
         "useful_tokens_per_s": 5e5, "useful_tokens_per_s_p10": 4e5, "useful_tokens_per_s_p90": 6e5,
         "efficiency": 0.9, "step_s": {"median": 1.0}, "step_parts_s": {"communication": 0.1},
         "peak_bytes": peak, "prediction_error": {"useful_tokens_per_s": None, "peak_bytes": 0.5},
         "prediction": {"useful_tokens_per_s": 5e5, "efficiency": 1.0, "peak_bytes": 9_000_000,
                        "holders": holders}}
        for name, peak in (("zero0.json", 10_000_000), ("zero3.json", 6_000_000))
    ]  # fmt: skip
    machine = {"device": "NVIDIA H200", "kind": "gpu", "cores": 8, "date": "1", "commit": "a" * 40}
    (tmp_path / "nvidia-h200").mkdir()
    found = {"benchmark": "scaling", "machine": machine, "rows": rows}
    (tmp_path / "nvidia-h200" / "scaling.json").write_text(json.dumps(found))
    results = Results.load(tmp_path)
    text = scaling_section(results)
    assert [text.count(f"tiny with {name}") for name in ("zero0.json", "zero3.json")] == [1, 1]
    assert text.count("![") == 1
    assert "~9 (+50.0%)" in text
    lines = [line for line in memory_section(results).splitlines() if line.startswith("| tiny")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells == [
        ["tiny", "zero0.json", "2", "3.0", "6.0", "9.0", "10.0", "0.900"],
        ["tiny", "zero3.json", "2", "3.0", "6.0", "9.0", "6.0", "1.500"],
    ]


def test_a_plot_of_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_plots, "ROOT", tmp_path)
    folder = tmp_path / "results" / "nvidia-h200"
    write_results(folder, "1", 1.9e6)
    assert list(report_plots.draw_plots(Results.load(folder.parent))) == []
    machine = {"device": "NVIDIA H200", "kind": "gpu", "date": "2"}
    rows = [
        {"name": f"{name}.{direction}", "preset": "minimind2-small", "dtype": "bfloat16",
         "contender": contender, "median_us": 10.0 * slower, "floor_us": 8.0}
        for name in ("rms_norm", "swiglu") for direction in ("forward", "backward")
        for contender, slower in (("minimind", 1.0), ("eager", 4.0), ("liger", 1.5))
    ]  # fmt: skip
    kernels = {"benchmark": "kernels", "machine": machine, "rows": rows}
    (folder / "kernels.json").write_text(json.dumps(kernels))
    drawn = list(report_plots.draw_plots(Results.load(folder.parent)))
    assert [path.name for path in drawn] == ["kernels-nvidia-h200.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_newest_is_by_its_own_date(tmp_path: Path) -> None:
    write_results(tmp_path / "one", "2026-02-01", 2.0)
    write_results(tmp_path / "two", "2026-01-01", 1.0)
    newest = Results.load(tmp_path).newest("train_step")
    assert newest is not None
    assert newest["rows"][0]["useful_tokens_per_s"] == 2.0


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["weather"])
    assert "weather: the sections are kernels" in capsys.readouterr().err
