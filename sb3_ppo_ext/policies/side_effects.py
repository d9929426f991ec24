"""What a policy's own code changes besides computing: found, named and undone.

A graph computes and runs no Python: an attribute that ``forward`` sets would stay as tracing left it, and what Python
draws from NumPy would be one number for ever. Tensors are told apart by identity, plain values by what they are.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from sb3_ppo_ext.host.sb3 import DISTRIBUTION_SCRATCH

DEPTH = 4  # of containers and objects within each other, below a module
LARGEST = 2**26  # bytes of an array that is copied and compared
MISSING = object()

PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
# Nothing that a forward pass changes lies below these.
LEAVES = (Tensor, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, spaces.Space, torch.optim.Optimizer)


class Change(NamedTuple):
    """What the forward pass did: "changes" and the attribute as its user would write it; and what that is now."""

    what: str
    now: Any = None
    owner: Any = None  # the object whose attribute it is
    key: Any = None

    @property
    def scratch(self) -> bool:
        """Whether tensors in it may differ from call to call: in a distribution, and nowhere else."""
        return isinstance(self.owner, Distribution) and holds_tensor(self.now)


class Container(NamedTuple):
    """Something whose contents can change in place."""

    where: str
    value: Any
    owner: Any
    contents: Any  # at the time of the snapshot

    def changes(self) -> Iterator[Change]:
        """Between then and now."""
        now = contents_of(self.value)
        if not isinstance(now, dict):
            if not same(self.contents, now):
                yield Change(f"changes {self.where}", now)
            return
        for key in [*self.contents, *(now.keys() - self.contents.keys())]:
            if not same(self.contents.get(key, MISSING), now.get(key, MISSING)):
                yield Change(f"changes {self._named(key)}", now.get(key), self.owner, key)

    def _named(self, key: Any) -> str:
        table = self.where.rpartition(".")[2]
        if table in ("_buffers", "_parameters", "_modules"):
            return f"{self.where[: -len(table)]}{key}"
        return f"{self.where}[{key!r}]" if self.owner is None else f"{self.where}.{key}"

    def restore(self) -> None:
        """The contents as they were."""
        if not same(self.contents, contents_of(self.value)):
            replace_contents(self.value, self.contents)


class Snapshot:
    """The attributes of a policy's modules and of what these hold, and the states of NumPy's and Python's draws."""

    def __init__(self, policy: nn.Module) -> None:
        self._modules = {id(module) for module in policy.modules()}
        self._seen: set[int] = set()
        self.containers: list[Container] = []
        for name, module in policy.named_modules():
            self._add(vars(module), name or type(policy).__name__, module, DEPTH)
        self._random = random.getstate(), np.random.get_state()

    def _add(self, value: Any, where: str, owner: Any, depth: int) -> None:
        if id(value) in self._seen or depth == 0:
            return
        self._seen.add(id(value))
        contents = contents_of(value)
        self.containers.append(Container(where, value, owner, contents))
        if isinstance(contents, dict):
            for key, item in contents.items():
                self._visit(item, f"{where}[{key!r}]" if owner is None else f"{where}.{key}", depth - 1)
        elif isinstance(value, (list, deque)):
            for index, item in enumerate(contents):
                self._visit(item, f"{where}[{index}]", depth - 1)

    def _visit(self, value: Any, where: str, depth: int) -> None:
        if isinstance(value, (*PLAIN, *LEAVES)) or id(value) in self._modules:
            return
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                self._visit(item, f"{where}[{index}]", depth)
        elif contents_of(value) is not None:
            self._add(value, where, None, depth)
        elif hasattr(value, "__dict__"):
            self._add(vars(value), where, value, DEPTH if isinstance(value, nn.Module) else depth)

    def tensors(self) -> Iterator[Tensor]:
        """Buffers and what attributes hold; a forward pass that writes to parameters is beyond help."""
        for container in self.containers:
            contents = container.contents
            items = contents.values() if isinstance(contents, dict) else contents
            if isinstance(items, Iterable) and not isinstance(items, np.ndarray):
                yield from (item for item in items if isinstance(item, Tensor) and not isinstance(item, nn.Parameter))

    def changes(self) -> list[Change]:
        """All but what is written anew at every call anyway."""
        found = [change for container in self.containers for change in container.changes()]
        found = [change for change in found if not (change.scratch and change.key in DISTRIBUTION_SCRATCH)]
        if not same(self._random[0], random.getstate()):
            found.append(Change("draws from Python's random"))
        if not same(self._random[1], np.random.get_state()):
            found.append(Change("draws from numpy.random"))
        return found

    def restore(self) -> None:
        """Everything as it was."""
        for container in self.containers:
            container.restore()
        random.setstate(self._random[0])
        np.random.set_state(self._random[1])


# Generators of one's own: how their states are read and set.
GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.RandomState: (lambda it: it.get_state(), lambda it, state: it.set_state(state)),
    np.random.Generator: (lambda it: it.bit_generator.state, lambda it, to: setattr(it.bit_generator, "state", to)),
    torch.Generator: (lambda it: it.get_state().tolist(), lambda it, to: it.set_state(torch.tensor(to).byte())),
}


def contents_of(value: Any) -> Any:
    """A copy of what is in a container, or the state of a generator; None where it is neither."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, deque)):
        return list(value)
    if isinstance(value, set):
        return set(value)
    if isinstance(value, np.ndarray):
        return value.copy() if value.nbytes <= LARGEST and value.dtype != object else None
    for kind, (state, _) in GENERATORS.items():
        if isinstance(value, kind):
            return (state(value),)
    return None


def replace_contents(value: Any, contents: Any) -> None:
    """The contents that ``contents_of`` gave, put back."""
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


def same(one: Any, other: Any) -> bool:
    """Whether both are the same object, or plain values of the same type that are equal."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, PLAIN):
        return bool(one == other) or (one != one and other != other)  # NaN is NaN here
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, set) and one == other


def holds_tensor(value: Any, depth: int = DEPTH) -> bool:
    """Whether it is a tensor, or has one in it."""
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(value, (*PLAIN, *LEAVES)):
        return False
    deeper = partial(holds_tensor, depth=depth - 1)
    if isinstance(value, dict):
        return any(map(deeper, value.values()))
    if isinstance(value, (list, tuple, set, deque)):
        return any(map(deeper, value))
    return hasattr(value, "__dict__") and deeper(vars(value))


def plain_tensors(policy: nn.Module) -> list[str]:
    """Names of the tensors that are attributes of a module and neither parameters nor buffers."""
    named = [(f"{name}.".lstrip("."), module) for name, module in policy.named_modules()]
    return [
        f"{name}{key}" for name, module in named for key, value in vars(module).items() if isinstance(value, Tensor)
    ]
