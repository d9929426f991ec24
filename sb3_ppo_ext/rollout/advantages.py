"""Generalized advantage estimation as Stable-Baselines3's rollout buffers do it, bit for bit, over arrays [T, N]."""

from __future__ import annotations

import copy

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from sb3_ppo_ext.host.sb3 import estimates_as_sb3


def compute_returns_and_advantage(buffer: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> None:
    """Advantages and returns of the buffer, with the bits of its own method; a method of a user's is called instead."""
    arrays = (buffer.rewards, buffer.values, buffer.episode_starts, buffer.advantages)
    if not estimates_as_sb3(buffer) or any(array.shape != (buffer.buffer_size, buffer.n_envs) for array in arrays):
        buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        return
    next_values = np.concatenate((buffer.values[1:], last_values.cpu().numpy().reshape(1, -1)))
    ended = np.concatenate((buffer.episode_starts[1:], dones.astype(np.float32).reshape(1, -1)))
    generalized_advantages(
        buffer.rewards,
        buffer.values,
        next_values,
        1.0 - ended,
        gamma=buffer.gamma,
        gae_lambda=buffer.gae_lambda,
        out=buffer.advantages,
    )
    buffer.returns = buffer.advantages + buffer.values


def value_targets(buffer: RolloutBuffer, last_values: Tensor, dones: np.ndarray, value_lambda: float) -> np.ndarray:
    """The value targets A + V [T, N] with ``value_lambda`` in the place of the buffer's, which stays as it is.

    A low lambda keeps the noise out of the advantages; a high one keeps the bias out of what the critic learns. VAPO
    (Yue et al. 2025, "decoupled GAE").
    """
    other = copy.copy(buffer)
    other.gae_lambda, other.advantages = value_lambda, np.zeros_like(buffer.advantages)
    compute_returns_and_advantage(other, last_values, dones)
    return other.returns


def generalized_advantages(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    non_terminal: np.ndarray,
    *,
    gamma: float,
    gae_lambda: float,
    out: np.ndarray,
) -> None:
    """A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, cut where the episode ended, [T, N].

    Schulman et al. 2016, eq. 16. The order of the operations is Stable-Baselines3's: another one rounds differently.
    """
    delta = reward + gamma * next_value * non_terminal - value
    discount = gamma * gae_lambda * non_terminal
    advantage = np.zeros(delta.shape[1:], np.result_type(delta, discount))
    for step in range(len(delta) - 1, -1, -1):
        np.multiply(discount[step], advantage, out=advantage)
        advantage += delta[step]
        out[step] = advantage
