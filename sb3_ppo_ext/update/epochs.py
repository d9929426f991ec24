"""One update: what stays the same over the minibatches of its rollout, and the loop over its epochs."""

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
from sb3_ppo_ext.policies.adapter import PolicyAdapter, as_collected, unwrapped
from sb3_ppo_ext.policies.effects import without_trace
from sb3_ppo_ext.rollout.minibatches import CHUNK, Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.kl_probe import KLProbe
from sb3_ppo_ext.update.step import EpochStatistics


@dataclass(frozen=True)
class Update:
    """What stays the same over the minibatches of one rollout, but the knobs."""

    adapter: PolicyAdapter
    objective: Objective
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    value_scale: Tensor | None = None  # reward units, of the value's error
    acted: ActionDistribution | None = None  # by which the rows were collected, where that was noted


class Runner(Protocol):
    """Runs the epochs of one update."""

    def epochs(self) -> Iterator[EpochStatistics]:
        """What each epoch showed, until ``target_kl`` stops them.

        When an epoch is yielded, its rows have been checked and the controllers of minibatches and epochs have moved.
        """
        ...

    def exact_kl(self, epochs: Sequence[EpochStatistics]) -> float:
        """The KL between the policies before and after them, in nats per action; NaN if it is not known."""
        ...


def exact_kl_of(probe: KLProbe | None, epochs: Sequence[EpochStatistics]) -> float:
    """By the ``probe``, or as the minibatches of the last epoch have measured it."""
    return epochs[-1].mean("kl_exact") if probe is None else probe.value(epochs)


def epochs_of(
    run: Run, rollout: Rollout, update: Update, epoch: Callable[[int], EpochStatistics]
) -> Iterator[EpochStatistics]:
    """The epochs of a runner that waits for each of them: ``epoch`` trains one, by its index."""
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
    """Values and GAE under the current value function, as Andrychowicz et al. 2021 recommend before every epoch.

    Only with ``recompute_advantage``; returns whether.
    """
    if not run.settings.recompute_advantage:
        return False
    policy = unwrapped(run.policy)
    with as_collected(policy), without_trace(policy), torch.no_grad():
        values = rollout.map_rows(adapter.values, max(CHUNK, run.settings.batch_size))
        last_values, dones = what_follows(run)
    rollout.refresh_advantage(values, last_values, dones)
    return True


@torch.no_grad()
def what_follows(run: Run) -> tuple[Tensor, np.ndarray]:
    """Values [N, 1] of the observations after the last step, and whether the episodes had ended [N]."""
    if run.last_observation is None:  # ``require_rollout`` has seen that they all had
        return torch.zeros(run.n_envs, 1, device=run.device), np.ones(run.n_envs, dtype=bool)
    observation = obs_as_tensor(run.last_observation, run.device)
    return run.policy.predict_values(observation), np.asarray(run.last_episode_starts)


def step_controllers(run: Run, moment: str, found: EpochStatistics, rollout: Rollout) -> None:
    """Lets the controllers of ``moment`` answer to what an epoch measured."""
    if run.knobs.any_at(moment):
        run.knobs.step(moment, found.for_controllers() | rollout.measured, rollout.size)
        run.apply_learning_rate()
