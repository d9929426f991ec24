"""The reduction seam: the gradient and the statistics of a minibatch become those of the rows of all processes.

The gradient before it is clipped and the statistics are weighted by the process's share of the rows and added up; in
one sum, where the network is small. Everything after it (norm, clip, early stop, controllers, the step) is computed
from the same bits by every process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload

from torch import Tensor

from sb3_ppo_ext.distributed.gradient_sums import GradientSums
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
    return GradientSums(parameters, share, processes).finish(statistics)
