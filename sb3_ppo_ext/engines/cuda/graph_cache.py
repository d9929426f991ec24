"""Graphs of functions that run on a GPU: compiled in this process, and recorded where their tensors stay in place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import fx

from sb3_ppo_ext.engines.cuda.engine import recordings_on
from sb3_ppo_ext.engines.graph_cache import Graph, Graphs, make_room
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of


class DeviceGraphs(Graphs):
    """As ``Graphs``; TorchInductor compiles where there is Triton, and keeps what it made in its own cache.

    ``recordings`` are for those who launch so many kernels that launching them is most of the work.
    """

    def __init__(self, device_type: str, showing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        super().__init__(showing)
        self.recordings = recordings_on(device_type)

    def knows(self, kind: str) -> bool:
        """See ``Graphs``; a recording is as good."""
        return super().knows(kind) or any(key[0] == kind for key in self.recordings.known)

    def _make(self, key: Any, traced: fx.GraphModule, inputs: Inputs) -> None:
        with self.showing():
            call = self.recordings.finish(traced, tensors_of(inputs))
        make_room(self.known, key)
        self.known[key] = Graph(lambda tensors: list(call(*tensors)), [])
