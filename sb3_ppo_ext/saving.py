"""Saving so that nothing is half written, and remembering the random streams so that a seeded run can go on.

A file or folder is written under a hidden name beside its own (``part_name``) and renamed when it is on disk. The
hidden name says which process writes, so that a later one removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import pathlib
import random
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

File = str | pathlib.Path | io.BufferedIOBase

PART = ".part"  # ends the names of what is being written
FOREIGN_PART_AGE = 86_400.0  # seconds after which a part of another host is taken for abandoned


def save_atomically(path: File, write: Callable[[io.BufferedIOBase], None]) -> None:
    """Calls ``write`` on a file beside ``path`` and moves it there when it is complete and on disk.

    ``path`` gets the suffix .zip if it has none, and missing folders are made, as ``BaseAlgorithm.save`` does.
    Into an open file it is written as it comes.
    """
    if not isinstance(path, (str, pathlib.Path)):
        write(path)
        return
    target = pathlib.Path(path)
    if target.suffix == "":
        target = pathlib.Path(f"{target}.zip")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(target.parent, target.name)
    temporary = target.parent / part_name(target.name)
    try:
        write_to_disk(temporary, write)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def save_folder_atomically(path: str | pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Calls ``write`` on a new folder beside ``path`` and moves it there when all of its files are on disk.

    A folder that is not there yet, or empty, appears in one step. In one that has files each of the new files takes its
    name in one step, and the others stay. Where ``write`` fails nothing has changed.
    """
    target = pathlib.Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(target.parent, target.name)
    temporary = target.parent / part_name(target.name)
    try:
        temporary.mkdir()
        write(temporary)
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync_file(pathlib.Path(folder, name))
            sync_folder(pathlib.Path(folder))
        _move_folder(temporary, target)
    except BaseException:
        remove(temporary)
        raise
    sync_folder(target.parent)


def _move_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames the folder, or its files one by one where there is such a folder with files already."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if not target.exists():
        os.rename(source, target)
        return
    for folder, _, names in os.walk(source):
        inside = target / pathlib.Path(folder).relative_to(source)
        inside.mkdir(exist_ok=True)
        for name in names:
            os.replace(pathlib.Path(folder, name), inside / name)
        sync_folder(inside)
    remove(source)


def sync_file(path: pathlib.Path) -> None:
    """Brings the contents of a file that another function has written to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_to_disk(path: pathlib.Path, write: Callable[[Any], object]) -> None:
    """Calls ``write`` on a new file and returns when its contents are on the disk."""
    # Not by tempfile, whose files are private: to learn the process's umask is to change it, for all threads.
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def part_name(name: str) -> str:
    """A hidden name for ``name`` while it is written: with host and process, unique."""
    return f".{name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{PART}"


def remove_stale_parts(folder: pathlib.Path, name: str = "") -> None:
    """Removes what killed processes have left of ``name``, or of anything: files and folders.

    Those of a living process of this host stay, and those of other hosts until they are a day old.
    """
    for path in folder.glob(f".{glob.escape(name)}.*{PART}" if name else f".*{PART}"):
        if _is_stale(path):
            remove(path)


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder; one that is gone already, or that may not be removed, is passed over."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_stale(part: pathlib.Path) -> bool:
    host, process = ["", *part.name.split(".")][-4:-2] if part.name.count(".") >= 4 else ("", "")
    if host == _host() and process.isdigit():
        return int(process) != os.getpid() and not _is_alive(int(process))
    try:
        return time.time() - part.stat().st_mtime > FOREIGN_PART_AGE
    except OSError:
        return False


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # where signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def sync_folder(folder: pathlib.Path) -> None:
    """Brings the names in a folder to the disk: without it a renamed file may be gone after a power failure."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do not have it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def random_state(seed: int) -> dict[str, Any]:
    """The states of the generators a model draws from, with the seed they started from."""
    # To ask for the states of a device that nothing has used would open it, which takes some of its memory.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "seed": seed,
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts the generators back where ``random_state`` found them."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
