"""Folders that are shared by processes: each is complete or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

# This file holds the digest of all others, so that a damaged folder (a full disk, say) is detected.
SEAL = "seal"


def stored(name: str) -> Path | None:
    """The folder of this name; None where it is absent or damaged."""
    try:
        path = _parent() / name
        return path if (path / SEAL).read_text(encoding="ascii") == _digest(path) else None
    except (OSError, ValueError):
        return None


def store(name: str, write: Callable[[Path], None]) -> Path:
    """The folder of this name, filled by ``write`` and then renamed in one step.

    ``OSError`` where nothing can be written. If two processes store the same name, the first folder stays.
    """
    parent = _parent()
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".pretraining-", dir=parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        write(made)
        (made / SEAL).write_text(_digest(made), encoding="ascii")
        try:
            os.rename(made, parent / name)
        except OSError:
            if stored(name) is None:  # a damaged folder has this name, not one that another process has just stored
                shutil.rmtree(parent / name)
                os.rename(made, parent / name)
    return parent / name


def _parent() -> Path:
    if chosen := os.environ.get("SB3_PPO_EXT_CACHE_DIR"):
        return Path(chosen) / "models"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sb3_ppo_ext" / "models"
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from error


def _digest(path: Path) -> str:
    text = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name != SEAL:
            text.update(file.name.encode() + file.read_bytes())
    return text.hexdigest()
