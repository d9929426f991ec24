"""Graphs that are traced and run as they are, without the compiler: what is compiled, in a fraction of the time."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.graph_cache import Graphs, evict_oldest


class Traced(Graphs):
    """Counts the calls of each kind, and remembers the libraries that would have been compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.libraries: list[Path] = []

    def _finish(self) -> None:
        for key, job, graph in self._pending or []:
            self.libraries.append(job.path)
            self.known[key] = graph._replace(call=partial(self._run, key[0], job.traced))

    def _run(self, kind: str, graph: torch.fx.GraphModule, tensors: list[Tensor]) -> list[Tensor]:
        self.calls[kind] += 1
        with torch.no_grad():
            return list(graph(*tensors))


def trace_only(model: PPOX, graphs: Traced | None = None) -> Traced:
    """Lets a model that compiles run what is traced, from its next ``learn()`` on; its graphs."""
    engine = model._family.compiled(model._run())
    graphs = graphs or Traced()
    engine.graphs = graphs  # type: ignore[attr-defined]  # of both engines on a CPU
    model._engines.engine = engine
    return graphs


def graphs_of(model: PPOX) -> Traced:
    """Those that ``trace_only`` has given it."""
    graphs = model._engines.engine.graphs  # type: ignore[union-attr]  # as above
    assert isinstance(graphs, Traced)
    return graphs


def run_as_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets graphs run as they were traced."""

    def finish(self: Graphs) -> None:
        for key, job, graph in self._pending or []:
            evict_oldest(self.known, key)
            self.known[key] = graph._replace(call=lambda tensors, traced=job.traced: list(traced(*tensors)))  # type: ignore[misc]

    monkeypatch.setattr(Graphs, "_finish", finish)
