"""Epochs over a rollout, eager: minibatch after minibatch, each one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from sb3_ppo_ext.objective.batch import Evaluation, Minibatch, Observation
from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext.objective.statistics import Measurement, Statistics, statistics_of, statistics_of_all
from sb3_ppo_ext.objective.terms import KnobValues
from sb3_ppo_ext.policies.adapter import PolicyAdapter
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update, epochs_of, exact_kl_of
from sb3_ppo_ext.update.kl_probe import KLProbe
from sb3_ppo_ext.update.optimizer_step import OptimizerStep, TorchStep, optimizer_steps
from sb3_ppo_ext.update.step import (
    EpochStatistics,
    controller_inputs,
    exceeds,
    loss_and_measurement,
    loss_and_statistics,
    row_of,
)

Backward = Callable[[], None]
Steps = Callable[[torch.optim.Optimizer, list[nn.Parameter]], AbstractContextManager[OptimizerStep]]


class Gradients(Protocol):
    """How the gradient of a minibatch comes into the parameters."""

    def evaluate(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Statistics, Backward]:
        """The statistics, and what then leaves the gradient in ``parameter.grad``."""
        ...

    def origin(self, minibatch: Minibatch) -> str:
        """Where a gradient that is not finite came from, as far as the policy can say; else ''."""
        ...


@dataclass
class RowGradients:
    """By autograd, of all rows of the minibatch together."""

    update: Update

    def evaluate(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Statistics, Backward]:
        """See ``Gradients``."""
        update = self.update
        loss, found = loss_and_statistics(
            update.adapter, minibatch, update.objective, knobs, value_scale=update.value_scale
        )
        return found, partial(self.backward, loss)

    def measure(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Measurement, Backward]:
        """As ``evaluate``, with what the statistics are made of in their place."""
        update = self.update
        loss, found = loss_and_measurement(
            update.adapter, minibatch, update.objective, knobs, value_scale=update.value_scale
        )
        return found, partial(self.backward, loss)

    def backward(self, loss: Tensor) -> None:
        """The gradient of ``loss`` in the place of the last one."""
        for parameter in self.update.parameters:  # what zero_grad() does, without the time it takes over it
            parameter.grad = None
        loss.backward()

    def origin(self, minibatch: Minibatch) -> str:
        """See ``Gradients``."""
        return ""


class WithoutEntropyGradient:
    """An adapter whose entropy has no gradient: for a weight of 0, it would be zeros added to what is there."""

    def __init__(self, adapter: PolicyAdapter) -> None:
        self.adapter = adapter

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """See ``PolicyAdapter``."""
        new = self.adapter.evaluate(minibatch)
        return new if new.entropy is None else new._replace(entropy=new.entropy.detach())

    def distribution(self, observation: Observation) -> ActionDistribution:
        """See ``PolicyAdapter``."""
        return self.adapter.distribution(observation)

    def values(self, observation: Observation) -> Tensor:
        """See ``PolicyAdapter``."""
        return self.adapter.values(observation)


class EagerRunner:
    """Runs the epochs of an update; ``steps`` makes what clips the gradient and takes the optimizer's step."""

    def __init__(
        self,
        run: Run,
        rollout: Rollout,
        update: Update,
        gradients: Gradients,
        steps: Steps = optimizer_steps,
        probe: KLProbe | None = None,
    ) -> None:
        self.run = run
        self.rollout = rollout
        self.update = update
        self.gradients = gradients
        self.steps = steps
        self.probe = probe
        self.checks_steps = run.monitor.checks_steps()

    def epochs(self) -> Iterator[EpochStatistics]:
        """What each epoch showed, until ``target_kl`` stops them."""
        return epochs_of(self.run, self.rollout, self.update, self.epoch)

    def exact_kl(self, epochs: Sequence[EpochStatistics]) -> float:
        """See ``Runner``."""
        return exact_kl_of(self.probe, epochs)

    def epoch(self, index: int) -> EpochStatistics:
        """All minibatches once, or until the sampled KL of one exceeds the limit."""
        run = self.run
        with self.steps(self.update.optimizer, self.update.parameters) as step:
            limited = run.settings.target_kl is not None or run.knobs.any_at("minibatch")
            if isinstance(self.gradients, RowGradients) and not limited and run.device.type == "cpu":
                return self._measured_afterwards(self.gradients, index, step)
            rows: list[Tensor] = []
            for minibatch in self.rollout.minibatches(run.settings.batch_size):
                row, stopped = self.minibatch(minibatch, index, step)
                rows.append(row)
                if stopped:
                    return EpochStatistics.of_rows(rows, stopped=True)
            return EpochStatistics.of_rows(rows, stopped=False)

    def minibatch(self, minibatch: Minibatch, epoch: int, step: OptimizerStep | None = None) -> tuple[Tensor, bool]:
        """One minibatch: its row (see ``COLUMNS``), and whether its KL exceeds the limit; then it takes no step."""
        run, settings = self.run, self.run.settings
        step = step or TorchStep(self.update.optimizer, self.update.parameters)
        found, backward = self.gradients.evaluate(minibatch, run.knobs.values)
        if settings.target_kl is not None and exceeds(found.approx_kl, settings.kl_limit):
            return row_of(found, None, False), True
        step_minibatch_controllers(run, found, len(minibatch.advantage))
        backward()
        norm = step.clip(settings.max_grad_norm)
        row = row_of(found, norm, True)
        if self.checks_steps and not math.isfinite(norm.item()):
            run.monitor.refuse_step(epoch, row.tolist(), partial(self.gradients.origin, minibatch))
        step.step()
        return row, False

    def _measured_afterwards(self, gradients: RowGradients, epoch: int, step: OptimizerStep) -> EpochStatistics:
        """Statistics of all minibatches together: one by one they are a twentieth of the work."""
        run, update, knobs = self.run, self.update, self.run.knobs.values
        measurements, norms = [], []
        for minibatch in self.rollout.minibatches(run.settings.batch_size):
            measurement, backward = gradients.measure(minibatch, knobs)
            backward()
            norm = step.clip(run.settings.max_grad_norm)
            if self.checks_steps and not math.isfinite(norm.item()):
                row = row_of(statistics_of(measurement, update.objective, knobs), norm, True)
                run.monitor.refuse_step(epoch, row.tolist())
            step.step()
            measurements.append(measurement)
            norms.append(norm)
        found = statistics_of_all(measurements, update.objective, knobs).row()
        grad_norm = torch.stack(norms)
        columns = torch.stack((grad_norm, torch.ones_like(grad_norm)), dim=1)
        return EpochStatistics(torch.cat((found, columns.to(found.dtype)), dim=1).double().numpy(), stopped=False)


def step_minibatch_controllers(run: Run, found: Statistics, samples: int) -> None:
    """Controllers of the minibatch: before its step, so that a learning rate answers to its very KL, as in rsl_rl."""
    if run.knobs.any_at("minibatch"):
        kl, low, high = (float(number) for number in (found.kl, found.clip_fraction_low, found.clip_fraction_high))
        run.knobs.step("minibatch", controller_inputs(kl, low + high), samples)
        run.apply_learning_rate()
