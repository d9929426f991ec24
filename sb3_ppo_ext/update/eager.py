"""One pass of PPO over a rollout: minibatch after minibatch, each one optimizer step, eager."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sb3_ppo_ext.knobs.knob_set import KnobSet
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import APPROX_KL, STATISTICS, Measurement, measurement_of, row_of, rows_of
from sb3_ppo_ext.objective.terms import KnobValues, Objective, is_zero, ppo_terms
from sb3_ppo_ext.policies.adapter import PolicyAdapter
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.optimizer_step import Descent, PlainDescent, descending

NAMES = (*STATISTICS, "grad_norm")
KL_RESOLUTION = 1e-6  # nats; float32
EARLY_STOP_FACTOR = 1.5  # of target_kl, as in Stable-Baselines3's PPO


class Measured(NamedTuple):
    """What an epoch showed: one row per minibatch, in the order of ``NAMES``."""

    table: np.ndarray
    stopped: bool

    def column(self, name: str) -> np.ndarray:
        """The values of one statistic, minibatch after minibatch."""
        column: np.ndarray = self.table[:, NAMES.index(name)]
        return column

    def mean(self, name: str) -> float:
        """The mean of one statistic over the minibatches."""
        return float(self.column(name).mean())

    def for_controllers(self) -> dict[str, float]:
        """The mean KL by ``kl_estimator`` and the mean clip fraction."""
        return steering({name: self.mean(name) for name in STATISTICS})


@dataclass
class Update:
    """Everything that stays the same over the minibatches of one rollout."""

    adapter: PolicyAdapter
    objective: Objective
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    max_grad_norm: float
    knobs: KnobSet
    set_learning_rate: Callable[[float], None]
    target_kl: float | None = None
    value_scale: Tensor | None = None
    entropy_follows: bool = False  # whether no parameter has its gradient from the entropy alone
    check: Callable[[Tensor], None] = lambda row: None  # sees a minibatch's row before its step
    early_stop_kl: float = field(default=math.nan, init=False)

    def epoch(self, rollout: Rollout, batch_size: int) -> Measured:
        """All minibatches once, or until the sampled KL of one exceeds 1.5 ``target_kl``; then without its step."""
        with descending(self.optimizer, self.parameters) as descent:
            if self.target_kl is not None or self.knobs.any_at("minibatch") or rollout.buffer.device.type != "cpu":
                return self._measured_at_once(rollout, batch_size, descent)
            return self._measured_afterwards(rollout, batch_size, descent)

    def _measured_at_once(self, rollout: Rollout, batch_size: int, descent: Descent) -> Measured:
        rows: list[Tensor] = []
        for minibatch in rollout.minibatches(batch_size):
            loss, row = self.evaluate(minibatch, self.knobs.values)
            if self.too_far(row):
                rows.append(torch.cat((row, row.new_full((1,), math.nan))))
                return Measured(table_of(rows), stopped=True)
            self.step_controllers(row, len(minibatch.advantage))
            rows.append(self.step(loss, row, descent))
        return Measured(table_of(rows), stopped=False)

    def _measured_afterwards(self, rollout: Rollout, batch_size: int, descent: Descent) -> Measured:
        """Statistics of all minibatches together: one by one they are a twentieth of the work."""
        kept, norms, knobs = [], [], self.knobs.values
        for minibatch in rollout.minibatches(batch_size):
            loss, measurement = self._loss(minibatch, knobs)
            norm = self._clipped_gradient(loss, descent)
            if not math.isfinite(norm.item()):
                self.check(torch.cat((row_of(measurement, self.objective, knobs), norm.reshape(1))))
            descent.step()
            kept.append(measurement)
            norms.append(norm)
        rows = rows_of(kept, self.objective, knobs)
        table = torch.cat((rows, torch.stack(norms)[:, None]), dim=1)
        return Measured(table.double().numpy(), stopped=False)

    def evaluate(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch, and its statistics in the order of ``STATISTICS``."""
        loss, measurement = self._loss(minibatch, knobs)
        return loss, row_of(measurement, self.objective, knobs)

    def _loss(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Tensor, Measurement]:
        new = self.adapter.evaluate(minibatch)
        if self.entropy_follows and new.entropy is not None and is_zero(knobs.ent_coef):
            # Its gradient would be zeros, added to gradients that are there without it.
            new = new._replace(entropy=new.entropy.detach())
        terms = ppo_terms(new, minibatch, self.objective, knobs, value_scale=self.value_scale)
        loss = terms.weigh(knobs)
        return loss, measurement_of(new, minibatch, terms, loss)

    def step(self, loss: Tensor, row: Tensor, descent: Descent | None = None) -> Tensor:
        """One optimizer step against the gradient, clipped to ``max_grad_norm``; ``row`` with its norm before."""
        descent = descent or PlainDescent(self.optimizer, self.parameters)
        return self._descend(row, self._clipped_gradient(loss, descent), descent)

    def _descend(self, row: Tensor, norm: Tensor, descent: Descent) -> Tensor:
        row = torch.cat((row, norm.reshape(1)))
        self.check(row)
        descent.step()
        return row

    def _clipped_gradient(self, loss: Tensor, descent: Descent) -> Tensor:
        for parameter in self.parameters:  # what zero_grad() does, without the time it takes over it
            parameter.grad = None
        loss.backward()
        return descent.clip(self.max_grad_norm)

    @property
    def kl_limit(self) -> float:
        """The sampled KL of a minibatch above which no further step is taken."""
        return math.inf if self.target_kl is None else EARLY_STOP_FACTOR * self.target_kl

    def too_far(self, row: Tensor) -> bool:
        """Whether the sampled KL of a minibatch, which is kept, exceeds 1.5 ``target_kl``."""
        if self.target_kl is None:
            return False
        self.early_stop_kl = row[APPROX_KL].item()
        return self.early_stop_kl > in_precision(self.kl_limit, row.dtype)

    def step_controllers(self, row: Tensor, samples: int) -> None:
        """Before the step, so that a learning rate already answers to the KL of this minibatch, as in rsl_rl."""
        if not self.knobs.any_at("minibatch"):
            return
        measured = dict(zip(STATISTICS, row.tolist(), strict=True))
        self.knobs.step("minibatch", steering(measured), samples)
        self.set_learning_rate(float(self.knobs.values.learning_rate))


@cache
def in_precision(number: float, dtype: torch.dtype) -> float:
    """The number as a tensor of that type holds it: a KL within rounding of its limit stops every engine, or none.

    NumPy compares so too where Stable-Baselines3 asks.
    """
    rounded: float = torch.tensor(number, dtype=dtype).item()
    return rounded


def steering(measured: dict[str, float]) -> dict[str, float]:
    """What controllers answer to: "kl" by ``kl_estimator``, "clip_fraction" on both sides."""
    kl = measured["kl"]
    return {
        # Rounding leaves some 1e-7 where old and new policy are the same; a law is to see that as exactly 0.
        "kl": 0.0 if abs(kl) < KL_RESOLUTION else kl,
        "clip_fraction": measured["clip_fraction_low"] + measured["clip_fraction_high"],
    }


def table_of(rows: list[Tensor]) -> np.ndarray:
    """The statistics of an epoch in one transfer."""
    table: np.ndarray = torch.stack(rows).cpu().double().numpy()
    return table
