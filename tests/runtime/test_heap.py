"""Freed memory stays in the process, unless the user has set the C library otherwise."""

import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
from minimind.runtime.heap import keep_freed_memory

def fill_and_free():
    block = bytearray(64 << 20)
    block[:: 4096] = bytes(len(block) // 4096)

keep_freed_memory()
fill_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (64 << 20) // 4096


def count_faults(**environment: str) -> int:
    """Counts the pages that a process gets from the kernel for a block of PAGES pages, after it has
    freed one like it."""
    environment = {k: v for k, v in os.environ.items() if "MALLOC" not in k} | environment
    command = [sys.executable, "-c", COUNT_FAULTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_freed_block_is_used_again() -> None:
    assert count_faults() < PAGES / 50


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}],
)
def test_the_users_own_setting_stands(setting: dict[str, str]) -> None:
    kept, set_by_user = count_faults(), count_faults(**setting)

    assert set_by_user > 10 * kept  # huge pages make few faults of many pages
