"""The process's random state, swapped for an environment's while the environment runs."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np


class RandomState:
    """The states of ``random`` and ``numpy.random`` as one environment leaves them; within ``with`` they are in force.

    Games draw from the process's generators, so that environments beside each other, and the trainer, would change one
    another's draws.
    """

    def __init__(self, seed: int) -> None:
        self.inside: tuple[Any, Any] = (random.Random(seed).getstate(), np.random.RandomState(seed).get_state())
        self.outside: tuple[Any, Any] | None = None

    def __enter__(self) -> None:
        self.outside = random.getstate(), np.random.get_state()
        _set(self.inside)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.outside is not None
        self.inside = random.getstate(), np.random.get_state()
        _set(self.outside)
        self.outside = None


def _set(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
