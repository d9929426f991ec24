"""Several processes over ``torch.distributed``, and what is said where one of them fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from sb3_ppo_ext.distributed.processes import Errors, ProcessFailedError
from sb3_ppo_ext.host.pytorch.process_groups import store_under

ROLL_CALL = 2.0  # seconds in which a process that is alive notices that another has left
EXCHANGED = 2**20  # bytes, and no more: the exchange takes twice the memory of the tensor
ALWAYS_ALIKE = (KeyboardInterrupt, SystemExit)  # raised as such in all processes


class ProcessGroup:
    """The processes of the default group. Tensors on a CPU travel by gloo, others by the default group's backend.

    A failure that is not agreed on closes the connections of the process, so that the others stop waiting within
    milliseconds; its text is in the store of the default group, where they read it.
    """

    def __init__(self, timeout: Any) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._store = store_under("sb3_ppo_ext")
        # Made now: a group that is first needed after a process has died can wait for it for ever.
        self._gloo: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._agreed: BaseException | None = None
        self._failure: str | None = None  # why the training of all processes has ended

    def add(self, tensor: Tensor) -> None:
        """Replaces ``tensor`` by its sum over the processes."""
        self.begin_add(tensor)()

    def begin_add(self, tensor: Tensor) -> Callable[[], None]:
        """Begins ``add``, and returns the function that waits for its end; ``tensor`` is not to be touched before.

        Two processes exchange few numbers at once, where a ring makes two exchanges, one after the other.
        """
        group, parts = self._group_of(tensor), []
        with self._answered():
            if self.count == 2 and tensor.device.type == "cpu" and tensor.nbytes <= EXCHANGED:
                parts = [torch.empty_like(tensor) for _ in range(2)]
                work: Any = dist.all_gather(parts, tensor, group=group, async_op=True)
            else:
                work = dist.all_reduce(tensor, dist.ReduceOp.SUM, group=group, async_op=True)

        def finish() -> None:
            with self._answered():
                work.wait()
            if parts:
                torch.add(*parts, out=tensor)

        return finish

    def maximum(self, tensor: Tensor) -> None:
        """Replaces ``tensor`` by its greatest values over the processes; a NaN may be lost."""
        with self._answered():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group_of(tensor))

    def copy_first(self, tensor: Tensor) -> None:
        """Replaces ``tensor`` by that of rank 0."""
        with self._answered():
            dist.broadcast(tensor, 0, group=self._group_of(tensor))

    def objects(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        values: list[Any] = [None] * self.count
        with self._answered():
            dist.all_gather_object(values, value, group=self._gloo)
        return values

    def agree(
        self, error: BaseException | None, kinds: Errors = (), *, stop: bool = False, count: int = 0
    ) -> tuple[bool, int]:
        """Raises where any process has an error; returns whether any stops, and the greatest of the counts."""
        votes = torch.tensor([error is not None, stop, count], dtype=torch.int64)
        self.maximum(votes)
        failed, stopped, greatest = votes.tolist()
        if failed:
            self._agreed = error
            reports = self.objects(None if error is None else (type(error).__name__, _text(error)))
            if error is not None:
                raise error
            rank = next(rank for rank, report in enumerate(reports) if report is not None)
            kind, text = reports[rank]
            self._agreed = rebuilt(rank, kind, text, kinds)
            raise self._agreed
        return bool(stopped), greatest

    def leave(self, error: BaseException) -> None:
        """Ends the training of all processes with ``error``, unless they have agreed on it."""
        if error is self._agreed or self._gloo is None:
            return
        kind, text = type(error).__name__, _text(error)
        self._failure = f"rank {self.rank}: {text}"
        with contextlib.suppress(RuntimeError):  # the store may be that of a process that has ended
            if self._store.add("failures", 1) == 1:
                self._store.set("failure", f"{self.rank}\n{kind}\n{text}")
        self._close()

    def _group_of(self, tensor: Tensor) -> Any:
        if self._failure is not None:
            raise ProcessFailedError(f"the training of all processes has ended ({self._failure}); start it again")
        return self._gloo if tensor.device.type == "cpu" else None

    def _close(self) -> None:
        group, self._gloo = self._gloo, None
        with contextlib.suppress(RuntimeError, ValueError):  # the default group may have been destroyed
            dist.destroy_process_group(group)
        del group  # the connections are closed with the last reference

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Around a collective: where it fails, the error says which process is missing, and why."""
        began = time.monotonic()
        try:
            yield
        except ProcessFailedError:
            raise
        except RuntimeError as error:
            failure = self._missing(time.monotonic() - began)
            self._failure = str(failure) or type(failure).__name__
            self._agreed = failure
            raise failure from error

    def _missing(self, waited: float) -> BaseException:
        """The error that another process has left, or one that names those that do not answer."""
        self._close()
        try:
            self._store.set(f"present {self.rank}", "")
            _wait(lambda: bool(self._store.check(["failure"])))
            if self._store.check(["failure"]):
                rank, kind, text = self._store.get("failure").decode().split("\n", 2)
                return rebuilt(int(rank), kind, text, ())
            absent = [rank for rank in range(self.count) if not self._store.check([f"present {rank}"])]
        except RuntimeError:
            absent = [0]  # which keeps the store, where no launcher does
        ranks = ", ".join(map(str, absent)) or "unknown"
        return ProcessFailedError(
            f"rank {ranks}: no answer for {waited:.0f} s; the process was killed, or hangs. The run goes on from its "
            "last checkpoint where it is started again with learn(checkpoint=...) or ppox train --resume"
        )


def _wait(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds, or after ``ROLL_CALL`` seconds."""
    end = time.monotonic() + ROLL_CALL
    while time.monotonic() < end and not condition():
        time.sleep(0.02)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def rebuilt(rank: int, kind: str, text: str, kinds: Errors) -> BaseException:
    """The error of another process as this one raises it."""
    for known in (*kinds, *ALWAYS_ALIKE):
        if known.__name__ == kind:
            text = text.removeprefix(f"{kind}: ")
            if known is SystemExit and text.isdigit():  # a status, which the launcher reads
                return SystemExit(int(text))
            same_kind: BaseException = known(f"rank {rank}: {text}")
            return same_kind
    return ProcessFailedError(f"rank {rank}: {text}")
