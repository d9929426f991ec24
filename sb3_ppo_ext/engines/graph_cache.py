"""The compiled graphs of one model: made when they are first needed, and anew for another policy or other shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from sb3_ppo_ext.engines.cpu import libraries
from sb3_ppo_ext.engines.cpu.libraries import Call, Job
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.fingerprints import changing_attribute, fingerprint, signature
from sb3_ppo_ext.engines.joint_graph import halves_of
from sb3_ppo_ext.engines.noise import Noise, noise_as_inputs
from sb3_ppo_ext.engines.substitution import refuse_writes, written_constants
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of, trace
from sb3_ppo_ext.host.pytorch.graphs import Varying

Function = Callable[[Inputs], tuple[Tensor, ...]]

GRAPHS_OF_A_KIND = 4  # in one model at most, for users who alternate between settings


class Graph(NamedTuple):
    """A compiled function of the tensors of its inputs, in order, and then its noise."""

    call: Call
    noise: list[Noise]
    path: Path | None = None  # of its library, where it is one
    written: tuple[str, ...] = ()  # names of the constants that it writes to


class Graphs:
    """Graphs in memory, by what they compute and for what; ``while_compiling`` surrounds the time of compiling."""

    def __init__(self, while_compiling: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.while_compiling = while_compiling
        self.known: dict[Any, Graph] = {}
        self.made = 0  # graphs that were traced so far
        self._pending: list[tuple[Any, Job, Graph]] | None = None  # graphs that lack nothing but their ``call``

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
        varying: Varying = (),
    ) -> Graph:
        """``function`` compiled for inputs of these shapes, of which the ``varying`` sizes may be any.

        With ``draws`` it may draw random numbers, with ``writes`` write to the policy's buffers. Within
        ``compiled_in_parallel()`` this may be ``UNFINISHED``; a later call returns the graph.
        """
        key = (kind, plan, torch.get_num_threads(), fingerprint(policy), signature(inputs), varying)
        if key not in self.known:
            refuse_endless_compiling(self.known, key)
            traced = trace(function, inputs, policy, draws=draws, varying=varying)
            if not writes:
                refuse_writes(traced, inputs)
            self.made += 1
            self._make(key, traced, inputs, varying)
        return self.known.get(key, UNFINISHED)

    def get_with_gradient(
        self, kind: str, function: Function, inputs: Inputs, module: nn.Module, varying: Varying
    ) -> tuple[Graph, Graph]:
        """A function, and its gradient, compiled for inputs of these shapes, of which the ``varying`` sizes may be any.

        ``function`` returns a result and gradients along the last of the inputs. The first graph takes the other inputs
        and returns the result and tensors to be kept; the second takes all inputs but the last, those tensors, and the
        last, and returns the gradients.
        """
        plan = (torch.get_num_threads(), fingerprint(module), signature(inputs), varying)
        keys = [(f"{half} of {kind}", *plan) for half in ("result", "gradient")]
        if keys[1] not in self.known:
            refuse_endless_compiling(self.known, keys[0])
            joint = trace(function, inputs, module, varying=varying)
            refuse_writes(joint, inputs)
            self.made += 1
            halves = halves_of(joint, tensors_of(inputs), varying)
            jobs = [Job(half.graph, half.inputs, torch.get_num_threads(), half.varying) for half in halves]
            with self.compiled_in_parallel():
                self._pending = [(key, job, UNFINISHED) for key, job in zip(keys, jobs, strict=True)]
        result, gradient = (self.known[key] for key in keys)
        return result, gradient

    def knows(self, kind: str) -> bool:
        """Whether there is a graph of that kind, for whatever inputs."""
        return any(key[0] == kind for key in self.known)

    @contextmanager
    def compiled_in_parallel(self) -> Iterator[None]:
        """Compiles all graphs that are got within the block at its end, at once."""
        self._pending = []
        try:
            yield
            self._finish()
        finally:
            self._pending = None

    def _make(self, key: Any, traced: fx.GraphModule, inputs: Inputs, varying: Varying) -> None:
        noise = noise_as_inputs(traced)
        tensors = [*tensors_of(inputs), *(torch.ones(draw.shape) for draw in noise)]
        graph = UNFINISHED._replace(noise=noise, written=written_constants(traced, inputs))
        entry = (key, Job(traced, tensors, torch.get_num_threads(), varying), graph)
        if self._pending is not None:
            self._pending.append(entry)
            return
        with self.compiled_in_parallel():
            self._pending = [entry]

    def _finish(self) -> None:
        assert self._pending is not None
        calls = {job.path: libraries.find(job.path) for _, job, _ in self._pending}
        missing = {job.path: job for _, job, _ in self._pending if calls[job.path] is None}
        if missing:
            with self.while_compiling():
                libraries.compile_all(list(missing.values()))
        for key, job, graph in self._pending:
            evict_oldest(self.known, key)
            call = calls[job.path] or libraries.load(job.path)
            self.known[key] = graph._replace(call=call, path=job.path)


def refuse_endless_compiling(known: dict[Any, Any], key: Any) -> None:
    """``CompileError`` where there are graphs for several values of an attribute already, and ``key`` has the next."""
    count, name = changing_attribute(known, key)
    if count >= GRAPHS_OF_A_KIND:
        raise CompileError(
            f"{name} has changed again and again, and a graph holds for one value of it; a tensor that is a buffer may "
            "have any"
        )


def evict_oldest(known: dict[Any, Any], key: Any) -> None:
    """Drops the oldest of the kind ``key[0]`` where there are ``GRAPHS_OF_A_KIND``."""
    for old in [old for old in known if old[0] == key[0]][: 1 - GRAPHS_OF_A_KIND]:
        del known[old]


def _unfinished(_: list[Tensor]) -> list[Tensor]:
    raise RuntimeError("called before it was compiled")


UNFINISHED = Graph(_unfinished, [])
