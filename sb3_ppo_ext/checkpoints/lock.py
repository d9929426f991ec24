"""One process at a time trains in the folder of a run: a requeued job may start before the first one has ended."""

from __future__ import annotations

import errno
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sb3_ppo_ext.checkpoints.reading import CheckpointWarning

NAME = ".lock"  # in the folder of the run
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of file systems

_held: set[Path] = set()  # by this process, for which the system's lock is open


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the lock of a run's folder; ``ValueError`` where that cannot be written, or is held.

    The system releases it when the process ends, however it ends.
    """
    path = run / NAME
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666) if run.resolve() not in _held else -1
    except OSError as error:
        raise ValueError(f"{run}: no checkpoints can be written there ({error}); name another folder") from error
    if descriptor == -1 or not _lock(descriptor, path):
        holder = _holder(descriptor) if descriptor != -1 else "this process, in another learn()"
        raise ValueError(
            f"{run}: another training holds this folder ({holder}). Wait until it has ended, or name another folder"
        )
    held = run.resolve()
    _held.add(held)
    try:
        _describe(descriptor)
        yield
    finally:
        _held.discard(held)
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """Takes the lock if it is free. Workers that are forked from the process would hold a lock of ``flock`` too."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            return False
        warnings.warn(
            f"{path}: this file system has no locks ({error}): see to it that no second process trains there",
            CheckpointWarning,
            stacklevel=4,
        )
    return True


def _holder(descriptor: int) -> str:
    try:
        text = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    except OSError:
        text = ""
    finally:
        os.close(descriptor)
    return text or "another process"


def _describe(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError:  # a full disk: the lock holds all the same
        return
