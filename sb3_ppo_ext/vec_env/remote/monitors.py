"""``Monitor`` of an environment that is made once more: its file and its clock go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from stable_baselines3.common import monitor


class AppendingWriter(monitor.ResultsWriter):
    """A ``ResultsWriter`` that goes on with the file where there is one."""

    def __init__(self, filename: str = "", header: Any = None, extra_keys: Any = (), *_: Any, **__: Any) -> None:
        super().__init__(filename, header, extra_keys, override_existing=False)
        if self.file_handler.tell() == 0:  # on another machine
            self.file_handler.write(f"#{json.dumps(header or {})}\n")
            self.logger.writeheader()
            self.file_handler.flush()


@contextmanager
def appending(wanted: bool) -> Iterator[None]:
    """Monitors that are made meanwhile append to their files. It is used in worker processes alone."""
    if not wanted:
        yield
        return
    original = monitor.ResultsWriter
    monitor.ResultsWriter = AppendingWriter  # type: ignore[misc]
    try:
        yield
    finally:
        monitor.ResultsWriter = original  # type: ignore[misc]


def clock_of(env: Any) -> float | None:
    """The start of the clock of the environment's monitor; None without one."""
    found = next(_monitors(env), None)
    return None if found is None else found.t_start


def set_clock(env: Any, start: float) -> None:
    """Lets the clocks of its monitors go on."""
    for layer in _monitors(env):
        layer.t_start = start


def _monitors(env: Any) -> Iterator[monitor.Monitor]:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, monitor.Monitor):
            yield env
        env = env.env
