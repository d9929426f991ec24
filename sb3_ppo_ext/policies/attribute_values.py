"""The values of attributes: copied, compared and put back.

Tensors are compared by identity, plain values and containers of them by equality.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

DEPTH = 4  # of containers and objects within each other, below a module
LARGEST = 2**26  # bytes of an array that is copied and compared

PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
# Nothing that a forward pass changes lies below these.
LEAVES = (Tensor, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, spaces.Space, torch.optim.Optimizer)


def _set_state_of_numpy(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


# How the states of generators are read and set.
GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    np.random.Generator: (lambda generator: generator.bit_generator.state, _set_state_of_numpy),
    torch.Generator: (
        lambda generator: generator.get_state().tolist(),
        lambda generator, state: generator.set_state(torch.tensor(state).byte()),
    ),
}


def contents_of(value: Any) -> Any:
    """A copy of what is in a container, or the state of a generator in a tuple; None for anything else."""
    for container in (dict, set, list, deque):
        if isinstance(value, container):
            return list(value) if container is deque else container(value)
    if isinstance(value, np.ndarray):
        return value.copy() if value.nbytes <= LARGEST and value.dtype != object else None
    for kind, (state, _) in GENERATORS.items():
        if isinstance(value, kind):
            return (state(value),)
    return None


def replace_contents(value: Any, contents: Any) -> None:
    """Puts back the contents that ``contents_of`` has returned."""
    if isinstance(value, np.ndarray):
        value[...] = contents
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(contents)
    elif isinstance(value, (list, deque)):
        value.clear()
        value.extend(contents)
    else:
        next(put for kind, (_, put) in GENERATORS.items() if isinstance(value, kind))(value, contents[0])


def same(first: Any, second: Any) -> bool:
    """Whether both are the same object, or equal plain values of the same type."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, PLAIN):
        return bool(first == second) or (first != first and second != second)  # NaN is NaN here
    if isinstance(first, np.ndarray):
        return first.shape == second.shape and np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same, first, second))
    return isinstance(first, set) and first == second


def holds_tensor(value: Any, depth: int = DEPTH) -> bool:
    """Whether the value is a tensor, or has one in it."""
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(value, (*PLAIN, *LEAVES)):
        return False
    if isinstance(value, dict):
        return any(holds_tensor(item, depth - 1) for item in value.values())
    if isinstance(value, (list, tuple, set, deque)):
        return any(holds_tensor(item, depth - 1) for item in value)
    return hasattr(value, "__dict__") and holds_tensor(vars(value), depth - 1)
