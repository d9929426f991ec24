"""Settings that the whole process shares, where trainings in several threads set and restore them in any order."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

State = TypeVar("State")


class ProcessWide(Generic[State]):
    """A setting that lasts from the first of overlapping ``with`` blocks to the last; each yields the value before it.

    If each thread restored the value that it had found, another thread's setting could remain for good.
    """

    def __init__(self, set_it: Callable[[], State], put_back: Callable[[State], object]) -> None:
        """``set_it`` returns the value before, with which ``put_back`` is called."""
        self._set_it, self._put_back = set_it, put_back
        self._lock = threading.Lock()
        self._holders = 0
        self._before: State

    def __enter__(self) -> State:
        with self._lock:
            if self._holders == 0:
                self._before = self._set_it()
            self._holders += 1
            return self._before

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._put_back(self._before)


def ignoring_warnings(message: str = "") -> ProcessWide[warnings.catch_warnings[None]]:
    """Suppresses warnings with a text that matches the pattern."""

    def ignore() -> warnings.catch_warnings[None]:
        caught = warnings.catch_warnings()
        caught.__enter__()
        warnings.filterwarnings("ignore", message)
        return caught

    return ProcessWide(ignore, lambda caught: caught.__exit__(None, None, None))
