"""Environments that live in this process and are made of plain values, saved and restored layer by layer."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_ppo_ext.checkpoints.plain import is_plain


def layers_of(vec_env: VecEnv) -> list[Any]:
    """The vector environment, its wrappers, and the environments in this process with theirs."""
    layers: list[Any] = [vec_env]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    for env in layers[-1].envs if isinstance(layers[-1], DummyVecEnv) else []:
        layers.append(env)
        while isinstance(layers[-1], gym.Wrapper):
            layers.append(layers[-1].env)
    return layers


def save_environments(vec_env: VecEnv) -> dict[str, Any]:
    """The plain values of every layer."""
    return {"layers": [pickle.dumps(_plain(layer)) for layer in layers_of(vec_env)]}


def _plain(layer: Any) -> dict[str, Any]:
    more = {"stacked_obs", "obs_rms", "ret_rms", "buf_obs"}
    return {
        name: value
        for name, value in vars(layer).items()
        if is_plain(value) or name in more or isinstance(value, (RunningMeanStd, gym.Space))
    }


def restore_environments(vec_env: VecEnv, state: dict[str, Any]) -> list[str]:
    """Puts them back; lines on what could not be restored exactly."""
    for layer, saved in zip(layers_of(vec_env), state["layers"], strict=True):
        vars(layer).update(pickle.loads(saved))
    return []
