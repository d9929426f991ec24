"""The reduction seam: the gradient and the statistics of a minibatch become those of the rows of all processes.

One flat sum for each minibatch carries the gradient before it is clipped and the statistics, both weighted by the
process's share of the rows. Everything after it (norm, clip, early stop, controllers, the step) is computed from the
same bits by every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

from sb3_ppo_ext.distributed.group import join_processes
from sb3_ppo_ext.distributed.processes import Processes


@overload
def reduce_gradients(
    parameters: Iterable[Tensor],
    statistics: Tensor,
    share: float | None = None,
    processes: Processes | None = None,
) -> Tensor: ...


@overload
def reduce_gradients(
    parameters: Iterable[Tensor],
    statistics: None = None,
    share: float | None = None,
    processes: Processes | None = None,
) -> None: ...


@torch.no_grad()
def reduce_gradients(
    parameters: Iterable[Tensor],
    statistics: Tensor | None = None,
    share: float | None = None,
    processes: Processes | None = None,
) -> Tensor | None:
    """Replaces the gradient of every parameter by that of the rows of all processes; returns their ``statistics`` [K].

    It is called by every process between ``backward()`` and the clipping of the gradient. Gradients and statistics are
    means over this process's rows, and ``share`` is its part of all rows: 3 rows of 8 are a share of 0.375. The shares
    of all processes add up to 1; without one, all have the same. A parameter that has a gradient in no process stays
    without, so that the optimizer leaves it where it is. ``processes`` are those of ``join_processes()``.
    """
    processes = join_processes() if processes is None else processes
    share = 1 / processes.count if share is None else share
    if processes.count == 1:
        return statistics
    of = list(parameters)
    gradients = [parameter.grad for parameter in of]
    known = torch.tensor([gradient is not None for gradient in gradients], dtype=torch.float32, device=of[0].device)
    filled = [torch.zeros_like(p) if gradient is None else gradient for p, gradient in zip(of, gradients, strict=True)]
    numbers = [known] if statistics is None else [known, statistics.float() * share]
    flat = torch.cat([*(gradient.reshape(-1).float() * share for gradient in filled), *numbers])
    processes.add(flat)
    reduced, known, *found = torch.split(flat, [flat.numel() - sum(map(len, numbers)), *map(len, numbers)])
    _write(of, gradients, reduced, known.tolist())
    return found[0] if found else None


def _write(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], flat: Tensor, known: list[float]) -> None:
    views = torch.split(flat, [parameter.numel() for parameter in parameters])
    for parameter, gradient, view, somewhere in zip(parameters, gradients, views, known, strict=True):
        if gradient is not None:
            gradient.copy_(view.view_as(gradient))
        elif somewhere:
            parameter.grad = view.view_as(parameter).to(parameter.dtype)
