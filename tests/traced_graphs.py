"""Graphs that run as they were traced: all of the compiled engine of a CPU but the compiler."""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import Tensor

from sb3_ppo_ext.engines.graph_cache import Graphs


class Traced(Graphs):
    """Runs the traced graphs as they are, and counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def _finish(self) -> None:
        for key, job, graph in self._awaited or []:
            self.known[key] = graph._replace(call=partial(self._run, key[0], job.traced))

    def _run(self, kind: str, graph: torch.fx.GraphModule, tensors: list[Tensor]) -> list[Tensor]:
        self.calls[kind] += 1
        with torch.no_grad():
            return list(graph(*tensors))
