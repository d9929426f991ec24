"""Memory that is freed and allocated again comes from the heap, without the operating system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from sb3_ppo_ext.host import glibc

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# The pages that the operating system has to find for a block that is written and freed twice more.
# The larger one at the end does not fit into what the heap has kept.
PROGRAM = """
import resource, runpy, sys
take_large_blocks_from_heap = runpy.run_path(sys.argv[1])["take_large_blocks_from_heap"]

def faults(size=2**26):
    before = 0
    for turn in range(3):
        block = bytearray(b"1") * size
        del block
        if turn == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = [faults()]
take_large_blocks_from_heap(True)
counts.append(faults())
take_large_blocks_from_heap(False)
print(*counts, faults(2**27))
"""


def faults(**environment: str) -> list[int]:
    command = [sys.executable, "-c", PROGRAM, glibc.__file__]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_large_blocks_from_the_heap_are_not_fetched_again_and_afterwards_they_are_as_before() -> None:
    before, inside, after = faults()
    assert before > 10_000  # 64 MiB are 16,384 pages of 4 KiB, fewer where pages are larger
    assert inside < before // 100
    assert after > before


@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_an_allocator_that_the_user_has_set_up_is_left_alone(setting: dict[str, str]) -> None:
    before, inside, _ = faults(**setting)
    assert inside > before // 2
