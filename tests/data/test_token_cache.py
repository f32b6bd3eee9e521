"""Token caches: built once for the same content, whole, and with every bad row named."""

from __future__ import annotations

import errno
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimind.data import data_file, text_format, token_writer
from minimind.data.chat_format import CHAT
from minimind.data.text_format import TEXT
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import train_tokenizer
from minimind.errors import DataError
from minimind.types import Sample

GOOD_LINE = b'{"text": "good line"}'
LONG_LINE = '{"text": "一丁"}'.replace("一丁", "一丁" * 100_000).encode()
BAD_LINES = {
    2: (b'{"text": 5}', "is a number"),
    3: (b'{"txt": "wrong key"}', 'no key "text"'),
    4: (b"not json at all", "not JSON"),
    6: (b'{"text": ""}', "is empty"),
    7: (b'{"text": "truncated', "not JSON"),
    8: (b'{"text": "bad utf8 \xff\xfe"}', "not UTF-8"),
    9: (b"[1,2,3]", "a list where"),
    10: (b'{"text": null}', "is null"),
}
SPECIAL_LINE = rb'{"text": "nul \u0000 <|im_end|><|im_start|>system"}'


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    """Line 5 is blank; 1, 11 (600 KB) and 12 are good; the rest is bad."""
    lines = {1: GOOD_LINE, 5: b"", 11: LONG_LINE, 12: SPECIAL_LINE}
    lines |= {number: line for number, (line, _) in BAD_LINES.items()}
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(lines[number] for number in range(1, 13)))
    return path


def test_documents_come_back_with_their_lines(write_rows, tokenizer: Tokenizer) -> None:
    texts = ["a", "塔恩的河", "x " * 300, "\x00"]
    path = write_rows(texts)
    cache = build_token_cache(path, tokenizer)
    assert cache.num_documents == 4
    assert cache.num_tokens == cache.lengths.sum()
    assert cache.tokens(0).dtype == np.uint16
    for number, text in enumerate(texts):
        ids = cache.tokens(number).tolist()
        assert ids == [1, *tokenizer.encode(text), 2]
        assert cache.lengths[number] == len(ids)
        assert cache.tokens(number, 1, 3).tolist() == ids[1:3]
        assert cache.tokens(number, 1, 10**6).tolist() == ids[1:]
        assert cache.source(number) == f"{path}:{number + 1}"
        assert cache.is_target(number) is None


def test_every_bad_line_is_named_before_anything_is_kept(
    bad_file: Path, tokenizer: Tokenizer, cache_dir: Path
) -> None:
    with pytest.raises(DataError) as caught:
        build_token_cache(bad_file, tokenizer)
    *listed, last = str(caught.value).splitlines()
    assert len(listed) == len(BAD_LINES)
    for message, (line, (_, reason)) in zip(listed, BAD_LINES.items(), strict=True):
        assert message.startswith(f"{bad_file}:{line}: ")
        assert reason in message
    assert "8 bad rows" in last
    assert "--on_bad_row skip" in last
    assert not [path for path in (cache_dir / "tokens").iterdir() if path.is_dir()]


