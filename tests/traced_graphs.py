"""Graphs that are traced and run as they are, without the compiler: what is compiled, in a fraction of the time."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sb3_ppo_ext.engines.graph_cache import Graph, Graphs


class Traced(Graphs):
    """Counts the calls of each kind, and remembers the libraries that would have been compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.libraries: list[Path] = []

    def _finish(self) -> None:
        for key, job, noise in self._awaited or []:
            self.libraries.append(job.path)
            self.known[key] = Graph(partial(self._run, key[0], job.traced), noise)

    def _run(self, kind: str, graph: torch.fx.GraphModule, tensors: list[Tensor]) -> list[Tensor]:
        self.calls[kind] += 1
        return list(graph(*tensors))
