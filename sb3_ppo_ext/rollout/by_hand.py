"""What ``learn()`` sets up before it collects and trains, where ``collect_rollouts`` or ``train`` is called instead."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.rollout.minibatches import has_rows


def prepare_logs(model: Any) -> None:
    """The buffers of episodes, which ``collect_rollouts`` and ``dump_logs`` need."""
    if model.ep_info_buffer is None:
        model.ep_info_buffer = deque(maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)


def begin_collecting(model: Any, env: VecEnv, callback: MaybeCallback) -> BaseCallback:
    """A first observation where there is none yet, and the callback as one that knows its model."""
    if model._last_obs is None:
        model._last_obs = env.reset()
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    if not isinstance(callback, BaseCallback):
        known: BaseCallback = model._init_callback(callback)
        return known
    if not hasattr(callback, "model"):
        callback.init_callback(model)
    return callback


def require_rollout(model: Any) -> None:
    """``ValueError`` where ``train()`` has nothing to train on."""
    buffer = model.rollout_buffer
    if has_rows(type(buffer)) and not buffer.full:  # another asserts what it needs itself
        raise ValueError(
            f"train(): the rollout buffer holds {buffer.pos} of its {buffer.buffer_size} steps; call learn(), or fill "
            "it by collect_rollouts(), or by rollout_buffer.add() and compute_returns_and_advantage()"
        )
    if model.recompute_advantage and model.n_epochs > 1 and not _knows_what_follows(model):
        raise ValueError(
            "recompute_advantage=True: to compute advantages anew takes the value of the observation after the last "
            "step, and model._last_obs is None. Set model._last_obs and model._last_episode_starts to the observations "
            "and dones that the environment returned last, collect by model.collect_rollouts(), or pass "
            "recompute_advantage=False"
        )


def _knows_what_follows(model: Any) -> bool:
    return (model._last_obs is not None and model._last_episode_starts is not None) or _all_ended(model)


def _all_ended(model: Any) -> bool:
    """Whether nothing came after the last step in any environment: its advantage [N] is r - V then."""
    buffer = model.rollout_buffer
    return bool((buffer.advantages[-1] == buffer.rewards[-1] - buffer.values[-1]).all())
