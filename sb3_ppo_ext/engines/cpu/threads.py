"""How many threads torch computes with while a model learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sb3_ppo_ext.engines.channels_last import convolves

# Floating point operations of a minibatch's update from which several threads are faster than one.
MANY_THREADS_FROM = 40e6


def threads_for(policy: nn.Module, batch_size: int, available: int) -> int:
    """One for a small network, whose threads would mostly wait for each other; otherwise all that are ``available``."""
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    # Forward, and twice that backward; a multiplication and an addition each.
    return available if convolves(policy) or 6 * parameters * batch_size >= MANY_THREADS_FROM else 1


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Sets torch's number of threads until the end of the block; never more than there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
