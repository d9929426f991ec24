"""The exact KL of an update for the log alone: over some states of the rollout.

Where the loss or a controller needs it, every minibatch measures it; for the log that would cost too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from sb3_ppo_ext.host.sb3 import evaluates_as_sb3, forwards_as_sb3
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.objective.distributions import ActionDistribution, concatenated, exact_kl, gathered, parameters_of
from sb3_ppo_ext.policies.adapter import PolicyAdapter, evaluation_mode, has_known_kl, unwrapped
from sb3_ppo_ext.policies.side_effects import only_computes, without_trace
from sb3_ppo_ext.rollout.actors import Acted, Actor, EagerActor
from sb3_ppo_ext.rollout.minibatches import CHUNK, Rollout
from sb3_ppo_ext.rollout.rows import observation_rows
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.step import EpochStatistics


class KLProbe(Protocol):
    """Measures the exact KL of an update, in nats per action."""

    def compute(self) -> None:
        """Starts to compute the KL after the last step, without waiting for a device."""
        ...

    def value(self, epochs: Sequence[EpochStatistics]) -> float:
        """The mean KL over some states; waits for the device."""
        ...


class KLByPasses:
    """The KL(before || after) of an update, from a pass of the policy before and after it."""

    def __init__(self, run: Run, rollout: Rollout, adapter: PolicyAdapter) -> None:
        self.policy = unwrapped(run.policy)
        self.adapter = adapter
        # At most a 190th of the update's work, which passes three times over each state in every epoch.
        size = run.of_all(rollout.size)
        count = min(size, CHUNK, max(size * run.settings.n_epochs // 128, 1))
        self.observation = observation_rows(rollout.rows.observation, rollout.spread_rows(count))
        self.before = self._distribution()
        self.found: Tensor | None = None

    def _distribution(self) -> ActionDistribution:
        with evaluation_mode(self.policy), without_trace(self.policy), torch.no_grad():
            return self.adapter.distribution(self.observation)

    def compute(self) -> None:
        """Computes the KL, without waiting for a device."""
        self.found = exact_kl(self.before, self._distribution()).mean()

    def value(self, epochs: Sequence[EpochStatistics]) -> float:
        """The mean KL, computed now where ``compute`` was not called."""
        if self.found is None:
            self.compute()
        assert self.found is not None
        return self.found.item()


class KLOfActing:
    """The KL(old || new) from passes that PPO makes too: those of acting, and that over the last minibatch.

    It serves eager training through a user's modules, which are to be called exactly as often as by PPO.
    """

    def __init__(self, run: Run, rollout: Rollout, acted: ActionDistribution) -> None:
        self.policy, self.rollout, self.acted = unwrapped(run.policy), rollout, acted

    def compute(self) -> None:
        """Does nothing: the policy keeps the distribution of the last minibatch."""

    def value(self, epochs: Sequence[EpochStatistics]) -> float:
        """The mean KL over the last minibatch, before its step."""
        rows = self.rollout.order[len(epochs[-1].table) - 1]
        with torch.no_grad():
            return exact_kl(gathered(self.acted, rows), parameters_of(self.policy.action_dist)).mean().item()


class ActedDistributions:
    """The action distributions of the last rollout, where a user's modules acted in it eagerly."""

    def __init__(self) -> None:
        self.steps: list[ActionDistribution] = []

    def recorded(self, actor: EagerActor) -> Actor:
        """The actor of the next rollout, whose distributions are recorded here where ``KLOfActing`` needs them."""
        self.steps = []
        return RecordingActor(actor, self.steps) if _needs_record(actor.policy) else actor

    def take(self, rollout: Rollout) -> ActionDistribution | None:
        """The distributions of the rows of ``rollout``, and forgets them; None where they were not recorded."""
        steps, self.steps = self.steps, []
        count, envs = rollout.buffer.buffer_size, rollout.buffer.n_envs
        if len(steps) != count or not rollout.indexable:
            return None
        row = torch.arange(rollout.size, device=rollout.buffer.device)
        return gathered(concatenated(steps), row % count * envs + row // count)  # rows are by environment


class RecordingActor:
    """An ``EagerActor`` that appends the distribution of each step to ``steps``."""

    def __init__(self, actor: EagerActor, steps: list[ActionDistribution]) -> None:
        self.actor, self.steps = actor, steps

    def act(self, observation: Observation) -> Acted:
        """Acts, and records the distribution, which the policy leaves in ``action_dist``."""
        acted = self.actor.act(observation)
        self.steps.append(parameters_of(self.actor.policy.action_dist))
        return acted

    def terminal_values(self, observations: list[Observation]) -> Iterable[Tensor]:
        """The value [1] of each observation."""
        return self.actor.terminal_values(observations)

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """Values [N, 1] of the observations after the last step."""
        return self.actor.last_values(observation, dones)


def _needs_record(policy: ActorCriticPolicy | nn.Module) -> bool:
    leaves = forwards_as_sb3(policy) and evaluates_as_sb3(policy) and has_known_kl(policy)
    return leaves and not only_computes(policy)


def probe_of(
    run: Run, rollout: Rollout, adapter: PolicyAdapter, acted: ActionDistribution | None, *, eager: bool
) -> KLProbe | None:
    """The probe of the update that begins; None where the minibatches measure the exact KL, or it cannot be known.

    ``acted`` are the distributions that ``ActedDistributions`` has recorded.
    """
    if run.needs_exact_kl or not (has_known_kl(run.policy) and rollout.indexable):
        return None
    if not eager or only_computes(unwrapped(run.policy)):
        return KLByPasses(run, rollout, adapter)
    return None if acted is None else KLOfActing(run, rollout, acted)
