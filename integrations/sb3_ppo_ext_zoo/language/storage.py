"""Folders that are kept between processes: there as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sb3_ppo_ext.engines.cpu.libraries import CompileError, folder

SEAL = "seal"  # a file with the digest of all others: half a copy, left by a full disk, say, is as good as none


def kept(name: str) -> Path | None:
    """The folder of this name; None where there is none, or not a whole one."""
    try:
        path = _place() / name
        return path if (path / SEAL).read_text(encoding="ascii") == _digest(path) else None
    except (OSError, ValueError):
        return None


def keep(name: str, write: Callable[[Path], None]) -> Path:
    """Has ``write`` fill a folder, which then gets this name at once; the folder.

    ``OSError`` where nothing can be written. Two processes may do this at the same time: the first one's stays.
    """
    place = _place()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".pretraining-", dir=place) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        write(made)
        (made / SEAL).write_text(_digest(made), encoding="ascii")
        try:
            os.rename(made, place / name)
        except OSError:
            if kept(name) is None:  # what is in the way is no other process's, which came first, but a damaged one
                shutil.rmtree(place / name)
                os.rename(made, place / name)
    return place / name


def _place() -> Path:
    try:
        return folder() / "models"
    except CompileError as error:  # a user without a home
        raise OSError(str(error)) from error


def _digest(path: Path) -> str:
    text = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name != SEAL:
            text.update(file.name.encode() + file.read_bytes())
    return text.hexdigest()
