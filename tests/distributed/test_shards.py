"""Shards in one process: what belongs to which, and that they alone decide a run's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.distributed.moments import moments_of
from sb3_ppo_ext.distributed.processes import ALONE
from sb3_ppo_ext.distributed.shards import ACTING, ROWS, Shards, dealt
from sb3_ppo_ext.joint_start import moving
from sb3_ppo_ext.objective.losses import normalized
from sb3_ppo_ext.rollout.sharded import ShardedRollout
from tests.cases import CASES, environments
from tests.distributed.jobs import case_model
from tests.environments import Toy
from tests.rollout_buffers import Doubling


def test_shards_are_dealt_in_runs_of_equal_length_or_one_more() -> None:
    assert [dealt(8, 3, rank) for rank in range(3)] == [range(3), range(3, 6), range(6, 8)]
    for processes in range(1, 8):
        dealt_to = [dealt(7, processes, rank) for rank in range(processes)]
        assert [shard for own in dealt_to for shard in own] == list(range(7))
        assert {len(own) for own in dealt_to} <= {7 // processes, 7 // processes + 1}


def test_streams_differ_by_shard_purpose_moment_and_seed() -> None:
    shards = Shards(2, range(2), seed=1)
    streams = [shards.stream(shard, purpose, at) for shard in (0, 1) for purpose in (ACTING, ROWS) for at in (0, 64)]
    streams.append(Shards(2, range(2), seed=2).stream(0, ACTING, 0))
    assert len({int(stream.generate_state(1)[0]) for stream in streams}) == len(streams)


def filled(shards: int) -> tuple[PPOX, ShardedRollout]:
    model = case_model("box", shards)
    model.learn(64)
    return model, ShardedRollout(model._run(), model.rollout_buffer)


def test_every_shard_has_the_same_part_of_every_minibatch_and_each_row_comes_once() -> None:
    _, rollout = filled(2)
    orders = rollout.orders(24)
    assert torch.cat(orders).sort().values.equal(torch.arange(64))
    for rows in orders:
        of_first = rows < 32  # rows are by environment, and two environments of 16 steps make a shard
        assert of_first.sum() * 2 == len(rows) and of_first[: len(rows) // 2].all()


def test_advantages_of_a_minibatch_are_normalised_as_in_one_process() -> None:
    _, rollout = filled(4)
    raw = rollout.advantage.clone()
    for rows in rollout.orders(16):
        torch.testing.assert_close(rollout.rows.advantage[rows], normalized(raw[rows]))


def test_moments_of_equal_and_of_single_numbers() -> None:
    numbers, group = torch.tensor([3.0, 3.0, 3.0, 7.0]), torch.tensor([0, 0, 0, 1])
    moments = moments_of(numbers, group, 2, ALONE)
    assert moments.normalized(numbers, group).tolist() == [0.0, 0.0, 0.0, 7.0]  # one number stays as it is


def test_the_whole_run_is_a_matter_of_seed_and_shards_alone() -> None:
    parameters = []
    for global_seed in (0, 1):
        model = case_model("gSDE")
        torch.manual_seed(global_seed), np.random.seed(global_seed)
        parameters.append(torch.cat([p.flatten() for p in model.learn(128).policy.parameters()]))
    assert parameters[0].equal(parameters[1])


def test_saved_and_loaded_it_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    model = case_model("gSDE").learn(64)
    model.save(tmp_path / "model")
    loaded = PPOX.load(tmp_path / "model", env=case_model("gSDE").env, device="cpu")
    assert loaded.shards == 2 and vars(loaded)["_shards"] == vars(model)["_shards"]
    seed = 5
    for continued in (model, loaded):
        assert continued.env is not None
        continued.env.seed(seed)
        continued._last_obs = None
        continued.learn(128, reset_num_timesteps=False)
    theirs = dict(loaded.policy.named_parameters())
    assert all(parameter.equal(theirs[name]) for name, parameter in model.policy.named_parameters())


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 0}, "shards=0: a whole number"),
        ({"shards": 1.5}, "shards=1.5: a whole number"),
        ({"shards": 4, "batch_size": 6}, "batch_size=6: .* 4 can be divided by 4"),
        ({"shards": 8}, "n_envs=2, which cannot be divided among the 8"),
        ({"shards": 2, "rollout_buffer_class": Doubling}, "Doubling draws its minibatches"),
    ],
)
def test_what_cannot_be_divided_is_refused(options: dict[str, Any], message: str) -> None:
    observation, action, policy, _ = CASES["box"]
    with pytest.raises(ValueError, match=message):
        PPOX(policy, environments(observation, action), **{"n_steps": 16, "batch_size": 16, "device": "cpu", **options})


def test_without_shards_nothing_is_divided() -> None:
    model = PPOX("MlpPolicy", Toy(), n_steps=8, batch_size=8, device="cpu")
    assert model.shards is None and model._run().share == 1.0 and model._run().shards is None


def test_frozen_parameters_do_not_travel_before_every_rollout() -> None:
    layer = torch.nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    layer.register_buffer("count", torch.zeros(3))
    assert [tensor.numel() for tensor in moving(layer)] == [2, 3]
