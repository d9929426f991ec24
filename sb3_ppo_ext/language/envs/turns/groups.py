"""Conversations beside each other, in groups that begin from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_ppo_ext.language.envs.prompt_vec_env import group_size_of
from sb3_ppo_ext.language.envs.turns.conversation import ConversationEnv
from sb3_ppo_ext.language.inputs import at_least


def conversation_vec_env(
    make_env: Callable[[], ConversationEnv],
    n_envs: int,
    *,
    group_size: int = 1,
    vec_env_cls: Callable[[list[Callable[[], gym.Env[Any, Any]]]], VecEnv] = DummyVecEnv,
) -> VecEnv:
    """``n_envs`` environments of ``make_env()``, each in a ``Monitor``.

    ``group_size`` neighbours are a group: their episodes of the same number begin from the same seed, so that they play
    the same game or answer the same question, and share ``group_id``.
    """
    n_envs = at_least(1, "n_envs", n_envs)
    group_size = group_size_of(group_size, n_envs)
    base_seed = int(np.random.SeedSequence().generate_state(1)[0])  # unless the vector environment is seeded
    place = {"group_size": group_size, "n_groups": n_envs // group_size, "base_seed": base_seed, "beside_others": True}
    return vec_env_cls([partial(_monitored, make_env, {"index": index, **place}) for index in range(n_envs)])


def _monitored(make_env: Callable[[], ConversationEnv], place: dict[str, int]) -> gym.Env[Any, Any]:
    env = make_env()
    if not isinstance(env, ConversationEnv):
        raise ValueError(f"make_env() returned {env!r}: a ConversationEnv, as TextGameEnv is one, is needed")
    for name, value in place.items():
        setattr(env, name, value)
    return Monitor(env)
