"""Freed memory is kept for the next minibatch, where the C library would hand it back to the operating system.

Minibatches of images allocate and free the same tens of megabytes again and again. glibc returns the end of its heap as
soon as that is free, and large blocks always, and gets them back page by page: up to a fifth of an update.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from sb3_ppo_ext.process_wide import ProcessWide

# Parameters of mallopt(3), and the default of the last, from glibc's malloc.h and malloc.c.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MMAP_MAX = 65536

KEPT = 512 * 2**20  # bytes at the end of the heap
FROM_HEAP = 32 * 2**20  # bytes of a block, at most; glibc's own limit, which it comes to by itself with time


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Until the end of the block large memory too comes from the heap; what the heap keeps stays set in the process."""
    if _prepared() is None:
        yield
        return
    with _from_heap():
        yield


@cache
def _from_heap() -> ProcessWide[int]:
    mallopt = _prepared()
    assert mallopt is not None
    return ProcessWide(lambda: mallopt(M_MMAP_MAX, 0), lambda _: mallopt(M_MMAP_MAX, MMAP_MAX))


@cache
def _prepared() -> Callable[[int, int], int] | None:
    """glibc's ``mallopt``, unless the user has set its parameters; its limits are set the first time."""
    set_by_user = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_"}
    if set_by_user & os.environ.keys() or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    if platform.libc_ver()[0] != "glibc":
        return None
    mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    # Both, for to set any of these ends glibc's own adjusting of them.
    mallopt(M_MMAP_THRESHOLD, FROM_HEAP)
    mallopt(M_TRIM_THRESHOLD, KEPT)
    return mallopt
