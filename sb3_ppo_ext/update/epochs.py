"""One update: its constants over the minibatches of a rollout, and the loop over its epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn

from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext.objective.terms import Objective
from sb3_ppo_ext.policies.adapter import PolicyAdapter, evaluation_mode, unwrapped
from sb3_ppo_ext.policies.side_effects import without_trace
from sb3_ppo_ext.rollout.minibatches import CHUNK, Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.kl_probe import KLProbe
from sb3_ppo_ext.update.step import EpochStatistics


@dataclass(frozen=True)
class Update:
    """The constants of an update: the same for every minibatch of a rollout. Knobs move, and are not among them."""

    adapter: PolicyAdapter
    objective: Objective
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    value_scale: Tensor | None = None  # 0-d, in reward units: the value's error is divided by it
    acted: ActionDistribution | None = None  # of the rows at collection, where it was recorded


class Runner(Protocol):
    """Runs the epochs of one update."""

    def epochs(self) -> Iterator[EpochStatistics]:
        """Yields the statistics of each epoch, until ``target_kl`` stops them.

        When an epoch is yielded, its rows have been checked and the controllers of minibatches and epochs have moved.
        """
        ...

    def exact_kl(self, epochs: Sequence[EpochStatistics]) -> float:
        """The KL between the policies before and after them, in nats per action; NaN if it is not known."""
        ...


def exact_kl_of(probe: KLProbe | None, epochs: Sequence[EpochStatistics]) -> float:
    """The KL by the ``probe``, or the mean over the minibatches of the last epoch where there is none."""
    return epochs[-1].mean("kl_exact") if probe is None else probe.value(epochs)


def epochs_of(
    run: Run, rollout: Rollout, update: Update, epoch: Callable[[int], EpochStatistics]
) -> Iterator[EpochStatistics]:
    """The epochs of a runner that waits for each; ``epoch`` trains the epoch of an index."""
    for index in range(run.settings.n_epochs):
        if index > 0:
            refresh_advantage(run, rollout, update.adapter)
        found = epoch(index)
        run.monitor.after_epoch(index, found.to_step)
        step_controllers(run, "epoch", found, rollout)
        yield found
        if found.stopped:
            return


def refresh_advantage(run: Run, rollout: Rollout, adapter: PolicyAdapter) -> bool:
    """With ``recompute_advantage``, computes values and GAE under the current value function; returns whether it did.

    Andrychowicz et al. 2021 recommend it before every epoch.
    """
    if not run.settings.recompute_advantage:
        return False
    policy = unwrapped(run.policy)
    with evaluation_mode(policy), without_trace(policy), torch.no_grad():
        values = rollout.map_rows(adapter.values, max(CHUNK, run.settings.batch_size))
        last_values, dones = values_after(run)
    rollout.refresh_advantage(values, last_values, dones)
    return True


@torch.no_grad()
def values_after(run: Run) -> tuple[Tensor, np.ndarray]:
    """Values [N, 1] of the observations after the last step, and whether the episodes had ended [N]."""
    if run.last_observation is None:  # all had: ``require_rollout`` refuses the rest
        return torch.zeros(run.n_envs, 1, device=run.device), np.ones(run.n_envs, dtype=bool)
    observation = obs_as_tensor(run.last_observation, run.device)
    return run.policy.predict_values(observation), np.asarray(run.last_episode_starts)


def step_controllers(run: Run, moment: str, found: EpochStatistics, rollout: Rollout) -> None:
    """Moves the controllers of ``moment`` by the measurements of an epoch."""
    if run.knobs.any_at(moment):
        run.knobs.step(moment, found.for_controllers() | rollout.controller_inputs, run.of_all(rollout.size))
        run.apply_learning_rate()
