"""The epochs of an update, eager: minibatch after minibatch, each with one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from sb3_ppo_ext.distributed.gradient_sums import GradientSums
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.objective.terms import KnobValues
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update, epochs_of, exact_kl_of
from sb3_ppo_ext.update.kl_probe import KLProbe
from sb3_ppo_ext.update.optimizer_step import OptimizerStep, TorchStep, torch_steps
from sb3_ppo_ext.update.step import (
    EpochStatistics,
    controller_inputs,
    exceeds,
    loss_and_statistics,
    of_all_processes,
    row_of,
)

Backward = Callable[[], None]
Steps = Callable[[torch.optim.Optimizer, list[nn.Parameter]], AbstractContextManager[OptimizerStep]]


class Gradients(Protocol):
    """Computes the gradient of a minibatch."""

    def evaluate(
        self, minibatch: Minibatch, knobs: KnobValues, sums: GradientSums | None = None
    ) -> tuple[Statistics, Backward]:
        """The statistics of the minibatch, and a function that leaves its gradient in ``parameter.grad``.

        ``sums`` over the processes, where there are several, may have begun when it returns.
        """
        ...

    def origin(self, minibatch: Minibatch) -> str:
        """A sentence on where a gradient that is not finite came from; '' where that is not known."""
        ...


@dataclass
class RowGradients:
    """Autograd over all rows of the minibatch together; see ``Gradients``."""

    update: Update

    def evaluate(
        self, minibatch: Minibatch, knobs: KnobValues, sums: GradientSums | None = None
    ) -> tuple[Statistics, Backward]:
        """The statistics, and the backward pass of the loss."""
        update = self.update
        evaluated, found = loss_and_statistics(
            update.adapter, minibatch, update.objective, knobs, value_scale=update.value_scale
        )
        return found, partial(backward, evaluated.loss, update.parameters)

    def origin(self, minibatch: Minibatch) -> str:
        """An empty string: the origin is not known."""
        return ""


def backward(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Leaves the gradient of ``loss`` in ``parameter.grad``, in place of the last one."""
    for parameter in parameters:  # zero_grad() does the same in more time
        parameter.grad = None
    loss.backward()


class EagerRunner:
    """Runs the epochs of an update. ``steps`` opens an epoch and yields what clips and takes the optimizer's step."""

    def __init__(
        self,
        run: Run,
        rollout: Rollout,
        update: Update,
        gradients: Gradients,
        steps: Steps = torch_steps,
        probe: KLProbe | None = None,
    ) -> None:
        self.run = run
        self.rollout = rollout
        self.update = update
        self.gradients = gradients
        self.steps = steps
        self.probe = probe
        self.checks_steps = run.monitor.checks_steps()
        self.share = run.share  # of this process's gradient in that of all

    def epochs(self) -> Iterator[EpochStatistics]:
        """Yields the statistics of each epoch, until ``target_kl`` stops them."""
        return epochs_of(self.run, self.rollout, self.update, self.epoch)

    def exact_kl(self, epochs: Sequence[EpochStatistics]) -> float:
        """The KL(before || after) of the update, in nats per action; NaN if it is not known."""
        return exact_kl_of(self.probe, epochs)

    def epoch(self, index: int) -> EpochStatistics:
        """Trains on all minibatches once, or until the sampled KL of one exceeds the limit."""
        run = self.run
        with self.steps(self.update.optimizer, self.update.parameters) as step:
            rows: list[Tensor] = []
            for minibatch in self.rollout.minibatches(run.batch_size):
                row, stopped = self.minibatch(minibatch, index, step)
                rows.append(row)
                if stopped:
                    return EpochStatistics.of_rows(rows, stopped=True)
            return EpochStatistics.of_rows(rows, stopped=False)

    def minibatch(self, minibatch: Minibatch, epoch: int, step: OptimizerStep | None = None) -> tuple[Tensor, bool]:
        """Trains on one minibatch unless its KL exceeds the limit; its row (``COLUMNS``), and whether the KL does."""
        run, settings = self.run, self.run.settings
        step = step or TorchStep(self.update.optimizer, self.update.parameters)
        sums = None
        if run.processes.count > 1:
            sums = GradientSums(self.update.parameters, self.share, run.processes)
        found, backward = of_all_processes(*self.gradients.evaluate(minibatch, run.knobs.values, sums), sums)
        if settings.target_kl is not None and exceeds(found.approx_kl, settings.kl_limit):
            return row_of(found, None, False), True
        step_minibatch_controllers(run, found, run.of_all(len(minibatch.advantage)))
        backward()
        norm = step.clip(settings.max_grad_norm)
        row = row_of(found, norm, True)
        if self.checks_steps and not math.isfinite(norm.item()):
            run.monitor.refuse_step(epoch, row.tolist(), partial(self.gradients.origin, minibatch))
        step.step()
        return row, False


def step_minibatch_controllers(run: Run, found: Statistics, samples: int) -> None:
    """Moves the controllers of "minibatch", before the step: a learning rate answers to its KL, as in rsl_rl."""
    if run.knobs.any_at("minibatch"):
        columns = (found.kl, found.clip_fraction_low, found.clip_fraction_high, found.kl_std)
        kl, low, high, kl_std = (float(number) for number in columns)
        run.knobs.step("minibatch", controller_inputs(kl, low + high, kl_std), samples)
        run.apply_learning_rate()
