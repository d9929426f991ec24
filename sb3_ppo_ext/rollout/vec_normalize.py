"""``VecNormalize.step`` with the same bits: fewer copies, and each sum of the statistics taken once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_ppo_ext.rollout.dummy_vec_env import copied_observation


def normalized_step(
    env: VecNormalize, below: Callable[[np.ndarray], VecEnvStepReturn], actions: np.ndarray
) -> VecEnvStepReturn:
    """Normalised observations and rewards of the step ``below``; while training, its statistics are updated first."""
    obs, rewards, dones, infos = below(actions)
    assert isinstance(obs, (np.ndarray, dict))  # VecNormalize's own check
    env.old_obs, env.old_reward = obs, rewards
    if env.training and env.norm_obs:
        update_observation_statistics(env.obs_rms, obs)
    normalized = normalized_observation(env, obs)
    if env.training:
        env.returns = env.returns * env.gamma + rewards
        update_statistics(env.ret_rms, env.returns)
    rewards = normalized_reward(env, rewards)
    if np.count_nonzero(dones):
        for index in np.flatnonzero(dones).tolist():
            if "terminal_observation" in infos[index]:
                infos[index]["terminal_observation"] = env.normalize_obs(infos[index]["terminal_observation"])
        env.returns[dones] = 0
    return normalized, rewards, dones, infos


def update_observation_statistics(statistics: Any, obs: Any) -> None:
    """Adds the observations [N, ...] of a step to their statistics, or those of each key to the key's."""
    if isinstance(obs, dict) and isinstance(statistics, dict):
        for key, of_key in statistics.items():
            update_statistics(of_key, obs[key])
    else:
        update_statistics(statistics, obs)


def update_statistics(statistics: RunningMeanStd, batch: np.ndarray) -> None:
    """``statistics.update(batch)``, with one sum for ``np.mean`` and ``np.var``, and none over a single row [1, ...].

    NumPy sums other types, and takes the mean of numbers in float32, by rules that ``update`` follows.
    """
    same_rules = batch.dtype == np.float64 or (batch.dtype == np.float32 and batch.ndim > 1)
    if type(statistics) is not RunningMeanStd or not same_rules:
        statistics.update(batch)
        return
    if len(batch) == 1:
        mean = batch[0]
        var = mean - mean  # 0, or NaN where a value is not finite
    else:
        mean = np.add.reduce(batch, axis=0) / len(batch)
        deviation = batch - mean
        deviation *= deviation
        var = np.add.reduce(deviation, axis=0) / len(batch)
    if batch.ndim > 1 and batch.dtype == statistics.mean.dtype == statistics.var.dtype == np.float64:
        add_moments(statistics, mean, var, len(batch))
    else:
        statistics.update_from_moments(mean, var, len(batch))


def add_moments(statistics: RunningMeanStd, mean: np.ndarray, var: np.ndarray, count: int) -> None:
    """``statistics.update_from_moments(mean, var, count)`` of arrays in float64; ``var`` is written to.

    NumPy takes half the time where a number is an array of float64 already; multiplying by 1 changes no bit.
    """
    before, after = np.array(statistics.count), np.array(statistics.count + count)
    rows = np.array(float(count))
    delta = mean - statistics.mean
    spread = delta * delta
    spread *= before
    if count > 1:
        for factor in (spread, delta, var):
            factor *= rows
    spread /= after
    delta /= after
    delta += statistics.mean
    var += statistics.var * before
    var += spread
    var /= after
    statistics.mean, statistics.var, statistics.count = delta, var, count + statistics.count


def normalized_observation(env: VecNormalize, obs: Any) -> Any:
    """``env.normalize_obs(obs)``, without copies of arrays that normalised ones replace."""
    if not env.norm_obs:
        return copied_observation(obs)
    statistics: Any = env.obs_rms
    if isinstance(obs, dict) and isinstance(statistics, dict):
        result = copied_observation(obs)
        for key in env.norm_obs_keys or ():
            result[key] = normalized_array(env, obs[key], statistics[key])
        return result
    return normalized_array(env, obs, statistics)


def normalized_array(env: VecNormalize, obs: np.ndarray, statistics: RunningMeanStd) -> np.ndarray:
    """clip((obs - mean) / sqrt(var + epsilon), -clip_obs, clip_obs) as float32; computed in float64."""
    rows = obs[0] if obs.ndim == 2 and len(obs) == 1 else obs  # to broadcast a single row takes three times as long
    result: np.ndarray = rows - statistics.mean
    result /= np.sqrt(statistics.var + env.epsilon)
    return result.clip(-env.clip_obs, env.clip_obs, out=result).astype(np.float32).reshape(obs.shape)


def normalized_reward(env: VecNormalize, reward: np.ndarray) -> np.ndarray:
    """``env.normalize_reward(reward)``: clip(reward / sqrt(var + epsilon), -clip_reward, clip_reward) as float32."""
    if env.norm_reward:
        reward = reward / np.sqrt(env.ret_rms.var + env.epsilon)
        reward = reward.clip(-env.clip_reward, env.clip_reward, out=reward)
    return reward.astype(np.float32)
