"""When a run is saved, and what becomes of it where that fails: it goes on, with one warning, and tries again."""

from __future__ import annotations

import io
import pickle
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stable_baselines3
import torch

from sb3_ppo_ext.checkpoints.folder import (
    Writer,
    clean,
    free_bytes,
    in_all_or_none,
    prune,
    size_of,
    write_checkpoint,
)
from sb3_ppo_ext.checkpoints.reading import CheckpointWarning
from sb3_ppo_ext.checkpoints.settings import Checkpoints
from sb3_ppo_ext.checkpoints.state import OF_PROCESS, name_of_shard
from sb3_ppo_ext.distributed.processes import Processes

ROOM = 1.2  # times the last checkpoint's size that has to be free
LONGEST_WAIT = 16.0  # times the interval, between tries that fail


class CheckpointWriter:
    """Writes the checkpoints of one run."""

    def __init__(self, settings: Checkpoints, run_id: str | None = None) -> None:
        self.settings = settings
        self.run = settings.run
        self.run_id = run_id or uuid.uuid4().hex
        self.last_try = time.monotonic()
        self.last: Path | None = None
        self._failures = 0
        self._size = 0

    def begin(self, processes: Processes) -> None:
        """Prepares for a ``learn()`` that has locked the folder."""
        if processes.rank == 0:
            clean(self.run)
        self.last_try = time.monotonic()

    def due(self, intervals: float = 1.0) -> bool:
        """True when so many intervals have passed since the last try. Failures make the intervals longer."""
        wait = self.settings.interval * min(2.0**self._failures, LONGEST_WAIT)
        return time.monotonic() - self.last_try >= intervals * wait

    def write(self, model: Any, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """A checkpoint, and older ones go; ``OSError`` where it cannot be written."""
        processes = model._processes
        try:
            with in_all_or_none(processes):
                self._require_room()
            all_about = {"run": self.run_id, "class": type(model).__qualname__, **versions(), **about}
            files = _files(model, state)
            self.last = write_checkpoint(self.run, model.num_timesteps, files, all_about, processes)
        finally:
            self.last_try = time.monotonic()
        self._failures, self._size = 0, size_of(self.last)
        if processes.rank == 0:
            prune(self.run, self.settings.keep)

    def _require_room(self) -> None:
        free = free_bytes(self.run)
        if free < ROOM * self._size:
            raise OSError(f"{free:,} bytes are free, and the last checkpoint had {self._size:,}")

    def try_to_write(self, model: Any, state: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
        """The same; an ``OSError`` is warned of once, until it works again."""
        try:
            self.write(model, state, about)
        except OSError as error:
            if self._failures == 0 and model._processes.rank == 0:
                warnings.warn(
                    f"{self.run}: no checkpoint could be written ({error}). Training goes on, the last one "
                    f"({'none yet' if self.last is None else self.last.name}) stays, and it is tried again",
                    CheckpointWarning,
                    stacklevel=2,
                )
            self._failures += 1
            return False
        return True


def versions() -> dict[str, str]:
    """Versions of the libraries that a checkpoint depends on, as the manifest names them."""
    return {"stable_baselines3": stable_baselines3.__version__, "torch": torch.__version__}


def _files(model: Any, state: Mapping[str, Any]) -> dict[str, Writer]:
    """The files of this process: of rank 0 those of the run, and of each of several what it has of its own."""
    processes = model._processes
    files: dict[str, Writer] = {}
    if processes.count > 1:
        files[name_of_shard(model._shards.own.start)] = _writer_of({name: state[name] for name in OF_PROCESS})
        state = {name: value for name, value in state.items() if name not in OF_PROCESS}
    if processes.rank == 0:
        files |= {"model.zip": model.save, "state.pt": _writer_of(state)}
        if (normalize := model.get_vec_normalize_env()) is not None:
            files["vecnormalize.pkl"] = lambda file: pickle.dump(normalize, file)
    return files


def _writer_of(state: Mapping[str, Any]) -> Any:
    # Into memory first: torch's own writer aborts the process where a file is full.
    content = io.BytesIO()
    torch.save(dict(state), content)
    return lambda file: file.write(content.getbuffer())
