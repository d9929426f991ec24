"""Environments that are refused before anything is built on them; each error names the replacement."""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv


def require_no_envpool(env: Any) -> None:
    """Refuses EnvPool's own objects, also below vector wrappers."""
    while isinstance(env, VectorWrapper):
        env = env.env
    if any(kind.__module__.split(".")[0] == "envpool" for kind in type(env).__mro__):
        raise ValueError(
            f"env={type(env).__name__}: an object of EnvPool, which restarts episodes in rows that are no transitions; "
            'use sb3_ppo_ext.vec_env.EnvPoolVecEnv("<task>", n_envs), which takes the arguments of envpool.make'
        )


def require_environment(env: Any) -> None:
    """Refuses what is not an environment of Gymnasium or of Stable-Baselines3, but can be made one in a line."""
    require_no_envpool(env)
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"env={env}: a vector environment of Gymnasium; wrap it, sb3_ppo_ext.vec_env.GymnasiumVecEnv(env), or make "
            'it there: GymnasiumVecEnv("<id>", n_envs)'
        )
    if isinstance(env, (list, tuple, type, partial)) or inspect.isroutine(env):
        raise ValueError(
            f"env={env!r}: an environment or a VecEnv is needed; of functions that make environments, "
            "stable_baselines3.common.vec_env.DummyVecEnv(functions) is one, of a class "
            "stable_baselines3.common.env_util.make_vec_env(class, n_envs)"
        )


def wrapped_environment(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
    """``PPO._wrap_env``, for environments that are not refused here."""
    require_environment(env)
    wrapped = PPO._wrap_env(env, verbose, monitor_wrapper)
    require_start_at_zero(wrapped.observation_space, wrapped.action_space)
    return wrapped


def require_start_at_zero(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuses discrete spaces that do not start at 0: policies of Stable-Baselines3 count from 0 and shift nothing."""
    if _starts_elsewhere(action_space):
        start, space = _start(action_space), _from_zero(action_space)
        raise ValueError(
            f"action_space={action_space}: its start is {start}, but Stable-Baselines3 counts actions from 0, so that "
            "the environment would get others than it has; wrap it: "
            f"gymnasium.wrappers.TransformAction(env, lambda action: action + {start}, {space})"
        )
    entries = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for name, entry in entries.items():
        if _starts_elsewhere(entry):
            raise ValueError(
                f"observation_space{f'[{name!r}]' if name else ''}={entry}: its start is {_start(entry)}, but "
                "Stable-Baselines3 counts observations from 0; subtract it in gymnasium.wrappers.TransformObservation, "
                f"with {_from_zero(entry)} in the space's place"
            )


def warn_of_start(action_space: spaces.Space[Any]) -> None:
    """For a model that was trained elsewhere and is loaded to predict."""
    if _starts_elsewhere(action_space):
        warnings.warn(
            f"action_space={action_space}: predict() gives actions counted from 0; add its start, "
            f"{_start(action_space)}, before an environment takes them",
            stacklevel=3,
        )


def _starts_elsewhere(space: spaces.Space[Any]) -> bool:
    return isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and bool(np.any(space.start))


def _start(space: Any) -> Any:
    return space.start.tolist() if isinstance(space, spaces.MultiDiscrete) else int(space.start)


def _from_zero(space: Any) -> str:
    if isinstance(space, spaces.MultiDiscrete):
        return f"gymnasium.spaces.MultiDiscrete({space.nvec.tolist()})"
    return f"gymnasium.spaces.Discrete({space.n})"
