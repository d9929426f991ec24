"""Rows of a rollout whose step was not taken, because a worker of ``RayVecEnv`` was lost: the update leaves them out.

Such a row ends its episode. With the value of its observation in the place of a reward its advantage is 0, so that the
rows before it are those of an episode that was cut at that observation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from sb3_ppo_ext.objective.losses import normalized
from sb3_ppo_ext.vec_env.remote.packed import LOST

ATTRIBUTE = "lost_rows"  # of a buffer: step and environment of each, since the last reset


def is_lost(info: dict[str, Any]) -> bool:
    """Whether the step was not taken."""
    return LOST in info


def forget_lost(buffer: RolloutBuffer) -> None:
    """To be called where the buffer is emptied."""
    vars(buffer).pop(ATTRIBUTE, None)


def note_lost(
    buffer: RolloutBuffer, rewards: np.ndarray, values: Tensor, dones: np.ndarray, infos: list[dict[str, Any]]
) -> None:
    """Notes the rows of the next step to be stored that are lost; their value becomes their reward."""
    for index in np.flatnonzero(dones).tolist() if np.count_nonzero(dones) else ():
        if is_lost(infos[index]):
            if values[index].numel() > 1:
                raise RuntimeError(
                    "worker_lost: a response whose reward is lost with its worker cannot be left out of a language "
                    "model's update; make the environment repeatable, or step it in this process (PromptVecEnv)"
                )
            rewards[index] = float(values[index])
            vars(buffer).setdefault(ATTRIBUTE, []).append((buffer.pos, index))


def lost_rows(buffer: RolloutBuffer) -> Tensor | None:
    """The indices of lost rows in the flat rollout [N * T], on the buffer's device; None where there are none."""
    found = vars(buffer).get(ATTRIBUTE)
    if not found:
        return None
    return torch.tensor([index * buffer.buffer_size + step for step, index in found], device=buffer.device)


def without_lost(order: Tensor, lost: Tensor | None) -> Tensor:
    """An order of rows in which the first others of it stand once more where lost rows stood.

    Minibatches keep their number and size, which compiled graphs and other processes count on.
    """
    if lost is None:
        return order
    out = torch.isin(order, lost.to(order.device))
    others = order[~out]
    if len(others) == 0:
        return order
    return order.masked_scatter(out, others[torch.arange(len(order) - len(others), device=order.device) % len(others)])


def normalized_without(advantage: Tensor, lost: Tensor | None) -> Tensor:
    """Advantages [N * T] by the mean and standard deviation of the rows that are not lost."""
    return normalized(advantage, None if lost is None else torch.ones_like(advantage).index_fill(0, lost, 0))
