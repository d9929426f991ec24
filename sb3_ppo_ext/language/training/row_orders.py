"""The random orders in which the responses of a rollout are trained on.

A rollout is T steps of N environments, and a response is the row t * N + i of its step t and environment i.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sb3_ppo_ext.distributed.shards import ROWS, Shards
from sb3_ppo_ext.run import Run


class MinibatchRows(NamedTuple):
    """The responses of a minibatch: those of all processes [B], and which of them this process trains."""

    of_all: np.ndarray  # [B], rows of the rollout of all processes
    collected: np.ndarray  # [B'], rows of the rollout of this process
    share: slice  # the position of the latter among the former


class RowOrder:
    """One order of all responses, from numpy's generator; ``branches`` that share a prompt stay together."""

    def __init__(self, size: int, branches: int = 1) -> None:
        self.size, self.branches = size, branches

    def minibatches(self, batch_size: int) -> Iterator[MinibatchRows]:
        """The minibatches of one epoch, in a new order; the last may be smaller."""
        order = with_neighbours(np.random.permutation(self.size // self.branches), self.branches)
        for start in range(0, self.size, batch_size):
            rows = order[start : start + batch_size]
            yield MinibatchRows(rows, rows, slice(None))


class ShardedRowOrders:
    """An order for each shard, which has the same part of every minibatch.

    Every process draws the orders of all shards, and so has every minibatch as a whole.
    """

    def __init__(self, shards: Shards, moment: int, n_steps: int, n_envs: int, branches: int = 1) -> None:
        """``moment``: the epochs before this rollout; ``n_envs``: the environments of this process.

        ``branches`` that share a prompt stay together.
        """
        self.shards, self.n_steps, self.n_envs, self.branches = shards, n_steps, n_envs, branches
        self.in_shard = n_envs // len(shards.own)
        self.generators = [np.random.default_rng(shards.stream(shard, ROWS, moment)) for shard in range(shards.count)]

    def minibatches(self, batch_size: int) -> Iterator[MinibatchRows]:
        """The minibatches of one epoch, with ``batch_size`` of this process; the rows of a shard stand together."""
        each, length = batch_size // len(self.shards.own), self.n_steps * self.in_shard
        orders = [
            with_neighbours(generator.permutation(length // self.branches), self.branches)
            for generator in self.generators
        ]
        for start in range(0, length, each):
            parts = [order[start : start + each] for order in orders]
            first, after = (len(parts[0]) * shard for shard in (self.shards.own.start, self.shards.own.stop))
            yield MinibatchRows(
                self._rows(parts, range(self.shards.count), self.shards.of_all(self.n_envs)),
                self._rows(parts, self.shards.own, self.n_envs),
                slice(first, after),
            )

    def _rows(self, parts: list[np.ndarray], shards: range, n_envs: int) -> np.ndarray:
        """The rows, in a rollout of the ``shards`` with ``n_envs`` environments, of the numbers that ``parts`` have."""
        steps, envs = np.divmod(np.stack([parts[shard] for shard in shards]), self.in_shard)
        first = np.arange(len(shards))[:, None] * self.in_shard
        rows: np.ndarray = (steps * n_envs + first + envs).reshape(-1)
        return rows


def with_neighbours(groups: np.ndarray, size: int) -> np.ndarray:
    """The rows of groups of ``size`` rows that follow each other, by the groups' numbers [G]."""
    rows: np.ndarray = (groups[:, None] * size + np.arange(size)).reshape(-1)
    return rows


def row_orders(run: Run, n_steps: int, n_envs: int, branches: int = 1) -> RowOrder | ShardedRowOrders:
    """The orders of a rollout of ``n_steps`` steps by this process's ``n_envs`` environments.

    ``branches``: how many responses, of environments beside each other, share a prompt in training.
    """
    if run.shards is None:
        return RowOrder(n_steps * n_envs, branches)
    return ShardedRowOrders(run.shards, run.n_updates, n_steps, n_envs, branches)
