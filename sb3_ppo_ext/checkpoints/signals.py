"""SIGTERM and SIGUSR1 while a run with checkpoints learns: noted by the handler, answered by the training loop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = ("SIGTERM", "SIGUSR1")  # what schedulers send: SLURM, Kubernetes, systemd, torchrun

Handler = Callable[[int, FrameType | None], Any]


class StopRequest:
    """Whether, and since when, the process has been asked to end."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def name(self) -> str:
        """Of the signal."""
        return "" if self.number is None else signal.Signals(self.number).name

    @property
    def seconds_ago(self) -> float:
        """Since the first of them."""
        return time.monotonic() - self.at

    @contextmanager
    def noticed(self, wanted: bool) -> Iterator[None]:
        """While it lasts, the signals are noted; outside the main thread, where no handler can be set, they are not."""
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        self.number, self._process = None, os.getpid()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
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
