"""Graphs of functions that run on a GPU: compiled in this process, and recorded where their tensors stay in place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import fx

from sb3_ppo_ext.engines.cuda.engine import cuda_graph_cache
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graph, Graphs, evict_oldest
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of
from sb3_ppo_ext.host.pytorch.graphs import Varying


class DeviceGraphs(Graphs):
    """``Graphs`` that TorchInductor compiles where there is Triton, and stores in its own cache.

    ``recordings`` are for functions that launch so many kernels that launching them is most of the work.
    """

    def __init__(
        self, device_type: str, while_compiling: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        super().__init__(while_compiling)
        self.recordings = cuda_graph_cache(device_type)

    def knows(self, kind: str) -> bool:
        """Whether there is a graph or a recording of that kind, for whatever inputs."""
        return super().knows(kind) or any(key[0] == kind for key in self.recordings.known)

    def _make(self, key: Any, traced: fx.GraphModule, inputs: Inputs, varying: Varying) -> None:
        if varying:
            raise CompileError("graphs for batches of any size are for a CPU")
        with self.while_compiling():
            call = self.recordings.compile(traced, tensors_of(inputs))
        evict_oldest(self.known, key)
        self.known[key] = Graph(lambda tensors: list(call(*tensors)), [])
