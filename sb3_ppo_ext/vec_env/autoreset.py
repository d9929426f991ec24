"""Gymnasium's vector environments: how they are made, and how their episodes restart."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, _find_spec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from sb3_ppo_ext.vec_env.accepted import require_no_envpool
from sb3_ppo_ext.vec_env.episodes import Array

MAKE_VEC_ARGUMENTS = {"num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}  # kept in ``spec.kwargs``

AnyVectorEnv = VectorEnv[Any, Any, Any]

REMEDY = (
    'GymnasiumVecEnv("<id>", n_envs, vectorization_mode="sync") steps the same task one environment after the other '
    "and restarts any of them; normalising wrappers have VecNormalize as their counterpart"
)


def vector_env(env: AnyVectorEnv | str | EnvSpec, n_envs: int | None, kwargs: dict[str, Any]) -> AnyVectorEnv:
    """``env`` itself, or the environments that ``gym.make_vec`` makes of an id or a specification."""
    if isinstance(env, (str, EnvSpec)):
        return _made(_find_spec(env) if isinstance(env, str) else env, n_envs, kwargs)
    if not isinstance(env, VectorEnv):
        raise ValueError(
            f"env={env!r}: an id or EnvSpec for gym.make_vec, or a gymnasium.vector.VectorEnv is needed; "
            "of functions that make environments, gymnasium.vector.SyncVectorEnv(functions) is one"
        )
    require_no_envpool(env)
    if n_envs not in (None, env.num_envs):
        raise ValueError(f"n_envs={n_envs}: the environment has {env.num_envs}; leave n_envs out")
    if kwargs:
        raise ValueError(f"{', '.join(kwargs)}: arguments of gym.make_vec, for which env has to be an id, not {env!r}")
    return env


def _made(spec: EnvSpec, n_envs: int | None, kwargs: dict[str, Any]) -> AnyVectorEnv:
    """Environments of a specification, whose arguments apply where ``kwargs`` has none."""
    spec = copy.deepcopy(spec)
    kwargs = {**{name: spec.kwargs.pop(name) for name in MAKE_VEC_ARGUMENTS & spec.kwargs.keys()}, **kwargs}
    count = kwargs.pop("num_envs", 1) if n_envs is None else n_envs
    kwargs.pop("num_envs", None)
    if count < 1:
        raise ValueError(f"n_envs={n_envs}: at least 1 is needed")
    mode = kwargs.get("vectorization_mode") or ("sync" if spec.vector_entry_point is None else "vector_entry_point")
    if getattr(mode, "value", mode) in ("sync", "async"):
        # In SAME_STEP an environment that returns its own buffer loses the last observation to its reset.
        settings = kwargs.get("vector_kwargs") or {}
        kwargs = {**kwargs, "vector_kwargs": {"autoreset_mode": AutoresetMode.DISABLED, **settings}}
    return gym.make_vec(spec, count, **{**kwargs, "vectorization_mode": mode})


def autoreset_mode(env: AnyVectorEnv) -> AutoresetMode:
    """The mode in the environment's metadata, in which single rows can be restarted."""
    mode = env.metadata.get("autoreset_mode")
    if mode not in set(AutoresetMode):
        raise ValueError(
            f"env={env}: metadata['autoreset_mode'] is {mode!r}; set it to what the environment does, "
            f"one of {', '.join(map(str, AutoresetMode))}"
        )
    # Gymnasium 1.4: without shared memory, "reset at the next step" survives a reset in the worker.
    base = env.unwrapped
    if mode is AutoresetMode.NEXT_STEP and isinstance(base, AsyncVectorEnv) and not base.shared_memory:
        raise ValueError(
            f"env={env}: NEXT_STEP without shared memory cannot restart one environment; "
            "make it with autoreset_mode=AutoresetMode.DISABLED or with shared_memory=True"
        )
    return AutoresetMode(mode)


def each(values: Any, indices: Array) -> list[Any]:
    """Rows of an object array (Gymnasium's own environments) or of one dense batch (ALE's)."""
    if isinstance(values, dict):
        return [{key: value[row] for key, value in values.items()} for row in indices]
    return [values[row] for row in indices]


def restart_cart_poles(env: Any, ended: Array) -> Array:
    """First observations [ended, 4]: the restart of ``CartPoleVectorEnv`` in its next step, one step earlier.

    The numbers come from the environment's generator; its ``reset`` would restart every environment.
    """
    env.state[:, ended] = env.np_random.uniform(low=env.low, high=env.high, size=(4, len(ended)))
    env.steps[ended] = 0
    env.prev_done[ended] = False
    return np.asarray(env.state[:, ended].T, np.float32)
