"""The exact KL between the policy before an update and after it."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_ppo_ext.objective.distributions import ActionDistribution, exact_kl
from sb3_ppo_ext.policies.adapter import PolicyAdapter, as_collected
from sb3_ppo_ext.rollout.minibatches import CHUNK, Rollout
from sb3_ppo_ext.rollout.rows import observation_rows
from sb3_ppo_ext.run import Run


class KLProbe:
    """The exact KL of an update where only the log wants it: over some states of the rollout, before and after.

    Where the loss or a controller needs it, every minibatch measures it; for the log alone that would cost too much.
    """

    def __init__(self, run: Run, rollout: Rollout, adapter: PolicyAdapter) -> None:
        self.policy = run.policy
        self.adapter = adapter
        # At most a 190th of the update's own work, which sees each state in every epoch, three passes at a time.
        count = min(rollout.size, CHUNK, max(rollout.size * run.settings.n_epochs // 128, 1))
        rows = torch.linspace(0, rollout.size - 1, count, device=run.device).long()
        self.observation = observation_rows(rollout.rows.observation, rows)
        self.before = self._distribution()
        self.found: Tensor | None = None

    def _distribution(self) -> ActionDistribution:
        with as_collected(self.policy), torch.no_grad():
            return self.adapter.distribution(self.observation)

    def compute(self) -> Tensor:
        """KL(before || now), the mean over the states; does not wait for a device."""
        self.found = exact_kl(self.before, self._distribution()).mean()
        return self.found

    def value(self) -> float:
        """What ``compute`` found, in nats per action; it computes now where it has not yet."""
        return (self.compute() if self.found is None else self.found).item()
