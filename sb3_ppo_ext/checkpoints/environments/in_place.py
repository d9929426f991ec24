"""Objects that stay where they are when a state is put back: shared, opaque, or not made of state alone.

A snapshot refers to such an object by its path (the index of its layer, then names of attributes, keys and indices of
containers), and holds what has to be put into it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import ResultsWriter

from sb3_ppo_ext.checkpoints.environments.simulators import SIMULATORS

CALLABLES = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type, types.ModuleType)
PICTURES = ("pygame", "glfw", "OpenGL", "gymnasium.envs.mujoco.mujoco_rendering", "cv2")  # modules that only show


class InPlace(Protocol):
    """A rule by which the state of an object is read, and put into its counterpart."""

    def state(self, value: Any) -> Any:
        """Returns what is saved."""

    def restore(self, value: Any, state: Any) -> None:
        """Puts it into ``value``."""


class Untouched:
    """Functions, windows, files: they belong to the process, and there is nothing to put into them."""

    def state(self, value: Any) -> None:
        """Returns None."""

    def restore(self, value: Any, state: Any) -> None:
        """Does nothing."""


class SpaceGenerators:
    """The generators of a space and of the spaces in it, which draw only where something samples from them."""

    def state(self, value: spaces.Space[Any]) -> list[Any]:
        """The state of each, None where there is no generator yet."""
        return [None if space._np_random is None else space._np_random.bit_generator.state for space in _nested(value)]

    def restore(self, value: spaces.Space[Any], state: list[Any]) -> None:
        """Gives every space a generator in the saved state."""
        for space, saved in zip(_nested(value), state, strict=True):
            if saved is None:
                space._np_random = None  # type: ignore[assignment]  # as it is made
            else:
                space.np_random.bit_generator.state = saved


class MemoryOfOthers:
    """An array over memory of something else: of a simulator, or shared with another process."""

    def state(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Its contents."""
        return value.copy()

    def restore(self, value: np.ndarray[Any, Any], state: np.ndarray[Any, Any]) -> None:
        """Writes them."""
        value[...] = state


UNTOUCHED, SPACE, ARRAY = Untouched(), SpaceGenerators(), MemoryOfOthers()


def _nested(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    yield space
    if isinstance(space, spaces.Dict):
        children = list(space.spaces.values())
    else:
        children = list(space.spaces) if isinstance(space, spaces.Tuple) else []
    for child in children:
        yield from _nested(child)


@functools.lru_cache(maxsize=4096)
def rule_for(kind: type) -> InPlace | None:
    """Returns the rule for objects of this class; None where they are saved by value."""
    if issubclass(kind, spaces.Space):
        return SPACE
    if issubclass(kind, (*CALLABLES, ResultsWriter)) or module_of(kind).startswith(PICTURES):
        return UNTOUCHED
    return next((SIMULATORS[name] for base in kind.__mro__ if (name := _path(base)) in SIMULATORS), None)


def _path(kind: type) -> str:
    return f"{module_of(kind)}.{kind.__qualname__}"


def module_of(kind: type) -> str:
    """The module of a class; of some that C code makes there is none."""
    module = getattr(kind, "__module__", None)
    return module if isinstance(module, str) else ""
