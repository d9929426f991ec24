"""Passes over a policy besides those that PPO makes, which must leave no trace: what PPO has none of changes nothing.

Modules of a user's own may do more than compute: draw numbers, count their calls, move a running mean. The modules of
torch and of the libraries around it do not, in evaluation mode.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from sb3_ppo_ext.policies.direct_forward import HOOKS
from sb3_ppo_ext.saving import random_state, restore_random_state

KNOWN = frozenset(
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
OF_ALL_MODULES = frozenset(vars(nn.Module()))  # attributes: tables of parameters, buffers, hooks, ...
# What a module may change without assigning it.
MUTABLE = (list, dict, set, deque, np.ndarray, np.random.Generator, np.random.RandomState, random.Random)


def only_computes(policy: nn.Module) -> bool:
    """Whether a pass in evaluation mode is known to do nothing else."""
    if any(getattr(global_hooks, f"_global{name}") for name in HOOKS):
        return False
    return all(
        type(module).__module__.partition(".")[0] in KNOWN
        and not any(getattr(module, name) for name in HOOKS)
        and "forward" not in vars(module)
        for module in policy.modules()
    )


@contextmanager
def without_trace(policy: nn.Module) -> Iterator[None]:
    """Random streams, buffers and attributes are afterwards what they were; global variables are out of reach."""
    if only_computes(policy):
        yield
        return
    streams = random_state(0)
    befores = [Before(module) for module in policy.modules()]
    try:
        yield
    finally:
        for before in befores:
            before.restore()
        restore_random_state(streams)


class Before:
    """A module's buffers and attributes. What can be changed in place is lent to it as a copy until ``restore``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes, self.buffers = dict(vars(module)), dict(module._buffers)
        found = [*self.attributes.values(), *self.buffers.values()]
        self.tensors = [(one, one.detach().clone()) for one in found if isinstance(one, Tensor)]
        self.generators = [(one, one.get_state()) for one in found if isinstance(one, torch.Generator)]
        for name, value in self.attributes.items():
            if type(value) in MUTABLE and name not in OF_ALL_MODULES:
                vars(module)[name] = copy.deepcopy(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts all of it back in its place."""
        attributes: dict[str, Any] = vars(self.module)
        attributes.clear()
        attributes.update(self.attributes)
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        for tensor, value in self.tensors:
            tensor.copy_(value)
        for generator, state in self.generators:
            generator.set_state(state)
