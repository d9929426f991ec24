"""The exact KL of an update where only the log wants it: over some states of the rollout.

Where the loss or a controller needs it, every minibatch measures it; for the log alone that would cost too much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.objective.distributions import ActionDistribution, concatenated, exact_kl, gathered, parameters_of
from sb3_ppo_ext.policies.adapter import PolicyAdapter, as_collected, evaluates_as_sb3, knows_distribution, unwrapped
from sb3_ppo_ext.policies.effects import only_computes, without_trace
from sb3_ppo_ext.rollout.actors import Acted, Actor, EagerActor, forwards_as_sb3
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.rollout.rows import observation_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sb3_ppo_ext.ppox import PPOX
    from sb3_ppo_ext.update.eager import Measured

# Rows per forward pass outside of the minibatches: enough to amortise the call, small beside a rollout of images.
CHUNK = 256


class KLProbe:
    """KL(before || after) of an update, by a pass of its own before and after it."""

    def __init__(self, model: PPOX, rollout: Rollout, adapter: PolicyAdapter) -> None:
        self.model = model
        self.adapter = adapter
        # At most a 190th of the update's own work, which sees each state in every epoch, three passes at a time.
        count = min(rollout.size, CHUNK, max(rollout.size * model.n_epochs // 128, 1))
        rows = torch.linspace(0, rollout.size - 1, count, device=model.device).long()
        self.observation = observation_rows(rollout.rows.observation, rows)
        self.before = self._distribution()
        self.found: Tensor | None = None

    def _distribution(self) -> ActionDistribution:
        policy = unwrapped(self.model.policy)
        with as_collected(policy), without_trace(policy), torch.no_grad():
            return self.adapter.distribution(self.observation)

    def look(self) -> Tensor:
        """Computes what ``measure`` tells, without waiting for a device."""
        self.found = exact_kl(self.before, self._distribution()).mean()
        return self.found

    def measure(self, epochs: list[Measured]) -> float:
        """The mean over the states; now is after, unless one has looked."""
        return (self.look() if self.found is None else self.found).item()


class KLOfPasses:
    """KL(old || new) from passes that are made anyway: those that acted, and the one over the last minibatch.

    For eager training through modules of a user's own, which are called exactly as often as by PPO.
    """

    def __init__(self, model: PPOX, rollout: Rollout, acted: ActionDistribution) -> None:
        self.policy, self.rollout, self.acted = unwrapped(model.policy), rollout, acted

    def measure(self, epochs: list[Measured]) -> float:
        """The mean over that minibatch, before its step."""
        rows = self.rollout.order[len(epochs[-1].table) - 1]
        with torch.no_grad():
            return exact_kl(gathered(self.acted, rows), parameters_of(self.policy.action_dist)).mean().item()


class ActedDistributions:
    """The action distributions by which an eager policy of unknown modules has acted in the last rollout."""

    def __init__(self) -> None:
        self.steps: list[ActionDistribution] = []

    def noting(self, actor_of: Callable[[ActorCriticPolicy], Actor]) -> Callable[[ActorCriticPolicy], Actor]:
        """``actor_of`` for the next rollout, with actors that leave their distributions here."""
        self.steps = []

        def noted(policy: ActorCriticPolicy) -> Actor:
            actor = actor_of(policy)
            return NotingActor(actor, self.steps) if isinstance(actor, EagerActor) and _to_be_noted(policy) else actor

        return noted

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


def _to_be_noted(policy: nn.Module) -> bool:
    leaves = forwards_as_sb3(policy) and evaluates_as_sb3(policy) and knows_distribution(policy)
    return leaves and not only_computes(policy)


def probe_of(
    model: PPOX, rollout: Rollout, adapter: PolicyAdapter, acted: ActionDistribution | None, *, eager: bool
) -> KLProbe | KLOfPasses | None:
    """What measures the KL of the update that begins; None where that cannot be known."""
    if not (knows_distribution(model.policy) and rollout.has_rows):
        return None
    if not eager or only_computes(unwrapped(model.policy)):
        return KLProbe(model, rollout, adapter)
    return None if acted is None else KLOfPasses(model, rollout, acted)
