"""Sides of a benchmark in processes of their own: what one does to its heap or its device serves no other."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.benchmarks.measuring import Seconds, Turn

Make = Callable[..., tuple[Turn, Any]]  # found by its name in a new process; its turn, and what it has to tell


def serve(make: Make, arguments: tuple[Any, ...], line: Connection) -> None:
    """What a side's process runs: a turn for every word on the line, until that is closed."""
    warnings.simplefilter("ignore")
    turn, told = make(*arguments)
    line.send(told)
    while line.recv():
        line.send(turn())


class Side:
    """A side in its process, until ``close()``; it gets ready while others do."""

    def __init__(self, make: Make, *arguments: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.line, other = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(make, arguments, other), daemon=True)
        self.process.start()
        other.close()

    def ready(self) -> Any:
        """Waits for it; what ``make`` had to tell. ``RuntimeError`` where it failed, whose messages are above."""
        try:
            return self.line.recv()
        except EOFError as error:
            raise RuntimeError("a side of the benchmark failed; its messages are above") from error

    def turn(self) -> Seconds:
        """One rollout and its update over there."""
        self.line.send(True)
        seconds: Seconds = self.line.recv()
        return seconds

    def close(self) -> None:
        """Ends the process."""
        self.line.send(False)
        self.process.join()
