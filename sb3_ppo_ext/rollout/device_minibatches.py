"""Minibatches of a rollout that lies on the policy's device; nothing is copied to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.rollout.device_buffers import DeviceRollouts
from sb3_ppo_ext.rollout.lost_rows import without_lost
from sb3_ppo_ext.rollout.minibatches import Rollout

if TYPE_CHECKING:
    from gymnasium import spaces


class DeviceRollout(Rollout):
    """A ``Rollout`` whose buffer and whose random order of rows are on the device."""

    def __init__(self, buffer: Any, action_space: spaces.Space[Any], *, normalize_advantage: bool) -> None:
        assert isinstance(buffer, DeviceRollouts)
        super().__init__(buffer, action_space, normalize_advantage=normalize_advantage)

    def _flat(self, array: Any) -> Tensor:
        flat: Tensor = self.buffer.flat(array)  # type: ignore[attr-defined]  # see __init__
        return flat

    def _observations(self) -> Observation:
        observations: Any = self.buffer.observations
        if isinstance(observations, dict):
            return {key: self._flat(array) for key, array in observations.items()}
        return self._flat(observations)

    def orders(self, batch_size: int) -> tuple[Tensor, ...]:
        """The row indices of the minibatches of one epoch, drawn by torch's generator of the device."""
        order = torch.randperm(self.size, device=self.buffer.device)
        return torch.split(without_lost(order, self.lost), batch_size)

    def explained_variance(self) -> float:
        """``1 - Var(returns - values) / Var(returns)``; NaN where the returns are all equal."""
        residual, returns = self.value_target - self.state_value, self.value_target
        variance = returns.var(correction=0)
        return float((1 - residual.var(correction=0) / torch.where(variance == 0, torch.nan, variance)).item())

    def _set_value_target(self, last_values: Tensor, dones: np.ndarray, values: Tensor | None = None) -> None:
        buffer: Any = self.buffer
        if self.value_lambda is not None:
            values = buffer.values if values is None else values
            buffer.returns = buffer.advantages_for(values, last_values, dones, self.value_lambda) + values
        self.value_target = self._flat(buffer.returns).flatten()

    def refresh_advantage(self, values: Tensor, last_values: Tensor, dones: np.ndarray) -> None:
        """Computes advantages and value targets again from ``values`` [N * T]."""
        buffer: Any = self.buffer
        in_time = values.reshape(buffer.n_envs, buffer.buffer_size).T
        buffer.advantages = buffer.advantages_for(in_time, last_values, dones)
        buffer.returns = buffer.advantages + in_time
        self._set_value_target(last_values, dones, in_time)
        self._set_advantage()
        self.rows = self.rows._replace(advantage=self.advantage, value_target=self.value_target)
