"""Freed memory stays in the process, unless the user has set the C library otherwise, and few
compiled products do."""

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


CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
MANY_SHAPES = """
import minimind, torch
x, w = torch.ones(1000, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16)
def resident():
    return int(open("/proc/self/statm").read().split()[1])
before = resident()
for rows in range(100, 1000):
    x[:rows] @ w
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_of_many_shapes_take_less_memory_than_pytorch_keeps() -> None:
    def pages(**caches: str) -> int:
        env = {name: value for name, value in os.environ.items() if name not in CACHES} | caches
        command = [sys.executable, "-c", MANY_SHAPES]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    by_default = pages(**dict.fromkeys(CACHES, "1024"))
    assert pages() < 0.75 * by_default or by_default < 25_000, "a CPU without such products"
