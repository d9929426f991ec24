"""``staggered_start: true`` in YAML: a training's environments are in ``StaggeredStart``, those of evaluations are not.

As an ``env_wrapper`` it would cut the first episodes of ``ppox enjoy`` and of evaluations too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym

from sb3_ppo_ext.vec_env import StaggeredStart
from sb3_ppo_ext_zoo.vector_environments import VectorEnvironment

Wrapper = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


def take_staggered_start(hyperparams: dict[str, Any], vec_env: VectorEnvironment | None) -> bool:
    """The setting, which is removed; ``ValueError`` where it is no yes or no, or cannot be."""
    value = hyperparams.pop("staggered_start", False)
    if not isinstance(value, bool):
        raise ValueError(f"staggered_start={value!r}: true or false is needed")
    if value and vec_env is not None and vec_env.name in ("envpool", "prompts"):
        raise ValueError(
            f"staggered_start=True with vec_env={vec_env.name!r}: it has no single environments to wrap; use "
            "gymnasium, dummy, subproc or ray, or leave it out"
        )
    return value


@contextmanager
def staggering(experiment: Any, enabled: bool) -> Iterator[None]:
    """The experiment's ``env_wrapper`` with ``StaggeredStart`` around it until the end of the block."""
    wrapper: Wrapper | None = experiment.env_wrapper
    if enabled:
        experiment.env_wrapper = partial(_staggered, wrapper)
    try:
        yield
    finally:
        experiment.env_wrapper = wrapper


def _staggered(wrapper: Wrapper | None, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return StaggeredStart(env if wrapper is None else wrapper(env))
