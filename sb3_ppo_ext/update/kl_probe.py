"""The exact KL of an update where only the log wants it: over some states of the rollout.

Where the loss or a controller needs it, every minibatch measures it; for the log alone that would cost too much.
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
from sb3_ppo_ext.policies.adapter import PolicyAdapter, as_collected, knows_distribution, unwrapped
from sb3_ppo_ext.policies.effects import only_computes, without_trace
from sb3_ppo_ext.rollout.actors import Acted, Actor, EagerActor
from sb3_ppo_ext.rollout.minibatches import CHUNK, Rollout
from sb3_ppo_ext.rollout.rows import observation_rows
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.step import EpochStatistics


class KLProbe(Protocol):
    """Measures the exact KL of an update, in nats per action."""

    def compute(self) -> None:
        """After the last step: starts to compute it, without waiting for a device."""
        ...

    def value(self, epochs: Sequence[EpochStatistics]) -> float:
        """The mean over some states."""
        ...


class KLByPasses:
    """KL(before || after) of an update, by a pass of its own before and after it."""

    def __init__(self, run: Run, rollout: Rollout, adapter: PolicyAdapter) -> None:
        self.policy = unwrapped(run.policy)
        self.adapter = adapter
        # At most a 190th of the update's own work, which sees each state in every epoch, three passes at a time.
        count = min(rollout.size, CHUNK, max(rollout.size * run.settings.n_epochs // 128, 1))
        rows = torch.linspace(0, rollout.size - 1, count, device=run.device).long()
        self.observation = observation_rows(rollout.rows.observation, rows)
        self.before = self._distribution()
        self.found: Tensor | None = None

    def _distribution(self) -> ActionDistribution:
        with as_collected(self.policy), without_trace(self.policy), torch.no_grad():
            return self.adapter.distribution(self.observation)

    def compute(self) -> None:
        """See ``KLProbe``."""
        self.found = exact_kl(self.before, self._distribution()).mean()

    def value(self, epochs: Sequence[EpochStatistics]) -> float:
        """See ``KLProbe``; computes now what has not been computed yet."""
        if self.found is None:
            self.compute()
        assert self.found is not None
        return self.found.item()


class KLOfActing:
    """KL(old || new) from passes that are made anyway: those that acted, and the one over the last minibatch.

    For eager training through modules of a user's own, which are called exactly as often as by PPO.
    """

    def __init__(self, run: Run, rollout: Rollout, acted: ActionDistribution) -> None:
        self.policy, self.rollout, self.acted = unwrapped(run.policy), rollout, acted

    def compute(self) -> None:
        """Nothing: the policy has the distribution of the last minibatch."""

    def value(self, epochs: Sequence[EpochStatistics]) -> float:
        """See ``KLProbe``; over the last minibatch, before its step."""
        rows = self.rollout.order[len(epochs[-1].table) - 1]
        with torch.no_grad():
            return exact_kl(gathered(self.acted, rows), parameters_of(self.policy.action_dist)).mean().item()


class ActedDistributions:
    """The action distributions by which an eager policy of unknown modules has acted in the last rollout."""

    def __init__(self) -> None:
        self.steps: list[ActionDistribution] = []

    def noting(self, actor: EagerActor) -> Actor:
        """``actor`` for the next rollout, which leaves its distributions here where they will be needed."""
        self.steps = []
        return NotingActor(actor, self.steps) if _to_be_noted(actor.policy) else actor

    def take(self, rollout: Rollout) -> ActionDistribution | None:
        """Those of the rows of ``rollout``, once; None where they were not noted."""
        steps, self.steps = self.steps, []
        count, envs = rollout.buffer.buffer_size, rollout.buffer.n_envs
        if len(steps) != count or not rollout.has_rows:
            return None
        row = torch.arange(rollout.size, device=rollout.buffer.device)
        return gathered(concatenated(steps), row % count * envs + row // count)  # rows are by environment


class NotingActor:
    """``EagerActor``, whose policy leaves its distribution in ``action_dist``."""

    def __init__(self, actor: EagerActor, steps: list[ActionDistribution]) -> None:
        self.actor, self.steps = actor, steps

    def act(self, observation: Observation) -> Acted:
        """See ``Actor``."""
        acted = self.actor.act(observation)
        self.steps.append(parameters_of(self.actor.policy.action_dist))
        return acted

    def terminal_values(self, observations: list[Observation]) -> Iterable[Tensor]:
        """See ``Actor``."""
        return self.actor.terminal_values(observations)

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """See ``Actor``."""
        return self.actor.last_values(observation, dones)


def _to_be_noted(policy: ActorCriticPolicy | nn.Module) -> bool:
    leaves = forwards_as_sb3(policy) and evaluates_as_sb3(policy) and knows_distribution(policy)
    return leaves and not only_computes(policy)


def probe_of(
    run: Run, rollout: Rollout, adapter: PolicyAdapter, acted: ActionDistribution | None, *, eager: bool
) -> KLProbe | None:
    """What measures the KL of the update that begins, for the log; None where that is known anyway, or cannot be.

    ``acted`` are the distributions that ``ActedDistributions`` has noted.
    """
    if run.needs_exact_kl or not (knows_distribution(run.policy) and rollout.has_rows):
        return None
    if not eager or only_computes(unwrapped(run.policy)):
        return KLByPasses(run, rollout, adapter)
    return None if acted is None else KLOfActing(run, rollout, acted)
