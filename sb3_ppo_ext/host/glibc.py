"""The allocator of the C library glibc, on Linux: what it returns to the operating system when memory is freed.

Assumed: ``mallopt(3)`` with the parameters of glibc's malloc.h, whose settings hold for the whole process.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from functools import cache

# Parameters of mallopt(3), and the default of the last, from glibc's malloc.h and malloc.c.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MMAP_MAX = 65536

HEAP_END = 512 * 2**20  # bytes of free memory at the end of the heap that are not returned
FROM_HEAP = (
    32 * 2**20
)  # bytes of a block from the heap, at most; glibc's limit, which it also reaches by itself in time


@cache
def adjustable_mallopt() -> Callable[[int, int], int] | None:
    """``mallopt``, its limits set; None where the C library is another one or the user has set its allocator up."""
    set_by_user = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_"}
    if set_by_user & os.environ.keys() or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    if platform.libc_ver()[0] != "glibc":
        return None
    mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    # Both, because glibc adjusts neither by itself once either is set.
    mallopt(M_MMAP_THRESHOLD, FROM_HEAP)
    mallopt(M_TRIM_THRESHOLD, HEAP_END)
    return mallopt


def take_large_blocks_from_heap(from_heap: bool) -> None:
    """Large blocks come from the heap, or, by default, from the operating system, to which they return when freed."""
    if (mallopt := adjustable_mallopt()) is not None:
        mallopt(M_MMAP_MAX, 0 if from_heap else MMAP_MAX)
