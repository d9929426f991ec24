"""What a process finds of a checkpoint that as many processes have written as it has companions, or others."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sb3_ppo_ext.checkpoints.environments import Piece, rows_of_all
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

    Where as many processes have saved it, ``environments`` is what ``save_environments`` has made. Another number of
    them goes on with the pieces of its environments; or begins new episodes, where these are not known by shard.
    """
    state = _read(found, "state.pt")
    before, shards = found.manifest.get("processes", 1), found.manifest.get("shards")
    lines = []
    if shards != share.shards:
        lines.append(f"shards is {share.shards} here and was {shards}: its random streams are others from here on")
    as_before = before == share.processes.count and (before == 1 or shards == share.shards)
    if before > 1:
        state |= _read(found, name_of_shard(share.own.start if as_before else 0))
    if as_before:
        return state, lines
    if state["partial"] is not None:
        raise ValueError(
            f"{found.path} was saved by one process in the middle of a rollout, and {share.processes.count} resume it: "
            "let one process go on to the next update, and stop it then"
        )
    changed = f"{before} processes have saved it, and {share.processes.count} go on"
    own = _divided(found, share)
    if own is None:
        lines.append(f"{changed}: all environments begin new episodes")
        return {**state, "environments": None, "monitor_files": []}, lines
    lines.append(f"{changed}: results are equal up to rounding")
    return {**state, **own}, lines


def _divided(found: Checkpoint, share: Share) -> dict[str, Any] | None:
    """What this process goes on with of several shards; None where it has not whole ones of those that were saved."""
    shards, n_envs = found.manifest.get("shards"), int(found.manifest["n_envs"])
    first, last = (share.of(n_envs) // len(share.own) * shard for shard in (share.own.start, share.own.stop))
    if shards is None or first * shards % n_envs or last * shards % n_envs:
        return None
    pieces: list[Piece] = []
    monitor_files: list[Any] = []
    observations = []
    for saved, piece in _pieces(found, range(first * shards // n_envs, last * shards // n_envs), n_envs // shards):
        pieces.append(piece)
        observations.append(pickle.loads(saved["last"]))
        files = saved["monitor_files"]
        monitor_files += files[piece.rows.start : piece.rows.stop] if len(files) == saved["n_envs"] else []
    if any(piece.state is None for piece in pieces):  # a callback has ended the run in the middle of a step
        return None
    last_step = pickle.dumps(rows_of_all(observations, [piece.rows for piece in pieces]), protocol=5)
    return {"environments": pieces, "monitor_files": monitor_files, "last": last_step}


def _pieces(found: Checkpoint, own: range, each: int) -> Iterator[tuple[dict[str, Any], Piece]]:
    """The states of the processes that have saved some of the shards ``own``, with ``each`` environments, and these."""
    before = found.manifest.get("processes", 1)
    for rank in range(before):
        theirs = dealt(found.manifest["shards"], before, rank)
        start, stop = max(own.start, theirs.start), min(own.stop, theirs.stop)
        if start < stop:
            saved = _read(found, name_of_shard(theirs.start) if before > 1 else "state.pt")
            shards = range(start - theirs.start, stop - theirs.start)
            rows = range(shards.start * each, shards.stop * each)
            yield {**saved, "n_envs": len(theirs) * each}, Piece(saved["environments"], shards, rows)


def _read(found: Checkpoint, name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(found.path / name, map_location="cpu", weights_only=False)
    return state
