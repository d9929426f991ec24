"""Work on a GPU recorded once and replayed: one launch for what would be thousands.

A recording reads from and writes to fixed addresses. The caller keeps the tensors that it was made with, and makes
another where one of them has been replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sb3_ppo_ext.engines.errors import CompileError, first_line

Run = Callable[[], None]

AGREEMENT = 0.02  # of the largest change of each tensor; atomic additions come in another order each time


class Recorder(Protocol):
    """Turns a function of tensors that stay where they are into one that does the same, faster."""

    def record(self, run: Run, changed: Sequence[Tensor]) -> Run:
        """``run`` recorded; afterwards ``changed``, all tensors it writes to, are as they were before."""
        ...


class CudaGraphs:
    """Records CUDA graphs, all in one pool of memory, and accepts one only if it reproduces what it recorded."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, run: Run, changed: Sequence[Tensor]) -> Run:
        """``run`` as a graph; ``CompileError`` where it waits for the device, or replays to other numbers."""
        before = [tensor.clone() for tensor in changed]
        try:
            self._warm_up(run, changed, before)
            expected = [tensor.clone() for tensor in changed]
            _restore(changed, before)
            graph = self._captured(run)
            graph.replay()
            torch.cuda.synchronize()
            _require_agreement(changed, expected, before)
        except CompileError:
            raise
        except RuntimeError as error:
            raise CompileError(f"it cannot be recorded as a CUDA graph ({first_line(error)})") from error
        finally:
            _restore(changed, before)
        replay: Run = graph.replay
        return replay

    def _warm_up(self, run: Run, changed: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        """Runs it twice: libraries make their handles and workspaces in the first runs, which a recording may not."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                _restore(changed, before)
                run()
        torch.cuda.current_stream().wait_stream(stream)

    def _captured(self, run: Run) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        if self._pool is None:
            self._pool = graph.pool()
        return graph


def _restore(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(old)


def _require_agreement(tensors: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, right, old in zip(tensors, expected, before, strict=True):
        replayed, first = tensor.double(), right.double()
        finite = first.isfinite() & old.isfinite()
        change, size = (first - old)[finite].abs(), old[finite].abs()
        allowed = AGREEMENT * change.max() + 1e-6 * size.max() if finite.any() else 0.0
        differs = ((replayed - first)[finite].abs() > allowed).any()
        if differs or not torch.equal(replayed.isfinite(), first.isfinite()):
            raise CompileError("the CUDA graph does not reproduce what was recorded")
