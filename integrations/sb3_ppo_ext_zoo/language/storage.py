"""Folders that are kept between processes: there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sb3_ppo_ext.artifacts import CompileError, folder

COMPLETE = "complete"  # written last: a folder without it was left half copied, by a backup say


def kept(name: str) -> Path | None:
    """The folder of this name if it is there; None where it is not, or is not whole."""
    try:
        path = _place() / name
        return path if (path / COMPLETE).is_file() else None
    except OSError:
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
        (made / COMPLETE).touch()
        if kept(name) is None:
            shutil.rmtree(place / name, ignore_errors=True)
            try:
                os.rename(made, place / name)
            except OSError:
                if kept(name) is None:  # it was not another process that came first
                    raise
    return place / name


def _place() -> Path:
    try:
        return folder() / "models"
    except CompileError as error:  # a user without a home
        raise OSError(str(error)) from error
