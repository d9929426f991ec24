"""A run is resumed from the newest checkpoint that is complete and undamaged; others are named and skipped."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_ppo_ext.checkpoints.folder import FOLDER, fault, read_manifest, stored


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written or used, or a resumed run does not go on exactly as the one that stopped."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be used."""

    path: Path
    manifest: dict[str, Any]


def newest(run: Path) -> Checkpoint | None:
    """The newest usable checkpoint of a run; None where it has none at all.

    Unusable ones are skipped with a ``CheckpointWarning``. Where there are only such, it is a ``ValueError``: to begin
    anew in their place would be to lose the run without a word.
    """
    faults: list[str] = []
    for path in stored(run):
        reason = fault(path)
        if reason is None:
            if faults:
                warnings.warn(f"{'; '.join(faults)}. {path.name} is used instead", CheckpointWarning, stacklevel=3)
            return Checkpoint(path, read_manifest(path))
        faults.append(f"checkpoint {path} cannot be used: {reason}")
    if faults:
        raise ValueError(
            f"{run}: none of its checkpoints can be used. {'; '.join(faults)}. "
            f"Restore one from a copy, or move {run / FOLDER} away to begin anew"
        )
    return None


def required(run: Path) -> Checkpoint:
    """The newest usable checkpoint; ``ValueError`` where there is none."""
    found = newest(run)
    if found is None:
        raise ValueError(
            f"{run}: there is no checkpoint to resume (none in {run / FOLDER}). Name the folder that was given to "
            "learn(checkpoint=Checkpoints(FOLDER)), or begin the run with it"
        )
    return found
