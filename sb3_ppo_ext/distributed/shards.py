"""Shards: the fixed parts of a run's environments, whose number decides its numbers, however many processes train them.

A shard has its own random streams, the same part of every minibatch, and its environments have fixed indices. A process
trains one shard or several. Streams are derived from seed, shard and moment: no generator has a state to be saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# What a stream is for.
ACTING, ROWS = 0, 1


@dataclass(frozen=True)
class Shards:
    """All shards of a run, and those that this process trains."""

    count: int
    own: range  # their indices
    seed: int  # of all random streams

    @property
    def share(self) -> float:
        """The weight of this process's rows among all rows of a minibatch."""
        return len(self.own) / self.count

    def of_all(self, number: int) -> int:
        """What all processes have together where this process has ``number``, of rows or environments."""
        return number * self.count // len(self.own)

    def of_own(self, number: int) -> int:
        """What this process has where all have ``number`` together."""
        return number * len(self.own) // self.count

    def first_of(self, number: int) -> int:
        """The index in the run of the first of the ``number`` environments of this process."""
        return self.own.start * (number // len(self.own))

    def stream(self, shard: int, purpose: int, moment: int) -> np.random.SeedSequence:
        """The source of the random numbers of one shard, for one purpose, from a moment of the run on."""
        return np.random.SeedSequence(self.seed, spawn_key=(shard, purpose, moment))


def n_envs_of_all(model: Any) -> int:
    """The environments of all processes that train ``model``, a PPOX."""
    number: int = model.n_envs
    return number if model._shards is None else model._shards.of_all(number)


def dealt(count: int, processes: int, rank: int) -> range:
    """The shards of the process ``rank``: contiguous runs, the first ones longer by one where it does not come out."""
    each, longer = divmod(count, processes)
    start = rank * each + min(rank, longer)
    return range(start, start + each + (rank < longer))
