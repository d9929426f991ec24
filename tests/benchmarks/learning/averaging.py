"""A running average of a run's parameters, evaluated beside the last ones: what averaging would gain, for nothing.

Training does not notice it. Izmailov et al. 2018 for networks, Nikishin et al. 2018 for actor-critic methods.
"""

from __future__ import annotations

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

DECAY = 0.9  # per STEPS: an average over the last 20,000 steps or so
STEPS = 2048  # that an update of most arms follows


class Average(BaseCallback):
    """Averages the parameters after the updates, once in ``STEPS`` steps. A policy that is not PyTorch's has none."""

    def __init__(self) -> None:
        super().__init__()
        self.means: dict[str, Tensor] = {}
        self._next = STEPS

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._take()  # the parameters after the update from the rollout before

    def _on_training_end(self) -> None:
        self._take()

    def _take(self) -> None:
        if self.num_timesteps < self._next or not isinstance(self.model.policy, torch.nn.Module):
            return
        self._next = self.num_timesteps + STEPS
        for name, tensor in self.model.policy.state_dict().items():
            self.means.setdefault(name, tensor.clone()).lerp_(tensor, 1 - DECAY)

    def put_into_policy(self) -> bool:
        """Gives the model the averages in the place of its parameters; False where there are none."""
        if self.means:
            self.model.policy.load_state_dict(self.means)
        return bool(self.means)
