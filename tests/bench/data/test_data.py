"""bench.data: its rows, and that what it refuses is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.data import __main__ as data
from bench.data.rows import FORMATS
from minimind.data.token_cache import build_token_cache
from minimind.samples.text import load_sample_tokenizer


def test_rows_of_one_format(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    argv = ["--json", str(path), "--formats", "text", "--megabytes", "0.1", "--rounds", "2"]
    assert data.main([*argv, "--seq_len", "128", "--micro_batch", "4"]) == 0
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["tokenise text", "pack text", "load text"]
    for row in rows.values():
        assert 100_000 <= row["file_bytes"] < 110_000
        assert row["useful_tokens_per_s_p10"] <= row["useful_tokens_per_s"]
        assert row["bytes_per_s"] > 0
        assert row["bytes_per_core_s"] > 0
    assert rows["tokenise text"]["padding_share"] is None
    assert rows["pack text"]["padding_share"] == rows["load text"]["padding_share"] < 0.1
    # A row of 128 places holds at most as many tokens.
    load = rows["load text"]
    assert 100 < load["useful_tokens_per_s"] / load["rows_per_s"] <= 128


def test_every_format_is_measured(tmp_path: Path) -> None:
    names = data.build_parser().parse_args(["--json", "x"]).formats.split(",")
    assert names == list(FORMATS)
    for name in names:
        data.write_data(tmp_path / name, name, 2000)
        cache = build_token_cache(
            tmp_path / name, load_sample_tokenizer(), FORMATS[name].data_format, tmp_path / "cache"
        )
        assert cache.num_tokens > 100


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--formats", "text,video"], "--formats video"),
        (["--megabytes", "0"], "--megabytes 0.0: must be above 0"),
        (["--tokenizer", "nowhere"], "nowhere"),
    ],
)
def test_bad_usage_is_named(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.main(["--json", str(tmp_path / "results.json"), *argv]) == 2
    assert message in capsys.readouterr().err
