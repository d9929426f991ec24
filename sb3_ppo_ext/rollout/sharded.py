"""A rollout of several shards: every shard has its own order of rows, and the same part of every minibatch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from sb3_ppo_ext.distributed.moments import moments_of
from sb3_ppo_ext.distributed.shards import ROWS
from sb3_ppo_ext.rollout.device_minibatches import DeviceRollout
from sb3_ppo_ext.rollout.lost_rows import without_lost
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run


class ShardedRollout(Rollout):
    """The rows of the shards of this process; advantages are normalised over the rows of all processes."""

    def __init__(self, run: Run, buffer: RolloutBuffer) -> None:
        assert run.shards is not None
        self.shards, self.processes = run.shards, run.processes
        self._normalizes_minibatches = run.settings.normalizes_over("minibatch")
        self._generators = [
            np.random.default_rng(self.shards.stream(shard, ROWS, run.n_updates)) for shard in self.shards.own
        ]
        super().__init__(buffer, run.action_space, normalize_advantage=run.settings.normalizes_over("rollout"))

    def orders(self, batch_size: int) -> tuple[Tensor, ...]:
        """The row indices of the minibatches of one epoch, of ``batch_size`` rows; those of a shard stand together.

        Where advantages are normalised over each minibatch, ``rows`` has those of this epoch afterwards.
        """
        own = len(self.shards.own)
        length = self.size // own
        of_shards = [
            torch.split(self._order_of_shard(generator.permutation(length), index * length), batch_size // own)
            for index, generator in enumerate(self._generators)
        ]
        orders = tuple(torch.cat(rows).to(self.buffer.device) for rows in zip(*of_shards, strict=True))
        if self._normalizes_minibatches:
            self._normalize_minibatches(orders)
        return orders

    def _order_of_shard(self, permutation: np.ndarray, first: int) -> Tensor:
        return without_lost(torch.from_numpy(permutation) + first, self.lost)

    def _set_advantage(self) -> None:
        advantage = self._flat(self.buffer.advantages).flatten()
        if self.normalize_advantage:
            group = self._lost_in_group(1, torch.zeros_like(advantage, dtype=torch.long))
            advantage = moments_of(advantage, group, 2, self.processes).normalized(advantage, group)
        self.advantage = advantage

    def _lost_in_group(self, number: int, group: Tensor) -> Tensor:
        """Puts the rows that are lost into a group of their own, which is empty in most rollouts."""
        return group if self.lost is None else group.index_fill(0, self.lost, number)

    def _normalize_minibatches(self, orders: tuple[Tensor, ...]) -> None:
        group = torch.zeros_like(self.advantage, dtype=torch.long)
        for index, rows in enumerate(orders):
            group[rows] = index
        group = self._lost_in_group(len(orders), group)
        moments = moments_of(self.advantage, group, len(orders) + 1, self.processes)
        self.rows = self.rows._replace(advantage=moments.normalized(self.advantage, group))

    def explained_variance(self) -> float:
        """``1 - Var(returns - values) / Var(returns)`` over all processes; NaN where the returns are all equal."""
        columns = torch.cat((self.value_target - self.state_value, self.value_target))
        group = torch.arange(2, device=columns.device).repeat_interleave(self.size)
        residual, returns = moments_of(columns, group, 2, self.processes).deviations().tolist()
        return 1 - residual / returns if returns > 0 else float("nan")

    def spread_rows(self, count: int) -> Tensor:
        """Indices of about ``count`` rows of all processes, evenly spread over each shard."""
        length = self.size // len(self.shards.own)
        in_shard = torch.linspace(0, length - 1, max(count // self.shards.count, 1), device=self.buffer.device).long()
        return torch.cat([in_shard + index * length for index in range(len(self.shards.own))])


class ShardedDeviceRollout(ShardedRollout, DeviceRollout):
    """A ``ShardedRollout`` whose buffer is on the device."""


def sharded_rollout(run: Run, *, on_device: bool) -> Rollout:
    """The rollout in ``run.buffer`` by shards."""
    kind: Any = ShardedDeviceRollout if on_device else ShardedRollout
    rollout: Rollout = kind(run, run.buffer)
    return rollout
