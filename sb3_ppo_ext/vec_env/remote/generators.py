"""The generators of an environment: its own and those of its spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


def generators_of(env: Any) -> list[Any]:
    """Their states; None for one of an unknown kind."""
    return [_state(generator) for generator in _generators(env)]


def set_generators(env: Any, states: list[Any]) -> None:
    """Puts them back."""
    for generator, state in zip(_generators(env), states, strict=True):
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)


def _generators(env: Any) -> list[Any]:
    base = env.unwrapped
    found = [getattr(base, "np_random", None)]
    for space in (base.observation_space, base.action_space):
        found += _of_space(space)
    return found


def _of_space(space: spaces.Space[Any]) -> list[Any]:
    below: Any = ()
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        below = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
    return [space.np_random, *(generator for entry in below for generator in _of_space(entry))]


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, np.random.RandomState) else None
