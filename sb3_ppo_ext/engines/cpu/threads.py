"""The number of threads torch computes with while a model learns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sb3_ppo_ext.engines.channels_last import convolves
from sb3_ppo_ext.process_wide import ProcessWide

# Floating point operations of a minibatch's update from which several threads are faster than one.
MANY_THREADS_FROM = 40e6


def threads_for(policy: nn.Module, batch_size: int, available: int) -> int:
    """One for a small network, where several would mostly wait for each other; otherwise all ``available``."""
    return available if is_large(policy, batch_size) else 1


def is_large(policy: nn.Module, batch_size: int) -> bool:
    """Whether the update of a minibatch is much work: a convolution uses its parameters many times over."""
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    # Forward, and twice that backward; a multiplication and an addition each.
    return convolves(policy) or 6 * parameters * batch_size >= MANY_THREADS_FROM


class _ThisThread(threading.local):
    """The number of blocks of ``computing_with`` that this thread is in."""

    blocks = 0


_this_thread = _ThisThread()
_of_process = ProcessWide(torch.get_num_threads, lambda _: None)


def available_threads() -> int:
    """The threads torch may compute with, without what trainings in other threads have set for themselves."""
    with _of_process as number:
        current = torch.get_num_threads()  # in a new thread the number that any thread set last
        return current if _this_thread.blocks else max(number, current)


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Sets torch's number of threads until the end of the block, in this thread; never more than there were."""
    with _of_process:
        before = available_threads()
        _this_thread.blocks += 1
        try:
            _set(min(threads, before))
            yield
        finally:
            _this_thread.blocks -= 1
            _set(before)


def _set(number: int) -> None:
    if torch.get_num_threads() != number:  # to set even the same number changes how MKL counts
        torch.set_num_threads(number)
