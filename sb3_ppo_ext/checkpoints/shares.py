"""What a process finds of a checkpoint that as many processes have written as it has companions, or others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sb3_ppo_ext.checkpoints.reading import Checkpoint
from sb3_ppo_ext.checkpoints.state import name_of_shard
from sb3_ppo_ext.distributed.processes import Processes
from sb3_ppo_ext.distributed.shards import dealt


@dataclass
class Share:
    """The part of a run that this process trains."""

    processes: Processes
    shards: int | None

    @property
    def own(self) -> range:
        """The shards of this process; of a run without shards, one for all."""
        return dealt(self.shards or 1, self.processes.count, self.processes.rank)

    def of(self, number: int) -> int:
        """What this process has where all have ``number`` together."""
        return number * len(self.own) // (self.shards or 1)


def share_of(processes: Processes, shards: int | None) -> Share:
    """The share of this process; several processes without ``shards`` are one each."""
    return Share(processes, processes.count if shards is None and processes.count > 1 else shards)


def state_of(found: Checkpoint, share: Share) -> tuple[dict[str, Any], list[str]]:
    """The state of the run with what is this process's own of it, and lines on what is not continued exactly.

    Environments are saved by process. Another number of processes, or of shards, therefore begins new episodes; models,
    normalisation, streams and logs go on.
    """
    state = _read(found, "state.pt")
    before, shards = found.manifest.get("processes", 1), found.manifest.get("shards")
    lines = []
    if shards != share.shards:
        lines.append(f"shards is {share.shards} here and was {shards}: its random streams are others from here on")
    if before > 1:
        same = before == share.processes.count and shards == share.shards
        state |= _read(found, name_of_shard(share.own.start if same else 0))
    if before == share.processes.count and (before == 1 or shards == share.shards):
        return state, lines
    if state["partial"] is not None:
        raise ValueError(
            f"{found.path} was saved by one process in the middle of a rollout, and {share.processes.count} resume it: "
            "let one process go on to the next update, and stop it then"
        )
    lines.append(
        f"{before} processes have saved it, and {share.processes.count} go on: all environments begin new episodes"
    )
    return {**state, "environments": None, "monitor_files": []}, lines


def _read(found: Checkpoint, name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(found.path / name, map_location="cpu", weights_only=False)
    return state
