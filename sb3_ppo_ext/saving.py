"""Saving so that nothing is half written, and remembering the random streams so that a seeded run can go on."""

from __future__ import annotations

import io
import os
import pathlib
import random
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

File = str | pathlib.Path | io.BufferedIOBase


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
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        # Not by tempfile, whose files are private: to learn the process's umask is to change it, for all threads.
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
