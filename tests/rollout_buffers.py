"""Rollout buffers of Stable-Baselines3 that are filled with random rows, and one of a user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from tests.environments import ACTIONS, OBSERVATIONS

T, N = 6, 3


def filled(action: str = "box", observation: str = "vector", cls: type[RolloutBuffer] | None = None) -> RolloutBuffer:
    space = OBSERVATIONS[observation]
    cls = cls or (DictRolloutBuffer if isinstance(space, spaces.Dict) else RolloutBuffer)
    buffer = cls(T, space, ACTIONS[action], "cpu", gae_lambda=0.9, gamma=0.8, n_envs=N)
    rng = np.random.default_rng(0)
    for _ in range(T):
        rows = [space.sample() for _ in range(N)]
        stacked = (
            {key: np.stack([row[key] for row in rows]) for key in rows[0]}
            if isinstance(rows[0], dict)
            else np.stack(rows)
        )
        actions = np.stack([ACTIONS[action].sample() for _ in range(N)])
        reward, start = rng.normal(size=N), rng.random(N) < 0.3
        buffer.add(stacked, actions, reward, start, torch.randn(N), torch.randn(N))  # type: ignore[arg-type]
    buffer.compute_returns_and_advantage(torch.randn(N), rng.random(N) < 0.3)
    return buffer


class Doubling(RolloutBuffer):
    """A buffer that draws its minibatches its own way."""

    def get(self, batch_size: int | None = None) -> Any:
        for sample in super().get(batch_size):
            yield sample._replace(advantages=2 * sample.advantages)
