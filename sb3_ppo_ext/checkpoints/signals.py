"""SIGTERM and SIGUSR1 while a run with checkpoints learns: noted by the handler, answered by the training loop."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.checkpoints.environments.workers import workers_of

NAMES = ("SIGTERM", "SIGUSR1")  # what schedulers send: SLURM, Kubernetes, systemd, torchrun

Handler = Callable[[int, FrameType | None], Any]


def numbers() -> list[int]:
    """The numbers of those signals that the system has."""
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


@contextmanager
def outliving(vec_env: VecEnv, wanted: bool, seconds: float) -> Iterator[None]:
    """Schedulers signal worker processes too: a worker ends so many seconds later, so that its state can be saved."""
    below = workers_of(vec_env.unwrapped) if wanted and os.name == "posix" else None
    if below is None:
        yield
        return
    below.call(functools.partial(end_later, seconds=seconds))
    try:
        yield
    finally:
        with suppress(OSError, EOFError):  # of workers that have ended
            below.call(end_at_once)


def end_later(env: Any, seconds: float) -> None:
    """In a worker: the first signal starts a clock, the second ends the process."""

    def start_clock(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1.0))
        signal.signal(number, signal.SIG_DFL)

    for number in numbers():
        signal.signal(number, start_clock)


def end_at_once(env: Any) -> None:
    """In a worker: signals end the process, as the parent expects when it exits itself."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in numbers():
        signal.signal(number, signal.SIG_DFL)


class StopRequest:
    """The first signal to stop that the process has received, and its time."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def name(self) -> str:
        """The name of the signal."""
        return "" if self.number is None else signal.Signals(self.number).name

    @property
    def seconds_ago(self) -> float:
        """The seconds that have passed since that signal."""
        return time.monotonic() - self.at

    @contextmanager
    def noticed(self, wanted: bool) -> Iterator[None]:
        """While it lasts, the signals are noted; outside the main thread, where no handler can be set, they are not."""
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.number, self._process = None, os.getpid()
        self._before = {number: signal.signal(number, self._note) for number in numbers()}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                if signal.getsignal(number) == self._note:  # not one that was set since
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked since, which is to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.number is None:  # a second one changes nothing
            self.number, self.at = number, time.monotonic()
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
