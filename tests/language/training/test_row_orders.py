"""The orders of the shards' responses: those of a minibatch, in the whole rollout and in that of a process."""

from __future__ import annotations

import numpy as np

from sb3_ppo_ext.distributed.shards import Shards, dealt
from sb3_ppo_ext.language.training.row_orders import MinibatchRows, ShardedRowOrders

STEPS, SHARDS, IN_SHARD = 3, 4, 2
ENVS = SHARDS * IN_SHARD


def epochs(processes: int, rank: int, batch_size: int) -> list[MinibatchRows]:
    """Two epochs of a process; ``batch_size`` is that of all."""
    shards = Shards(SHARDS, dealt(SHARDS, processes, rank), seed=1)
    orders = ShardedRowOrders(shards, 0, STEPS, shards.of_own(ENVS))
    return [rows for _ in range(2) for rows in orders.minibatches(shards.of_own(batch_size))]


def test_every_response_comes_once_in_an_epoch() -> None:
    rows = [minibatch.of_all for minibatch in epochs(1, 0, 16)]
    assert [len(minibatch) for minibatch in rows] == [16, 8, 16, 8]  # 24 responses
    for epoch in (rows[:2], rows[2:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(STEPS * ENVS))
    assert (rows[0] != rows[2]).any()


def test_processes_share_out_the_minibatches_of_one() -> None:
    alone = epochs(1, 0, 8)
    for processes in (2, 3):
        ranks = [epochs(processes, rank, 8) for rank in range(processes)]
        for whole, *parts in zip(alone, *ranks, strict=True):
            assert all((part.of_all == whole.of_all).all() for part in parts)
            shares = np.concatenate([part.of_all[part.share] for part in parts])
            assert (shares == whole.of_all).all()
            assert (whole.collected == whole.of_all).all()


def test_a_response_has_its_place_in_the_rollout_of_its_process() -> None:
    shards = dealt(SHARDS, 3, 0)  # two of the four
    for rows in epochs(3, 0, 8):
        steps, envs = np.divmod(rows.collected, len(shards) * IN_SHARD)
        assert (rows.of_all[rows.share] == steps * ENVS + envs).all()  # the first environments of all
