"""The random streams of models that take turns in a process.

Python, numpy and torch have one generator each for the whole process. Seeding a model, or putting back what a saved one
drew from, replaces their states: done while another model learns, that one's noise would begin again at an earlier
place. So a seeded model that is made or loaded then keeps its streams to itself until it learns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_ppo_ext.saving import random_state, restore_random_state

_LOCK = threading.Lock()
_learning = 0  # calls of learn() that run, in all threads
_in_thread = threading.local()


@contextmanager
def learning_from_its_own(model: Any) -> Iterator[None]:
    """Around ``learn()``: with the streams the model keeps, if any; then those of the ``learn()`` around it go on."""
    global _learning
    around = None
    nested = getattr(_in_thread, "depth", 0)
    if model._random_state is not None:
        around = random_state(0) if nested else None
        restore_random_state(model._random_state)
        model._random_state = None
    with _LOCK:
        _learning += 1
    _in_thread.depth = nested + 1
    try:
        yield
    finally:
        _in_thread.depth = nested
        with _LOCK:
            _learning -= 1
        if around is not None:
            model._random_state = _states_of(model)
            restore_random_state(around)


def states_while_learning() -> dict[str, Any] | None:
    """The states of the process, where some model learns from them; else None."""
    return random_state(0) if _learning else None


@contextmanager
def seeding(model: Any) -> Iterator[None]:
    """Around what seeds the generators for ``model`` and draws for it: while another learns, its states come back."""
    around, before = states_while_learning(), model._random_state
    try:
        yield
        model._random_state = before  # seeding has dropped it
        if around is not None and (before is None or before["seed"] != model.seed):
            model._random_state = _states_of(model)
    finally:
        if around is not None and model.seed is not None:
            restore_random_state(around)


def states_to_save(model: Any) -> dict[str, Any] | None:
    """The states a loaded model continues from; None for an unseeded one, whose loading leaves the generators alone."""
    return model._random_state or _states_of(model)


def _states_of(model: Any) -> dict[str, Any] | None:
    return None if model.seed is None else random_state(model.seed)


def after_loading(model: Any, around: dict[str, Any] | None) -> bool:
    """Puts the streams in place from which a saved model goes on; or back those of the model that learns ``around``.

    Whether the model goes on from saved streams, at once or when it learns.
    """
    state = model._random_state
    continues = state is not None and state["seed"] == model.seed
    if around is not None:
        if model.seed is not None:
            restore_random_state(around)
        return continues
    model._random_state = None
    if continues:
        restore_random_state(state)
    return continues
