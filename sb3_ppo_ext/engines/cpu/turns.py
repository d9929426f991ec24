"""Taking turns over a file: processes of one machine that need the same library compile it once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for ``path``; where the system has no locks, it does not wait.

    The system ends the turn of a process that is killed.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        path.unlink(missing_ok=True)  # a process that waits finds the library when its turn comes
        os.close(descriptor)
