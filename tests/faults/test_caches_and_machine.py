"""What the machine refuses is said in a sentence, and caches notice what happened to them."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from minimind.cli import main as command
from minimind.cli.failures import describe_failure
from minimind.data.data_file import find_data
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.inference import cpu_library
from minimind.rehearsal import stub
from minimind.run.run import Run
from minimind.runtime.cache_folder import locked
from minimind.runtime.compiled_library import is_whole
from minimind.runtime.compiler import find_cpp_compiler


def write_rows(path: Path, text: str) -> Path:
    path.write_text("".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n in range(50)))
    return path


@pytest.mark.faults(
    "a file replaced while a process waits for its cache's lock", "refused; no cache"
)
def test_a_file_that_changes_before_the_lock(
    tmp_path: Path, tokenizer: Tokenizer, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minimind.data import token_cache

    path = write_rows(tmp_path / "a.jsonl", "good")

    def replaced(lock: Path):
        write_rows(tmp_path / "b.jsonl", "evil").replace(path)
        return locked(lock)

    monkeypatch.setattr(token_cache, "locked", replaced)
    with pytest.raises(DataError, match="changed while it was read"):
        build_token_cache(path, tokenizer, cache_dir=cache_dir)
    monkeypatch.undo()
    write_rows(path, "good")
    cache = build_token_cache(path, tokenizer, cache_dir=cache_dir)
    assert tokenizer.decode(cache.tokens(0)).startswith("good")


@pytest.mark.faults("a pipe as data", "refused")
def test_a_pipe_as_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe, a device or a socket"):
        find_data(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe, a device or a socket"):
        find_data("/dev/zero")


def build_decoder(cache_dir: Path) -> Path:
    return cpu_library._build()


@pytest.mark.faults("a compiled library cut short, empty or changed", "compiled again")
@pytest.mark.skipif(find_cpp_compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
@pytest.mark.parametrize(
    ("module", "build"), [(cpu_library, build_decoder), (stub, stub.build_stub)], ids=["CPU", "GPU"]
)
def test_a_damaged_library(
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: ModuleType,
    build: Callable[[Path], Path],
    damage: str,
) -> None:
    """One library decodes on the CPU, the other stands in for a GPU."""
    source = tmp_path / "small.cpp"  # the whole libraries take half a minute
    source.write_text('extern "C" int seven() { return 7; }')
    monkeypatch.setattr(module, "_SOURCE", source)
    monkeypatch.setattr(cpu_library, "_HEADERS", ())
    library = build(cache_dir)
    whole = library.read_bytes()
    half = len(whole) // 2
    broken = {"cut": whole[:half], "empty": b"", "changed": whole[:half] + b"x" + whole[half + 1 :]}
    library.write_bytes(broken[damage])
    assert build(cache_dir) == library
    assert is_whole(library)
    assert "is damaged and is compiled again" in caplog.text
    assert ctypes.CDLL(str(library)).seven() == 7


@pytest.mark.faults("a cache folder that cannot be written, without --data", "named")
def test_a_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"the sample data cannot be written: .*MINIMIND_CACHE"):
        Run.resolve(model="tiny").describe()


@pytest.mark.faults(
    "a file name too long, a disk that fails, too many open files", "named, status 1"
)
@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EIO, errno.EMFILE, errno.EROFS])
def test_what_the_machine_refuses(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minimind.cli import tokenizer as verb

    def refuse(argv: object) -> int:
        raise OSError(number, os.strerror(number), "/some/\x1bplace")

    monkeypatch.setattr(verb, "main", refuse)
    assert command.run_verb("tokenizer", []) == 1
    assert capsys.readouterr().err.startswith("error: /some/\ufffdplace: ")


def test_other_errors_are_not_explained() -> None:
    assert describe_failure(OSError(errno.EPIPE, "x")) is None
    assert describe_failure(RecursionError("x")) is None
    assert describe_failure(RuntimeError("a bug")) is None
