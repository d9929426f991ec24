"""The compiled graphs of one model: made when first asked for, and anew when what they were made for has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from sb3_ppo_ext.engines.cpu import libraries as artifacts
from sb3_ppo_ext.engines.cpu.libraries import Call, Job
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.fingerprints import fingerprint, restless, signature
from sb3_ppo_ext.engines.noise import Noise, noise_as_inputs
from sb3_ppo_ext.engines.substitution import refuse_writes, written_constants
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of, trace

Function = Callable[[Inputs], tuple[Tensor, ...]]

KEPT = 4  # of one kind in one model, for those who alternate between two settings


class Graph(NamedTuple):
    """A compiled function: what it is called with are the tensors of its inputs, in order, and then its noise."""

    call: Call
    noise: list[Noise]
    path: Path | None = None  # of its library, where it is one
    written: tuple[str, ...] = ()  # names of the constants that it writes to


class Graphs:
    """Graphs in memory, by what they compute and for what; ``showing`` surrounds the time of compiling."""

    def __init__(self, showing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.showing = showing
        self.known: dict[Any, Graph] = {}
        self.made = 0  # graphs that were traced so far
        self._awaited: list[tuple[Any, Job, Graph]] | None = None  # what it will be, but for the call

    def get(
        self,
        kind: str,
        function: Function,
        inputs: Inputs,
        policy: nn.Module,
        plan: Any = None,
        *,
        draws: bool = False,
        writes: bool = False,
    ) -> Graph:
        """``function`` compiled for inputs of these shapes.

        With ``draws`` it may draw random numbers, with ``writes`` write to the policy's buffers.

        Within ``together()`` it may be none yet: ask again afterwards.
        """
        key = (kind, plan, torch.get_num_threads(), fingerprint(policy), signature(inputs))
        if key not in self.known:
            refuse_restless(self.known, key)
            traced = trace(function, inputs, policy, draws=draws)
            if not writes:
                refuse_writes(traced, inputs)
            self.made += 1
            self._make(key, traced, inputs)
        return self.known.get(key, UNFINISHED)

    def knows(self, kind: str) -> bool:
        """Whether there is one of that kind, for whatever inputs."""
        return any(key[0] == kind for key in self.known)

    @contextmanager
    def together(self) -> Iterator[None]:
        """All graphs asked for in this block are compiled at its end, at once."""
        self._awaited = []
        try:
            yield
            self._finish()
        finally:
            self._awaited = None

    def _make(self, key: Any, traced: fx.GraphModule, inputs: Inputs) -> None:
        noise = noise_as_inputs(traced)
        tensors = [*tensors_of(inputs), *(torch.ones(one.shape) for one in noise)]
        graph = UNFINISHED._replace(noise=noise, written=written_constants(traced, inputs))
        entry = (key, Job(traced, tensors, torch.get_num_threads()), graph)
        if self._awaited is not None:
            self._awaited.append(entry)
            return
        with self.together():
            self._awaited = [entry]

    def _finish(self) -> None:
        assert self._awaited is not None
        calls = {job.path: artifacts.find(job.path) for _, job, _ in self._awaited}
        missing = {job.path: job for _, job, _ in self._awaited if calls[job.path] is None}
        if missing:
            with self.showing():
                artifacts.compile_all(list(missing.values()))
        for key, job, graph in self._awaited:
            make_room(self.known, key)
            call = calls[job.path] or artifacts.load(job.path)
            self.known[key] = graph._replace(call=call, path=job.path)


def refuse_restless(known: dict[Any, Any], key: Any) -> None:
    """``CompileError`` where graphs for ``KEPT`` values of an attribute were made, and the next is asked for."""
    count, name = restless(known, key)
    if count >= KEPT:
        raise CompileError(
            f"{name} has changed again and again, and a graph holds for one value of it; a tensor that is a buffer may "
            "have any"
        )


def make_room(known: dict[Any, Any], key: Any) -> None:
    """Drops the oldest of the kind ``key[0]`` where there are ``KEPT``."""
    for old in [old for old in known if old[0] == key[0]][: 1 - KEPT]:
        del known[old]


def _unfinished(_: list[Tensor]) -> list[Tensor]:
    raise RuntimeError("called before it was compiled")


UNFINISHED = Graph(_unfinished, [])
