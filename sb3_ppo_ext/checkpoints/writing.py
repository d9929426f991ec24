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

from sb3_ppo_ext.checkpoints.folder import Writer, clean, free_bytes, prune, size_of, write_checkpoint
from sb3_ppo_ext.checkpoints.reading import CheckpointWarning
from sb3_ppo_ext.checkpoints.settings import Checkpoints

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

    def begin(self) -> None:
        """Prepares for a ``learn()`` that has locked the folder."""
        clean(self.run)
        self.last_try = time.monotonic()

    def due(self, intervals: float = 1.0) -> bool:
        """True when so many intervals have passed since the last try. Failures make the intervals longer."""
        wait = self.settings.interval * min(2.0**self._failures, LONGEST_WAIT)
        return time.monotonic() - self.last_try >= intervals * wait

    def write(self, model: Any, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """A checkpoint, and older ones go; ``OSError`` where it cannot be written."""
        try:
            self._require_room()
            files: dict[str, Writer] = {"model.zip": model.save, "state.pt": _writer_of(state)}
            if (normalize := model.get_vec_normalize_env()) is not None:
                files["vecnormalize.pkl"] = lambda file: pickle.dump(normalize, file)
            all_about = {"run": self.run_id, "class": type(model).__qualname__, **versions(), **about}
            self.last = write_checkpoint(self.run, model.num_timesteps, files, all_about)
        except RuntimeError as error:  # torch's, of an OSError that its writer met
            cause = _os_error_below(error)
            if cause is None:
                raise
            raise cause from error
        finally:
            self.last_try = time.monotonic()
        self._failures, self._size = 0, size_of(self.last)
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
            if self._failures == 0:
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


def _writer_of(state: Mapping[str, Any]) -> Any:
    # Into memory first: torch's own writer aborts the process where a file is full.
    content = io.BytesIO()
    torch.save(dict(state), content)
    return lambda file: file.write(content.getbuffer())


def _os_error_below(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
