"""Advantages over whole arrays are those of the buffer's own loop, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_ext.rollout.advantages import compute_returns_and_advantage, generalized_advantages, value_targets


def filled(steps: int, envs: int, seed: int, cls: type[RolloutBuffer] = RolloutBuffer, **options: Any) -> RolloutBuffer:
    rng = np.random.default_rng(seed)
    space = spaces.Box(-1, 1, (1,))
    buffer = cls(steps, space, space, "cpu", n_envs=envs, **options)
    buffer.rewards[:] = rng.normal(size=(steps, envs))
    buffer.values[:] = rng.normal(size=(steps, envs))
    buffer.episode_starts[:] = rng.random((steps, envs)) < 0.2
    return buffer


@pytest.mark.parametrize("gamma", [0.99, 1.0, 0, np.float64(0.97), np.float32(0.9)])
@pytest.mark.parametrize("gae_lambda", [0.95, 1, 0.0, np.float64(0.3)])
@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (2, 3), (64, 1), (129, 17)])
def test_the_bits_of_stable_baselines3(steps: int, envs: int, gamma: float, gae_lambda: float) -> None:
    for last in (torch.randn(envs, 1), torch.randn(envs)):
        dones = np.arange(envs) % 2 == 0
        loop, ours = (filled(steps, envs, 3, gamma=gamma, gae_lambda=gae_lambda) for _ in range(2))
        loop.compute_returns_and_advantage(last, dones)
        compute_returns_and_advantage(ours, last, dones)
        for name in ("advantages", "returns"):
            mine, theirs = getattr(ours, name), getattr(loop, name)
            assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes()


def test_the_trace_is_cut_where_an_episode_ended() -> None:
    # delta = (1 + .5 * 20 - 10, 2 - 20) = (1, -18): the second step ended its episode, so V = 30 is not in it.
    # A = (1 + .5 * .5 * -18, -18) = (-3.5, -18)
    advantage = np.zeros((2, 1), np.float32)
    reward, value, following = (np.array(column, np.float32).reshape(2, 1) for column in ([1, 2], [10, 20], [20, 30]))
    going_on = np.array([[1], [0]], np.float32)
    generalized_advantages(reward, value, following, going_on, gamma=0.5, gae_lambda=0.5, out=advantage)
    np.testing.assert_array_equal(advantage, np.array([[-3.5], [-18]], np.float32))


class Doubled(RolloutBuffer):
    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= 2


def test_a_buffer_s_own_way_is_used() -> None:
    plain, doubled = filled(8, 2, 0), filled(8, 2, 0, Doubled)
    for buffer in (plain, doubled):
        compute_returns_and_advantage(buffer, torch.ones(2), np.zeros(2, bool))
    np.testing.assert_array_equal(doubled.advantages, 2 * plain.advantages)


def test_value_targets_have_a_lambda_of_their_own_and_leave_the_buffer_as_it_is() -> None:
    # r = (1, 2, 4), gamma = .5, V after the rollout 8, no episode ends. At lambda 1 the target is the discounted sum
    # itself: 4 + .5 * 8 = 8, 2 + .5 * 8 = 6, 1 + .5 * 6 = 4. At lambda 0 it is r + gamma V of the next state, V = 10:
    # 4 + .5 * 8 = 8, 2 + 5 = 7, 1 + 5 = 6.
    buffer = filled(3, 1, 0, gamma=0.5, gae_lambda=0.9)
    buffer.rewards[:, 0], buffer.values[:], buffer.episode_starts[:] = (1, 2, 4), 10, 0
    last, dones = torch.tensor([8.0]), np.zeros(1, bool)
    compute_returns_and_advantage(buffer, last, dones)
    before = {name: np.array(value) for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}
    np.testing.assert_allclose(value_targets(buffer, last, dones, 1.0)[:, 0], [4, 6, 8])
    np.testing.assert_allclose(value_targets(buffer, last, dones, 0.0)[:, 0], [6, 7, 8])
    np.testing.assert_array_equal(value_targets(buffer, last, dones, 0.9), buffer.returns)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(buffer, name), array, err_msg=name)
    assert buffer.gae_lambda == 0.9


def test_a_buffer_s_own_way_serves_value_targets_too() -> None:
    buffer = filled(8, 2, 0, Doubled)
    last, dones = torch.ones(2), np.zeros(2, bool)
    compute_returns_and_advantage(buffer, last, dones)
    np.testing.assert_array_equal(value_targets(buffer, last, dones, buffer.gae_lambda), buffer.returns)
