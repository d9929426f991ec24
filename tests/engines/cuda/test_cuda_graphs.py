"""What a recording as a CUDA graph has to show before it is believed; with functions in the place of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.engines.cpu.libraries import CompileError
from sb3_ppo_ext.engines.cuda.cuda_graphs import CudaGraphs


class Faked(CudaGraphs):
    """CUDA graphs whose replay is the function itself, or nothing if they are ``lazy``."""

    lazy = False

    def _warm_up(self, run: Any, changed: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        run()

    def _captured(self, run: Any) -> Any:
        class Graph:
            def replay(self) -> None:
                if not Faked.lazy:
                    run()

        return Graph()


@pytest.mark.parametrize("lazy", [False, True])
def test_a_graph_is_believed_when_it_reproduces_what_it_recorded(monkeypatch: pytest.MonkeyPatch, lazy: bool) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(Faked, "lazy", lazy)
    weight = torch.full((3,), 100.0)

    def run() -> None:
        weight.add_(torch.tensor([1e-3, 0.0, -1e-3]))

    if lazy:  # replays nothing: a change of a hundred-thousandth is missed
        with pytest.raises(CompileError, match="does not reproduce"):
            Faked().record(run, [weight])
    else:
        replay = Faked().record(run, [weight])
        assert weight.tolist() == [100.0] * 3
        replay()
        assert weight[0] > 100
        return
    assert weight.tolist() == [100.0] * 3


def test_what_cannot_be_recorded_says_why_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(2)

    def run() -> None:
        weight.add_(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(CompileError, match=r"as a CUDA graph \(operation not permitted when stream is capturing\)"):
        Faked().record(run, [weight])
    assert weight.tolist() == [1, 1]
