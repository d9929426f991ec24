"""Graphs of functions that run on a GPU: compiled in this process, and recorded where their tensors stay in place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.utils._triton import has_triton

from sb3_ppo_ext.device.engine import RECORDERS
from sb3_ppo_ext.device.epochs import as_traced, fused
from sb3_ppo_ext.device.update import DeviceRecordings
from sb3_ppo_ext.graphs import Function, Graph, Graphs
from sb3_ppo_ext.tracing import Inputs, tensors_of, trace


class DeviceGraphs(Graphs):
    """As ``Graphs``; TorchInductor compiles where there is Triton, and keeps what it made in its own cache.

    ``recordings`` are for those who launch so many kernels that launching them is most of the work.
    """

    def __init__(self, device_type: str, showing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        super().__init__(showing)
        self.recordings = DeviceRecordings(RECORDERS[device_type](), fused if has_triton() else as_traced)

    def _make(self, key: Any, function: Function, inputs: Inputs, draws: bool) -> None:
        assert not draws, "what is drawn is an input here"
        traced = trace(function, inputs)
        self.made += 1
        with self.showing():
            call = self.recordings.finish(traced, tensors_of(inputs))
        self.keep(key, Graph(lambda tensors: list(call(*tensors)), []))
