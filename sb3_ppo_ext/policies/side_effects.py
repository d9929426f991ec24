"""The side effects of a policy's forward pass: found, named and undone.

A user's modules may do more than compute: draw numbers, count their calls, move a running mean. The modules of torch
and of the libraries around it do not, in evaluation mode. A pass that PPO does not make must leave no trace of these
effects; and a graph, which runs no Python, cannot have them: an attribute would stay as tracing left it, and a number
drawn from NumPy would be the same for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from sb3_ppo_ext.host.pytorch.modules import hook_tables, shared_hook_tables
from sb3_ppo_ext.host.sb3 import DISTRIBUTION_SCRATCH
from sb3_ppo_ext.policies.attribute_values import (
    DEPTH,
    LEAVES,
    PLAIN,
    contents_of,
    holds_tensor,
    replace_contents,
    same,
)
from sb3_ppo_ext.saving import random_state, restore_random_state

# Packages whose modules only compute in evaluation mode.
LIBRARIES = frozenset(
    (
        "torch",
        "stable_baselines3",
        "sb3_ppo_ext",
        "sb3_ppo_ext_torchrl",
        "torchrl",
        "tensordict",
        "transformers",
        "peft",
    )
)
MISSING = object()


class Change(NamedTuple):
    """An effect of the forward pass, as the end of a sentence about it, and the value that is there now."""

    what: str  # "changes" and the attribute as its user writes it, or what was drawn
    now: Any = None
    owner: Any = None  # the object of the attribute
    key: Any = None

    @property
    def scratch(self) -> bool:
        """Whether tensors in it may differ from call to call, which is so in a distribution alone."""
        return isinstance(self.owner, Distribution) and holds_tensor(self.now)


class Container(NamedTuple):
    """A container whose contents can change in place."""

    where: str
    value: Any
    owner: Any
    contents: Any  # at the time of the snapshot

    def changes(self) -> Iterator[Change]:
        """The changes of the contents since the snapshot."""
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
        return _named_item(self.where, self.owner, key)

    def restore(self) -> None:
        """Puts the contents of the snapshot back."""
        if not same(self.contents, contents_of(self.value)):
            replace_contents(self.value, self.contents)


def _named_item(where: str, owner: Any, key: Any) -> str:
    return f"{where}[{key!r}]" if owner is None else f"{where}.{key}"


class Snapshot:
    """The attributes of a policy's modules, what these hold, and the states of the random generators."""

    def __init__(self, policy: nn.Module) -> None:
        self._modules = {id(module) for module in policy.modules()}
        self._seen: set[int] = set()
        self.containers: list[Container] = []
        for name, module in policy.named_modules():
            self._add(vars(module), name or type(policy).__name__, module, DEPTH)
        self._random = random_state(0)

    def _add(self, value: Any, where: str, owner: Any, depth: int) -> None:
        if id(value) in self._seen or depth == 0:
            return
        self._seen.add(id(value))
        contents = contents_of(value)
        self.containers.append(Container(where, value, owner, contents))
        if isinstance(contents, dict):
            for key, item in contents.items():
                self._visit(item, _named_item(where, owner, key), depth - 1)
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
        """Buffers, and tensors that attributes hold; a forward pass that writes to parameters cannot be undone."""
        for container in self.containers:
            contents = container.contents
            items = contents.values() if isinstance(contents, dict) else contents
            if isinstance(items, Iterable) and not isinstance(items, np.ndarray):
                yield from (item for item in items if isinstance(item, Tensor) and not isinstance(item, nn.Parameter))

    def changes(self) -> list[Change]:
        """The changes since the snapshot, except of what every call writes before it reads it."""
        found = [change for container in self.containers for change in container.changes()]
        found = [change for change in found if not (change.scratch and change.key in DISTRIBUTION_SCRATCH)]
        now = random_state(0)
        for stream, name in (("python", "Python's random"), ("numpy", "numpy.random")):
            if not same(self._random[stream], now[stream]):
                found.append(Change(f"draws from {name}"))
        return found

    def restore(self) -> None:
        """Puts contents and random generators back; values of tensors stay."""
        for container in self.containers:
            container.restore()
        restore_random_state(self._random)


def only_computes(policy: nn.Module) -> bool:
    """Whether a pass in evaluation mode is known to have no side effects."""
    return not any(shared_hook_tables()) and all(
        type(module).__module__.partition(".")[0] in LIBRARIES
        and not any(hook_tables(module))
        and "forward" not in vars(module)
        for module in policy.modules()
    )


@contextmanager
def without_trace(policy: nn.Module) -> Iterator[None]:
    """Undoes the side effects of the block on random generators, buffers and attributes; global variables remain."""
    if only_computes(policy):
        yield
        return
    before = Snapshot(policy)
    values = [(tensor, tensor.detach().clone()) for tensor in before.tensors()]
    try:
        yield
    finally:
        before.restore()
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


def plain_tensors(policy: nn.Module) -> list[str]:
    """Names of the tensors that are attributes of a module and neither parameters nor buffers."""
    named = [(f"{name}.".lstrip("."), module) for name, module in policy.named_modules()]
    return [
        f"{name}{key}" for name, module in named for key, value in vars(module).items() if isinstance(value, Tensor)
    ]
