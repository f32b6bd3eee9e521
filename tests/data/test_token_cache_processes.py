"""Token caches that several processes build, or one that is killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer

_SLOW_BUILD = textwrap.dedent("""
    import sys, time
    from minimind.data import token_writer
    from minimind.samples.text import load_sample_tokenizer
    from minimind.data.token_cache import build_token_cache

    add = token_writer._Writer.add

    def slow_add(self, *batch):
        add(self, *batch)
        print("wrote", flush=True)
        time.sleep(60)

    token_writer._Writer.add = slow_add
    build_token_cache(sys.argv[1], load_sample_tokenizer())
""")


@pytest.mark.faults("kill -9 while tokens are cached", "no cache is left, its rest is removed")
def test_a_killed_build_leaves_no_cache_and_its_rest_is_removed(
    write_rows, tokenizer: Tokenizer, cache_dir: Path
) -> None:
    killed, other = write_rows(["a", "b"]), write_rows(["c"], "other.jsonl")
    for next_built in (killed, other):
        build = subprocess.Popen(
            [sys.executable, "-c", _SLOW_BUILD, str(killed)], stdout=subprocess.PIPE
        )
        assert build.stdout is not None
        assert build.stdout.readline() == b"wrote\n"
        (temporary,) = (cache_dir / "tokens").glob("*.tmp-*")
        build.send_signal(signal.SIGKILL)
        build.wait()
        build.stdout.close()
        assert temporary.is_dir()
        assert build_token_cache(next_built, tokenizer).num_documents == 2 - (next_built == other)
        assert not temporary.exists()
        shutil.rmtree(cache_dir / "tokens")


def _build(path: Path, start: float) -> int:
    from minimind.samples.text import load_sample_tokenizer

    tokenizer = load_sample_tokenizer()
    time.sleep(max(0.0, start - time.time()))
    return build_token_cache(path, tokenizer).num_tokens


@pytest.mark.faults("two processes build one cache", "both get the same tokens")
def test_two_processes_may_build_at_once(write_rows, cache_dir: Path) -> None:
    path = write_rows(["the river of Lumor " * 50] * 200)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        start = time.time() + 2
        counts = pool.starmap(_build, [(path, start)] * 2)
    assert counts[0] == counts[1]
    folders = [entry for entry in (cache_dir / "tokens").iterdir() if entry.is_dir()]
    assert len(folders) == 1


def test_without_locks_the_first_to_finish_wins(
    write_rows, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    path = write_rows(["a"])
    assert build_token_cache(path, tokenizer).num_documents == 1
    assert build_token_cache(path, tokenizer).num_documents == 1
