"""The rule of a minibatch, written once for every engine, eager or traced: loss, statistics, and whether it steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sb3_ppo_ext.distributed.gradient_sums import GradientSums
from sb3_ppo_ext.distributed.processes import Processes
from sb3_ppo_ext.knobs.laws import select
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.losses import Reduce, masked_mean
from sb3_ppo_ext.objective.statistics import MAXIMA, Statistics, statistics
from sb3_ppo_ext.objective.terms import KnobValues, Objective, Terms, ppo_terms
from sb3_ppo_ext.policies.adapter import Evaluator

# The columns of a minibatch's row: its statistics, the gradient's norm before clipping (NaN where no gradient was
# computed), and whether its step was taken (1 or 0).
COLUMNS = (*Statistics._fields, "grad_norm", "stepped")
KL_RESOLUTION = 1e-6  # nats; float32

Number = TypeVar("Number", float, Tensor)


class Evaluated(NamedTuple):
    """A minibatch under the current parameters, with gradient."""

    new: Evaluation
    terms: Terms  # unweighted
    weighted: Terms
    loss: Tensor


def evaluated(
    adapter: Evaluator,
    minibatch: Minibatch,
    objective: Objective,
    knobs: KnobValues,
    *,
    value_scale: Tensor | None = None,
    share: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Evaluated:
    """The loss of a minibatch; times ``share`` where it is a micro-batch of one, so that the shares add up to it.

    ``value_scale`` and ``reduce`` as for ``ppo_terms``.
    """
    new = adapter.evaluate(minibatch)
    terms = ppo_terms(new, minibatch, objective, knobs, value_scale=value_scale, reduce=reduce)
    weighted = terms.weighted(knobs)
    loss = weighted.total()
    return Evaluated(new, terms, weighted, loss if share is None else loss * share)


def loss_and_statistics(
    adapter: Evaluator,
    minibatch: Minibatch,
    objective: Objective,
    knobs: KnobValues,
    *,
    value_scale: Tensor | None = None,
    share: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> tuple[Evaluated, Statistics]:
    """The minibatch as ``evaluated`` returns it, and its statistics, which have no gradient."""
    found = evaluated(adapter, minibatch, objective, knobs, value_scale=value_scale, share=share, reduce=reduce)
    return found, statistics(found.new, minibatch, found.terms, found.loss, objective, knobs)


def exceeds(approx_kl: Tensor, kl_limit: float | Tensor) -> Tensor:
    """Whether the sampled KL of a minibatch (nats per action) ends the update; compared in the KL's own precision."""
    return approx_kl > kl_limit


def takes_step(approx_kl: Tensor, grad_norm: Tensor, kl_limit: float | Tensor) -> Tensor:
    """Whether a minibatch takes its step: its KL is within the limit, and its gradient is finite.

    The step is skipped otherwise, so the parameters stay usable.
    """
    return grad_norm.isfinite() & ~exceeds(approx_kl, kl_limit)


def controller_inputs(kl: Number, clip_fraction: Number, kl_std: Number) -> dict[str, Number]:
    """The measurements for controllers: the KL by ``kl_estimator``, the fraction of ratios outside the clip range, and
    the KL of the deviation (NaN where it is not measured: no controller answers to it then).

    Rounding leaves a KL of some 1e-7 where old and new policy are the same; a law is given exactly 0 for it.
    """
    return {"kl": _resolved(kl), "clip_fraction": clip_fraction, "kl_std": _resolved(kl_std)}


def _resolved(kl: Number) -> Number:
    return select(abs(kl) < KL_RESOLUTION, 0.0, kl, like=kl)


def row_of(found: Statistics, grad_norm: Tensor | None, stepped: bool | Tensor) -> Tensor:
    """The row of one minibatch in the order of ``COLUMNS``."""
    statistics_row = found.row()
    norm = statistics_row.new_full((), torch.nan) if grad_norm is None else grad_norm.to(statistics_row.dtype)
    took = torch.as_tensor(stepped, dtype=statistics_row.dtype, device=statistics_row.device)
    return torch.cat((statistics_row, torch.stack((norm, took))))


def decided(row: Tensor, kl_limit: float | Tensor) -> tuple[Tensor, Tensor]:
    """Whether the minibatch of ``row`` takes its step, 0-d, and the row with that in its column."""
    norm = row[COLUMNS.index("grad_norm")]
    go = takes_step(Statistics.of_row(row).approx_kl, norm, kl_limit)
    return go, torch.cat((row[: COLUMNS.index("stepped")], go.to(row.dtype).reshape(1)))


@torch.no_grad()
def of_all_processes(
    found: Statistics, backward: Callable[[], None], sums: GradientSums | None
) -> tuple[Statistics, Callable[[], None]]:
    """The statistics of a minibatch over all processes, and the function that leaves its gradient in the parameters.

    Where there are several, that has been done: gradient and statistics travel together by the ``sums``, each times
    its share. Maxima remain this process's until the update ends (see ``with_maxima``).
    """
    if sums is None:
        return found, backward
    with torch.enable_grad():
        backward()
    row = sums.finish(found.row())
    assert row is not None
    row[MAXIMA] = found.row()[MAXIMA].to(row.dtype)
    return Statistics.of_row(row), lambda: None


class EpochStatistics(NamedTuple):
    """The statistics of an epoch: one row per minibatch, in the order of ``COLUMNS``."""

    table: np.ndarray  # [M, K], float64
    stopped: bool  # whether the last minibatch exceeded the limit of the KL, and so took no step

    @classmethod
    def of_rows(cls, rows: list[Tensor], *, stopped: bool) -> EpochStatistics:
        """Makes them of the rows of the minibatches, in one transfer from the device."""
        return cls(torch.stack(rows).cpu().double().numpy(), stopped)

    def column(self, name: str) -> np.ndarray:
        """The values of one statistic, minibatch after minibatch."""
        column: np.ndarray = self.table[:, COLUMNS.index(name)]
        return column

    def mean(self, name: str) -> float:
        """The mean of one statistic over the minibatches."""
        return float(self.column(name).mean())

    @property
    def to_step(self) -> np.ndarray:
        """The rows of the minibatches within the KL's limit; graphs skip steps with a gradient that is not finite."""
        return self.table[:-1] if self.stopped else self.table

    def grad_norms(self) -> np.ndarray:
        """The gradients' norms, of the minibatches that took their step."""
        norms: np.ndarray = self.column("grad_norm")[self.column("stepped") > 0]
        return norms

    def for_controllers(self) -> dict[str, float]:
        """The measurements for controllers, as means over the minibatches."""
        clip_fraction = self.mean("clip_fraction_low") + self.mean("clip_fraction_high")
        return controller_inputs(self.mean("kl"), clip_fraction, self.mean("kl_std"))


def with_maxima(epochs: list[EpochStatistics], processes: Processes) -> list[EpochStatistics]:
    """The epochs of an update with the maxima over all processes."""
    if processes.count == 1:
        return epochs
    rows = torch.from_numpy(np.concatenate([epoch.table for epoch in epochs]))
    maxima = rows[:, MAXIMA].nan_to_num(-math.inf)
    processes.maximum(maxima)
    rows[:, MAXIMA] = torch.where(maxima == -math.inf, math.nan, maxima)
    tables = np.split(rows.numpy(), np.cumsum([len(epoch.table) for epoch in epochs])[:-1])
    return [epoch._replace(table=table) for epoch, table in zip(epochs, tables, strict=True)]
