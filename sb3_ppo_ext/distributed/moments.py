"""Means and variances over the rows of all processes, from sums in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sb3_ppo_ext.distributed.group import join_processes
from sb3_ppo_ext.distributed.processes import Processes

SMALLEST_VARIANCE = 1e-14  # in units of the mean square: below it there are the rounding errors of equal numbers


class Moments(NamedTuple):
    """Of groups of numbers, [M] each, in float64: how many, their sum, the sum of their squares."""

    number: Tensor
    total: Tensor
    squares: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of each group."""
        return self.total / self.number

    def deviations(self) -> Tensor:
        """The sum of squared deviations from the mean of each group."""
        deviations = self.squares - self.total.square() / self.number
        return torch.where(deviations > SMALLEST_VARIANCE * self.squares, deviations, 0.0)

    def normalized(self, numbers: Tensor, group: Tensor) -> Tensor:
        """``(A - mean) / (std + 1e-8)`` by the moments of each number's group; a single number stays as it is.

        The standard deviation is the unbiased one, as in ``objective.losses.normalized``.
        """
        std = (self.deviations() / (self.number - 1)).sqrt()
        alone = self.number <= 1
        mean = torch.where(alone, 0.0, self.mean).to(numbers.dtype)
        scale = torch.where(alone, 1.0, std + 1e-8).to(numbers.dtype)
        return (numbers - mean[group]) / scale[group]


def moments_of(numbers: Tensor, group: Tensor, groups: int, processes: Processes) -> Moments:
    """The moments of ``groups`` groups over all processes; ``group`` [B] names that of each of the numbers [B]."""
    exact = numbers.double()
    table = exact.new_zeros(3, groups)
    for row, column in zip(table, (torch.ones_like(exact), exact, exact.square()), strict=True):
        row.index_add_(0, group, column)
    processes.add(table)
    return Moments(*table)


def normalized_over_processes(advantage: Tensor, processes: Processes | None = None) -> Tensor:
    """``(A - mean) / (std + 1e-8)`` by mean and unbiased standard deviation over the rows of all processes."""
    flat = advantage.flatten()
    group = torch.zeros_like(flat, dtype=torch.long)
    moments = moments_of(flat, group, 1, join_processes() if processes is None else processes)
    return moments.normalized(flat, group).view_as(advantage)
