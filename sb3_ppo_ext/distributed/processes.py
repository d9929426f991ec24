"""The processes that train a model together, and how numbers become those of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

Errors = tuple[type[BaseException], ...]


class ProcessFailedError(RuntimeError):
    """Another process of the training has failed, ended or stopped answering; the text begins with its rank."""


class StoppedElsewhere(Exception):
    """Another process ends the rollout: a callback of it has returned False after ``timesteps`` of the run."""

    def __init__(self, timesteps: int) -> None:
        super().__init__(f"another process has stopped after {timesteps} timesteps")
        self.timesteps = timesteps


class Processes(Protocol):
    """All processes of a training; every method is called by all of them, in the same order."""

    rank: int  # of this process; 0 logs, evaluates and saves
    count: int

    def add(self, tensor: Tensor) -> None:
        """Replaces ``tensor`` by its sum over the processes, with the same bits in each."""
        ...

    def begin_add(self, tensor: Tensor) -> Callable[[], None]:
        """Begins ``add``, and returns the function that waits for its end; ``tensor`` is not to be touched before."""
        ...

    def maximum(self, tensor: Tensor) -> None:
        """Replaces ``tensor`` by its greatest values over the processes."""
        ...

    def copy_first(self, tensor: Tensor) -> None:
        """Replaces ``tensor`` by that of rank 0."""
        ...

    def objects(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; they are pickled."""
        ...

    def agree(
        self, error: BaseException | None, kinds: Errors = (), *, stop: bool = False, count: int = 0
    ) -> tuple[bool, int]:
        """Raises ``error``; in all processes where any of them has one.

        In the others it is a ``ProcessFailedError``, or of the same kind where that is one of ``kinds``. Otherwise it
        returns whether any of them stops, and the greatest of their counts.
        """
        ...

    def leave(self, error: BaseException) -> None:
        """Ends the training of all processes with ``error``, unless it is agreed on; the others need not call it."""
        ...


class OneProcess:
    """A training by this process alone: nothing is to be done."""

    rank = 0
    count = 1

    def add(self, tensor: Tensor) -> None:
        """Leaves the tensor as it is."""

    def begin_add(self, tensor: Tensor) -> Callable[[], None]:
        """Leaves the tensor as it is; there is nothing to wait for."""
        return lambda: None

    def maximum(self, tensor: Tensor) -> None:
        """Leaves the tensor as it is."""

    def copy_first(self, tensor: Tensor) -> None:
        """Leaves the tensor as it is."""

    def objects(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def agree(
        self, error: BaseException | None, kinds: Errors = (), *, stop: bool = False, count: int = 0
    ) -> tuple[bool, int]:
        """Raises ``error``; otherwise returns the arguments."""
        if error is not None:
            raise error
        return stop, count

    def leave(self, error: BaseException) -> None:
        """Does nothing."""


ALONE = OneProcess()


@contextmanager
def together(processes: Processes, *kinds: type[BaseException]) -> Iterator[None]:
    """What the block raises in one process is raised in all, at its end; see ``Processes.agree``."""
    error: BaseException | None = None
    try:
        yield
    except ProcessFailedError:  # the others know
        raise
    except BaseException as caught:
        error = caught
    processes.agree(error, kinds)


@contextmanager
def ended_by_all(processes: Processes, *common: type[BaseException]) -> Iterator[None]:
    """What leaves the block in one process ends the others as well; ``common`` errors are those all have anyway."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, (ProcessFailedError, *common)):
            processes.leave(error)
        raise
