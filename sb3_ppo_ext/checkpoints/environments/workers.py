"""The same functions in worker processes (``SubprocVecEnv``, ``AsyncVectorEnv``, ``RayVecEnv``), over each environment.

The workers of the first two call methods of the environment by name and nothing else. A ``Call`` that arrives in one of
them gives ``gymnasium.Env`` of that process one more method, by which it reaches the environment with all wrappers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_ppo_ext.checkpoints.environments.layers import env_layers
from sb3_ppo_ext.checkpoints.environments.memory import Loss
from sb3_ppo_ext.checkpoints.environments.one_process import EnvironmentGroup, State
from sb3_ppo_ext.vec_env.remote.ray_vec_env import RayVecEnv

METHOD, ARGUMENT = "_sb3_ppo_ext_call", "_sb3_ppo_ext_argument"


class Call:
    """A function of this package to be called with the environment of a worker, and perhaps one more argument."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return _received, (self.function, *self.arguments)


def _received(function: Callable[..., Any], *arguments: Any) -> Call:
    setattr(gym.Env, METHOD, _call)
    return Call(function, *arguments)


def _call(env: Any, call: Call) -> Any:
    handed = [vars(layer).pop(ARGUMENT) for layer in env_layers(env) if ARGUMENT in vars(layer)]
    return call.function(env, *call.arguments, *handed)


def _group(env: Any) -> EnvironmentGroup:
    return EnvironmentGroup([], [env], env)


def prepare(env: Any) -> list[Loss]:
    """``EnvironmentGroup.prepare``."""
    return _group(env).prepare()


def save(env: Any) -> State:
    """``EnvironmentGroup.save``."""
    return _group(env).save()


def restore(env: Any, state: State) -> list[Loss]:
    """``EnvironmentGroup.restore`` with the generators, which are the worker's own."""
    return _group(env).restore(state, with_generators=True)


def put_counters(env: Any, state: State) -> None:
    """``EnvironmentGroup.put_counters``."""
    _group(env).put_counters(state)


# What a new worker of ``RayVecEnv`` repeats, where it takes the place of another.
REPEATED: dict[Callable[..., Any], str] = {prepare: "setting", restore: "state"}


class Workers:
    """The worker processes below a vector environment."""

    def __init__(self, base: SubprocVecEnv | AsyncVectorEnv | RayVecEnv) -> None:
        self.base = base

    def call(self, function: Callable[..., Any]) -> list[Any]:
        """Returns the result of the function for each environment."""
        if isinstance(self.base, RayVecEnv):
            return self.base.apply(function, repeated=REPEATED.get(function, "never"))
        if isinstance(self.base, SubprocVecEnv):
            return self.base.env_method(METHOD, Call(function))
        return list(self.base.call(METHOD, Call(function)))

    def call_each(self, function: Callable[..., Any], arguments: list[Any]) -> list[Any]:
        """The same with an argument of its own for each."""
        if isinstance(self.base, RayVecEnv):
            return self.base.apply(function, arguments, repeated=REPEATED.get(function, "never"))
        if isinstance(self.base, AsyncVectorEnv):
            # By way of an attribute: a call has the same arguments for all.
            self.base.set_attr(ARGUMENT, arguments)
            return self.call(function)
        for remote, argument in zip(self.base.remotes, arguments, strict=True):
            remote.send(("env_method", (METHOD, (Call(function, argument),), {})))
        return [remote.recv() for remote in self.base.remotes]


def workers_of(base: Any) -> Workers | None:
    """Returns the workers of the innermost layer, or None."""
    return Workers(base) if isinstance(base, (SubprocVecEnv, AsyncVectorEnv, RayVecEnv)) else None
