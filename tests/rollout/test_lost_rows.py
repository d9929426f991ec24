"""Steps that were not taken, since a worker of ``RayVecEnv`` was lost, are no part of an update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from torch import Tensor

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.rollout.lost_rows import normalized_without, without_lost
from sb3_ppo_ext.rollout.minibatches import Rollout
from tests.environments import Toy


class Losing(VecEnvWrapper):
    """The step ``at`` of one environment is lost, as ``RayVecEnv`` reports it."""

    def __init__(self, at: int, row: int) -> None:
        super().__init__(DummyVecEnv([Toy] * 2))
        self.at, self.row, self.steps = at, row, 0
        self.last: Any = None

    def reset(self) -> Any:
        self.last = self.venv.reset()
        return self.last

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(rewards, np.ndarray)
        self.steps += 1
        if self.steps == self.at:
            rewards[self.row], dones[self.row] = 0, True
            last = np.array(self.last[self.row])
            infos[self.row] = {"TimeLimit.truncated": True, "terminal_observation": last, "worker_lost": True}
        self.last = obs
        return obs, rewards, dones, infos


class Spoiling(BaseCallback):
    """Writes a number over what the buffer holds of the row that was lost."""

    def __init__(self, number: float, step: int, row: int) -> None:
        super().__init__()
        self.number, self.step, self.row = number, step, row

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        for array in ("observations", "log_probs", "advantages", "returns"):
            getattr(self.model.rollout_buffer, array)[self.step, self.row] = self.number  # type: ignore[attr-defined]


def learnt(number: float | None, **options: Any) -> tuple[Tensor, PPOX]:
    model = PPOX("MlpPolicy", Losing(4, 1), n_steps=8, batch_size=4, n_epochs=2, seed=0, gamma=0.9, **options)
    model.learn(16, callback=None if number is None else Spoiling(number, 3, 1))
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach(), model


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("scope", ["minibatch", "rollout"])
@pytest.mark.parametrize("shards", [None, 2])
def test_what_stands_in_a_lost_row_changes_nothing(
    uncompiled: None, compile: bool, scope: str, shards: int | None
) -> None:
    options = {"compile": compile, "advantage_scope": scope, "shards": shards}
    as_it_was, spoilt = learnt(None, **options)[0], learnt(70.0, **options)[0]
    torch.testing.assert_close(as_it_was, spoilt, rtol=0, atol=0)


def test_rows_before_a_lost_one_are_those_of_an_episode_cut_there() -> None:
    model = learnt(None, compile=False)[1]
    buffer, gamma, decay = model.rollout_buffer, model.gamma, model.gae_lambda
    values, rewards = buffer.values[:, 1], buffer.rewards[:, 1]
    assert buffer.advantages[3, 1] == 0
    # The episode ends before the step 3, and its return continues with the value there.
    last = rewards[2] + gamma * values[3] - values[2]
    assert buffer.advantages[2, 1] == pytest.approx(last, rel=1e-5)
    before = rewards[1] + gamma * values[2] - values[1] + gamma * decay * last
    assert buffer.advantages[1, 1] == pytest.approx(before, rel=1e-5)


def test_minibatches_have_their_number_and_size_without_the_lost_row() -> None:
    model = learnt(None, compile=False)[1]
    rollout = Rollout(model.rollout_buffer, model.action_space, normalize_advantage=False)
    orders = rollout.orders(4)
    assert [len(order) for order in orders] == [4] * 4
    rows = torch.cat(orders).tolist()
    lost = 1 * 8 + 3  # the second environment's fourth step; rows are in the order of environments
    assert sorted(set(rows)) == [row for row in range(16) if row != lost]
    model.learn(16, reset_num_timesteps=False)
    assert Rollout(model.rollout_buffer, model.action_space, normalize_advantage=False).lost is None


def test_other_rows_take_the_places_of_lost_ones() -> None:
    assert without_lost(torch.tensor([4, 1, 3, 0, 2]), torch.tensor([3, 4])).tolist() == [1, 1, 0, 0, 2]
    assert without_lost(torch.tensor([2, 0, 1]), torch.tensor([0, 2])).tolist() == [1, 1, 1]
    assert without_lost(torch.tensor([1, 0]), torch.tensor([0, 1])).tolist() == [1, 0]  # nothing else is there
    # Of 1, 3 the mean is 2 and the standard deviation 2 ** 0.5.
    found = normalized_without(torch.tensor([1.0, 50.0, 3.0]), torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor([-(0.5**0.5), 0.0, 0.5**0.5]))
