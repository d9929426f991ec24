"""Checkpoints of a training loop: the loss, schedules, optimizer and whatever else has a state, in one call."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Protocol

import torch

from sb3_ppo_ext.checkpoints.folder import clean, prune, write_checkpoint
from sb3_ppo_ext.checkpoints.reading import newest
from sb3_ppo_ext.saving import random_state, restore_random_state

STATE = "state.pt"


class Stateful(Protocol):
    """As modules, optimizers, schedulers, collectors and samplers of torch and TorchRL."""

    def state_dict(self) -> Any:
        """What it depends on."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Goes on from there."""


class LoopCheckpoints:
    """
    Saves and resumes a loop, with the random streams of the process.

    ``checkpoints = LoopCheckpoints("run", loss=loss, optimizer=optimizer, scheduler=scheduler)``, then
    ``frames = checkpoints.resume()`` before the loop (0 where there is nothing to resume), and
    ``checkpoints.save(frames)`` in it, after a batch has been trained on. A crash at any moment leaves the checkpoint
    before. What the loop measures between two calls it keeps itself, or gives as an object with a state.

    :param folder: of the run
    :param keep: how many checkpoints stay
    :param objects: each with ``state_dict()`` and ``load_state_dict()``, under a name: the loss (its networks are part
        of it), the optimizer, a ``KnobScheduler``, a collector
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, **objects: Stateful) -> None:
        if not objects:
            raise ValueError("LoopCheckpoints has nothing to save: name the loss, the optimizer, the scheduler")
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint has to stay")
        for name, stateful in objects.items():
            if not (hasattr(stateful, "state_dict") and hasattr(stateful, "load_state_dict")):
                raise ValueError(f"{name}={stateful!r}: it has no state_dict() and load_state_dict() to save it by")
        self.folder, self.keep, self.objects = Path(folder).expanduser().absolute(), keep, objects

    def save(self, frames: int) -> Path:
        """A checkpoint after so many frames; ``OSError`` where it cannot be written."""
        content = io.BytesIO()
        states = {name: stateful.state_dict() for name, stateful in self.objects.items()}
        torch.save({"frames": frames, "streams": random_state(0), "objects": states}, content)
        files: dict[str, Any] = {STATE: lambda file: file.write(content.getbuffer())}
        path = write_checkpoint(self.folder, frames, files, {"objects": sorted(states)})
        prune(self.folder, self.keep)
        return path

    def resume(self) -> int:
        """Puts the newest usable checkpoint back and returns its frames; 0 where there is none."""
        clean(self.folder)
        found = newest(self.folder)
        if found is None:
            return 0
        if found.manifest["objects"] != sorted(self.objects):
            raise ValueError(
                f"{self.folder}: its checkpoints hold {', '.join(found.manifest['objects'])}, and this loop has "
                f"{', '.join(sorted(self.objects))}; name the same objects, or another folder"
            )
        state = torch.load(found.path / STATE, map_location="cpu", weights_only=False)
        for name, stateful in self.objects.items():
            stateful.load_state_dict(state["objects"][name])
        restore_random_state(state["streams"])
        return int(state["frames"])
