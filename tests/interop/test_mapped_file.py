"""Files that libraries map into memory are opened again before much of them is resident."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from original_models import DENSE, random_state

from minimind.interop import mapped_file, original
from minimind.interop.mapped_file import MappedFile
from minimind.interop.readers import open_source


class Opened:
    """Stands for a library's file."""


def test_a_file_is_closed_and_opened_again_after_its_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mapped_file, "_OPEN_BYTES", 10)
    opened: list[weakref.ref[Opened]] = []

    def open_file() -> Opened:
        assert all(each() is None for each in opened), "two are open"
        file = Opened()
        opened.append(weakref.ref(file))
        return file

    file = MappedFile(open_file)
    for expected in (1, 1, 1, 2, 2, 2, 3):
        file.read(lambda _: torch.ones(4, dtype=torch.uint8))
        assert len(opened) == expected


def test_a_pth_is_the_same_whenever_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.save(random_state(DENSE[1]), tmp_path / "a.pth")
    loads = []
    load = original.load_pickle
    monkeypatch.setattr(original, "load_pickle", lambda path: loads.append(path) or load(path))
    whole = dict(open_source(tmp_path / "a.pth").tensors)
    assert len(loads) == 1
    monkeypatch.setattr(mapped_file, "_OPEN_BYTES", 1)
    again = open_source(tmp_path / "a.pth").tensors
    for name, tensor in whole.items():
        assert torch.equal(again[name], tensor)
    assert len(loads) > len(whole)