def test_skipping_lists_the_bad_lines_each_time(
    bad_file: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in ("built", "reused"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            cache = build_token_cache(bad_file, tokenizer, on_bad_row="skip")
        assert [row.line for row in cache.skipped] == list(BAD_LINES)
        assert cache.num_skipped == 8
        for line in BAD_LINES:
            assert f"{bad_file}:{line}: " in caplog.text
        assert "8 bad rows skipped, 3 used" in caplog.text
    assert [cache.source(i).rpartition(":")[2] for i in range(3)] == ["1", "11", "12"]
    with pytest.raises(DataError, match="8 bad rows"):
        build_token_cache(bad_file, tokenizer, on_bad_row="stop")


def test_text_that_spells_special_tokens_and_a_long_line(
    bad_file: Path, tokenizer: Tokenizer
) -> None:
    cache = build_token_cache(bad_file, tokenizer, on_bad_row="skip")
    special = cache.tokens(2).tolist()
    assert min(special[1:-1]) >= 36
    assert tokenizer.decode(special) == "nul \x00 <|im_end|><|im_start|>system"
    assert tokenizer.decode(cache.tokens(1)) == "一丁" * 100_000


def test_bad_rows_beyond_the_list_are_counted(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_writer, "MAX_RECORDED", 30)
    path = tmp_path / "many.jsonl"
    path.write_bytes(b"{x\n" * 50 + GOOD_LINE)
    with pytest.raises(DataError, match="… and 47 more\n50 bad rows"):
        build_token_cache(path, tokenizer)
    cache = build_token_cache(path, tokenizer, on_bad_row="skip")
    assert (cache.num_skipped, len(cache.skipped)) == (50, 30)


def test_a_file_without_a_usable_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "none.jsonl"
    path.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="only blank lines"):
        build_token_cache(path, tokenizer)
    path.write_bytes(b"{}\n")
    with pytest.raises(DataError, match="in no form of row for --stage pretrain"):
        build_token_cache(path, tokenizer, on_bad_row="skip")
    with pytest.raises(DataError, match="no such file"):
        build_token_cache(tmp_path / "missing.jsonl", tokenizer)


def test_the_cache_is_reused_for_the_same_content_only(
    write_rows, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_token_cache(write_rows(["a", "b"]), tokenizer)
    copy = write_rows(["a", "b"], "copy.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("minimind.data.token_cache.write_tokens", None)
        again = build_token_cache(copy, tokenizer)
    assert again.key == first.key
    assert again.source(1) == f"{copy}:2"
    other_data = build_token_cache(write_rows(["a", "c"]), tokenizer)
    other_tokenizer = build_token_cache(copy, train_tokenizer(["ab"] * 9, 300))
    newer = replace(TEXT, version="2")
    other_format = build_token_cache(copy, tokenizer, newer)
    keys = {cache.key for cache in (first, other_data, other_tokenizer, other_format)}
    assert len(keys) == 4


@pytest.mark.faults("a token cache cut short", "built again")
def test_a_cache_cut_short_is_built_again(write_rows, tokenizer: Tokenizer) -> None:
    path = write_rows(["a", "b"])
    cache = build_token_cache(path, tokenizer)
    whole = cache.tokens(1).tolist()
    for name in ("tokens.bin", "meta.json"):
        file = cache.folder / name
        file.write_bytes(file.read_bytes()[:-2])
        assert build_token_cache(path, tokenizer).tokens(1).tolist() == whole


def test_masks_are_stored_where_not_every_token_is_a_target(
    write_rows, tokenizer: Tokenizer
) -> None:
    def read(rows, tokenizer):
        samples = text_format.text_samples(rows, tokenizer)
        return [Sample(ids=s.ids, is_target=s.ids > 100) for s in samples]

    half = replace(TEXT, name="half", all_targets=False, split_long=False, read=read)
    cache = build_token_cache(write_rows(["a b c 塔恩", "7加5"]), tokenizer, half)
    for number in range(2):
        mask = cache.is_target(number)
        assert mask is not None
        assert mask.tolist() == (cache.tokens(number) > 100).tolist()
        assert cache.is_target(number, 1, 3).tolist() == mask[1:3].tolist()


@pytest.mark.faults(
    "the disk is full while tokens are cached", "named with the bytes needed; nothing is left"
)
def test_a_full_disk_is_named_and_leaves_nothing(
    write_rows, tokenizer: Tokenizer, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(self, name: str, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_writer._Writer, "_write", no_space)
    path = write_rows(["a"])
    with pytest.raises(DataError, match=r"disk is full.*bytes.*MINIMIND_CACHE") as caught:
        build_token_cache(path, tokenizer)
    assert str(cache_dir / "tokens") in str(caught.value)
    assert not [entry for entry in (cache_dir / "tokens").iterdir() if entry.is_dir()]


@pytest.mark.faults("rows with NaN, half characters, or nesting of 500", "named by line")
def test_bad_rows_of_odd_values(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"conversations": turns},
        {"conversations": [{"role": "\ud800", "content": "a"}]},
        {"conversations": turns, "system": float("nan")},
    ]
    nested: list[object] = []
    for _ in range(500):
        nested = [nested]
    tool = {"name": "f", "parameters": {"a": nested}}
    rows.append({"conversations": turns, "tools": [tool]})
    path.write_text("\n".join(map(json.dumps, rows)))
    cache = build_token_cache(path, tokenizer, CHAT, on_bad_row="skip")
    assert [row.line for row in cache.skipped] == [2, 3, 4]
    assert r"\ud800" in str(cache.skipped[0])
    assert "nested too deep" in str(cache.skipped[2])
    assert all(str(row).encode() for row in cache.skipped)


@pytest.mark.faults("a cache folder that cannot be made", "named")
def test_a_cache_folder_that_cannot_be_made(write_rows, tokenizer: Tokenizer) -> None:
    file = write_rows(["a"])
    with pytest.raises(DataError, match="cannot be written"):
        build_token_cache(file, tokenizer, cache_dir=file)


@pytest.mark.faults("a data file that changes while it is read", "refused: start again")
def test_a_file_that_changes_while_it_is_read(
    write_rows, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(["a"])
    states = iter([(1, 1), (2, 2)])
    monkeypatch.setattr(data_file, "_state", lambda path: next(states))
    with pytest.raises(DataError, match="changed while it was read"):
        build_token_cache(path, tokenizer)
