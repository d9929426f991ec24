"""The eager epochs of rows: the numbers of ``EagerRunner``, bit for bit in the parameters, in less time on a CPU."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sb3_ppo_ext.distributed.reduction import reduce_gradients
from sb3_ppo_ext.host.sb3 import evaluates_as_sb3
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch, Observation
from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext.objective.statistics import MAXIMA, Measurement, measurement_of, statistics_of, statistics_of_all
from sb3_ppo_ext.policies.adapter import PolicyAdapter, has_known_kl, unwrapped
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.eager import EagerRunner, RowGradients, backward
from sb3_ppo_ext.update.epochs import Update
from sb3_ppo_ext.update.kl_probe import KLProbe
from sb3_ppo_ext.update.merged_adam import merged_steps
from sb3_ppo_ext.update.optimizer_step import OptimizerStep
from sb3_ppo_ext.update.step import EpochStatistics, evaluated, row_of


class RowRunner(EagerRunner):
    """Merges Adam's tensors, omits the gradient of an entropy without weight, and computes statistics once an epoch."""

    def __init__(self, run: Run, rollout: Rollout, update: Update, probe: KLProbe | None = None) -> None:
        if entropy_gradient_is_zero(run):
            update = replace(update, adapter=WithoutEntropyGradient(update.adapter))
        super().__init__(run, rollout, update, RowGradients(update), merged_steps, probe)

    def epoch(self, index: int) -> EpochStatistics:
        """Trains on all minibatches once, or until the sampled KL of one exceeds the limit."""
        run = self.run
        if run.settings.target_kl is not None or run.knobs.any_at("minibatch") or run.device.type != "cpu":
            return super().epoch(index)
        measurements, norms = [], []
        with self.steps(self.update.optimizer, self.update.parameters) as step:
            for minibatch in self.rollout.minibatches(run.batch_size):
                measurement, norm = self._step(minibatch, index, step)
                measurements.append(measurement)
                norms.append(norm)
        found = statistics_of_all(measurements, self.update.objective, run.knobs.values).row()
        found = of_all_rows(found, run)
        grad_norm = torch.stack(norms)
        columns = torch.stack((grad_norm, torch.ones_like(grad_norm)), dim=1)
        return EpochStatistics(torch.cat((found, columns.to(found.dtype)), dim=1).double().numpy(), stopped=False)

    def _step(self, minibatch: Minibatch, epoch: int, step: OptimizerStep) -> tuple[Measurement, Tensor]:
        """Trains on one minibatch; what its statistics are made of, and the gradient's norm."""
        run, update, knobs = self.run, self.update, self.run.knobs.values
        new, terms, _, loss = evaluated(
            update.adapter, minibatch, update.objective, knobs, value_scale=update.value_scale
        )
        measurement = measurement_of(new, minibatch, terms, loss)
        backward(loss, update.parameters)
        reduce_gradients(update.parameters, None, run.share, run.processes)
        norm = step.clip(run.settings.max_grad_norm)
        if self.checks_steps and not math.isfinite(norm.item()):
            run.monitor.refuse_step(
                epoch, row_of(statistics_of(measurement, update.objective, knobs), norm, True).tolist()
            )
        step.step()
        return measurement, norm


def of_all_rows(table: Tensor, run: Run) -> Tensor:
    """The statistics [M, K] over the rows of all processes; maxima remain those of this process."""
    if run.processes.count == 1:
        return table
    mean = run.average(table)
    mean[:, MAXIMA] = table[:, MAXIMA]
    return mean


class WithoutEntropyGradient:
    """An adapter whose entropy has no gradient: under a weight of 0 it would add zeros to the other gradients."""

    def __init__(self, adapter: PolicyAdapter) -> None:
        self.adapter = adapter

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """The evaluation by the adapter, its entropy detached."""
        new = self.adapter.evaluate(minibatch)
        return new if new.entropy is None else new._replace(entropy=new.entropy.detach())

    def distribution(self, observation: Observation) -> ActionDistribution:
        """The parameters of the action distribution [B]."""
        return self.adapter.distribution(observation)

    def values(self, observation: Observation) -> Tensor:
        """Values [B] in reward units."""
        return self.adapter.values(observation)


def entropy_gradient_is_zero(run: Run) -> bool:
    """Whether the entropy has the weight 0, and every parameter a gradient of another term."""
    policy = unwrapped(run.policy)
    return evaluates_as_sb3(policy) and has_known_kl(policy) and not run.knobs.is_on("ent_coef")
