"""The minibatches of several processes: gradient and step are a recording each, and the sum is taken between them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sb3_ppo_ext.distributed.processes import Processes
from sb3_ppo_ext.engines.cuda.cuda_graphs import Recorder
from sb3_ppo_ext.objective.statistics import MAXIMA, Statistics
from sb3_ppo_ext.update.step import COLUMNS


class Halves(Protocol):
    """The two halves of a minibatch, as ``EpochRecordings`` has them."""

    processes: Processes
    device: torch.device

    @property
    def flat_size(self) -> int:
        """The length of what ``gradient`` returns."""
        ...

    def gradient(self, order: Tensor) -> Tensor:
        """The gradient and the statistics of the rows ``order``, end to end."""
        ...

    def step(self, flat: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Takes the step; the row of the table [K], and whether it counts (0-d bool)."""
        ...

    def changed(self) -> list[Tensor]:
        """Every tensor that a step writes to."""
        ...


class ReducedMinibatches:
    """Minibatches of ``rows`` rows of this process, one after the other; the host waits for none of them.

    What is recorded is of this process alone, so that one which cannot record does not leave the others in a sum.
    """

    def __init__(self, epochs: Halves, rows: int, recorder: Recorder) -> None:
        self.rows, self.processes = rows, epochs.processes
        self.order = torch.arange(rows, device=epochs.device)
        size, own = epochs.flat_size, len(Statistics._fields)
        self.flat = torch.zeros(size, device=epochs.device)
        self.own = torch.zeros(own, device=epochs.device)  # the statistics of this process
        self.row = torch.zeros(len(COLUMNS), device=epochs.device)
        self.counts = torch.zeros((), dtype=torch.bool, device=epochs.device)
        is_maximum = torch.zeros(own, dtype=torch.bool, device=epochs.device)
        for index in MAXIMA:
            is_maximum[index] = True

        def gradient() -> None:
            self.flat.copy_(epochs.gradient(self.order))
            self.own.copy_(self.flat[-own:])

        def step() -> None:
            # Maxima remain those of this process until the update ends.
            self.flat[-own:] = torch.where(is_maximum, self.own, self.flat[-own:])
            row, counts = epochs.step(self.flat, rows)
            self.row.copy_(row)
            self.counts.copy_(counts)

        self._gradient = recorder.record(gradient, [self.flat, self.own])
        self._gradient()  # so that the step is tried with a gradient
        self._step = recorder.record(step, [*epochs.changed(), self.flat, self.row, self.counts])

    def __call__(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """The table [M, K] of the minibatches by these rows [M * B], and whether each counts [M]."""
        table, counts = [], []
        for rows in torch.split(order, self.rows):
            self.order.copy_(rows)
            self._gradient()
            self.processes.add(self.flat)
            self._step()
            table.append(self.row.clone())
            counts.append(self.counts.clone())
        return torch.stack(table), torch.stack(counts)
