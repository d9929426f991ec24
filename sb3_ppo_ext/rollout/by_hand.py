"""The state that ``learn()`` sets up, for direct calls of ``collect_rollouts`` or ``train``."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.rollout.minibatches import indexable


def prepare_logs(model: Any) -> None:
    """Makes the buffers of episodes, which ``collect_rollouts`` and ``dump_logs`` need."""
    if model.ep_info_buffer is None:
        model.ep_info_buffer = deque(maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)


def begin_collecting(model: Any, env: VecEnv, callback: MaybeCallback) -> BaseCallback:
    """Makes the first observation where there is none yet; returns the callback, initialised with the model."""
    if model._last_obs is None:
        model._last_obs = env.reset()
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    if not isinstance(callback, BaseCallback):
        initialised: BaseCallback = model._init_callback(callback)
        return initialised
    if not hasattr(callback, "model"):
        callback.init_callback(model)
    return callback


def require_rollout(model: Any) -> None:
    """``ValueError`` where ``train()`` has nothing to train on."""
    buffer = model.rollout_buffer
    if indexable(type(buffer)) and not buffer.full:  # other classes check themselves
        raise ValueError(
            f"train(): the rollout buffer holds {buffer.pos} of its {buffer.buffer_size} steps; call learn(), or fill "
            "it by collect_rollouts(), or by rollout_buffer.add() and compute_returns_and_advantage()"
        )
    uses = {
        "recompute_advantage=True: advantages are": model.recompute_advantage and model.n_epochs > 1,
        f"value_lambda={model.value_lambda}: value targets are": model.value_lambda is not None,
    }
    needed = next((text for text, applies in uses.items() if applies), None)
    if needed is not None and not _value_after_is_known(model):
        raise ValueError(
            f"{needed} computed again from the value of the observation after the last step, and model._last_obs is "
            "None. Set model._last_obs and model._last_episode_starts to the observations and dones that the "
            "environment returned last, collect by model.collect_rollouts(), or leave the argument out"
        )


def _value_after_is_known(model: Any) -> bool:
    return (model._last_obs is not None and model._last_episode_starts is not None) or _all_ended(model)


def _all_ended(model: Any) -> bool:
    """Whether every episode ended with the last step: its advantages [N] are r - V then."""
    buffer = model.rollout_buffer
    return bool((buffer.advantages[-1] == buffer.rewards[-1] - buffer.values[-1]).all())
