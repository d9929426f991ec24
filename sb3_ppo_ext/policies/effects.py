"""Passes over a policy besides those that PPO makes, which must leave no trace: what PPO has none of changes nothing.

Modules of a user's own may do more than compute: draw numbers, count their calls, move a running mean. The modules of
torch and of the libraries around it do not, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sb3_ppo_ext.host.pytorch.modules import hook_tables, shared_hook_tables
from sb3_ppo_ext.policies.side_effects import Snapshot
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


def only_computes(policy: nn.Module) -> bool:
    """Whether a pass in evaluation mode is known to do nothing else."""
    if any(shared_hook_tables()):
        return False
    return all(
        type(module).__module__.partition(".")[0] in KNOWN
        and not any(hook_tables(module))
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
    before = Snapshot(policy)
    values = [(tensor, tensor.detach().clone()) for tensor in before.tensors()]
    try:
        yield
    finally:
        before.restore()
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        restore_random_state(streams)
