"""The episodes that all processes have finished in a rollout, in the order in which one process would meet them."""

from __future__ import annotations

from collections import deque
from typing import Any

from sb3_ppo_ext.distributed.processes import Processes

BUFFERS = ("ep_info_buffer", "ep_success_buffer")


class TimedEntries(deque[Any]):
    """A deque that notes the timestep of every entry that is appended to it."""

    def __init__(self, entries: deque[Any], model: Any) -> None:
        super().__init__(entries, entries.maxlen)
        self.before = list(entries)
        self.model = model
        self.new: list[tuple[int, Any]] = []

    def append(self, entry: Any) -> None:
        """Appends the entry."""
        self.new.append((self.model.num_timesteps, entry))
        super().append(entry)

    def extend(self, entries: Any) -> None:
        """Appends the entries."""
        for entry in entries:
            self.append(entry)

    def __reduce__(self) -> tuple[Any, ...]:
        """A saved model has a plain deque."""
        return deque, (list(self), self.maxlen)


def time_episodes(model: Any, processes: Processes) -> None:
    """Before a rollout by several processes, whose episodes ``merge_episodes`` joins afterwards."""
    if processes.count > 1:
        for name in BUFFERS:
            setattr(model, name, TimedEntries(getattr(model, name), model))


def merge_episodes(model: Any, processes: Processes) -> None:
    """Gives every process the episodes of all, by the timestep of their end and then by environment."""
    if processes.count == 1:
        return
    mine: list[TimedEntries] = [getattr(model, name) for name in BUFFERS]
    of_all = processes.objects([entries.new for entries in mine])
    for index, (name, entries) in enumerate(zip(BUFFERS, mine, strict=True)):
        # sorted() keeps the order of ranks, and so of environments, within a timestep.
        new = sorted((item for lists in of_all for item in lists[index]), key=lambda item: item[0])
        setattr(model, name, deque([*entries.before, *(entry for _, entry in new)], entries.maxlen))
