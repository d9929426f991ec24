"""The exact KL between the policy before an update and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sb3_ppo_ext.objective.distributions import ActionDistribution, exact_kl
from sb3_ppo_ext.policies.adapter import (
    PolicyAdapter,
    knows_distribution,
)
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.rollout.rows import observation_rows
from sb3_ppo_ext.update.prepare import CHUNK, as_collected

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX


class KLProbe:
    """The exact KL of an update where only the log wants it: over some states of the rollout, before and after.

    Where the loss or a controller needs it, every minibatch measures it; for the log alone that would cost too much.
    """

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
        with as_collected(self.model.policy), torch.no_grad():
            return self.adapter.distribution(self.observation)

    def look(self) -> Tensor:
        """Computes what ``measure`` tells, without waiting for a device."""
        self.found = exact_kl(self.before, self._distribution()).mean()
        return self.found

    def measure(self) -> float:
        """KL(before || after), the mean over the states; now is after, unless one has looked."""
        return (self.look() if self.found is None else self.found).item()


def _can_be_probed(model: PPOX, rollout: Rollout) -> bool:
    return knows_distribution(model.policy) and rollout.has_rows
