"""The common part of rollout buffers of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer


class TokenRolloutBuffer(DictRolloutBuffer):
    """A buffer whose steps are sequences of up to L tokens: ``values`` and the like are [T, N, L], 0 where masked."""

    masks: np.ndarray  # [T, N, L], bool
    ref_log_probs: np.ndarray | None  # [T, N, L], under the frozen reference
    ended: np.ndarray  # [T, N], bool: whether the episode ended with that step
    last_values: np.ndarray  # [N], of the observation after the last step
    draws: dict[str, Any] | None  # plain values, where not every step of the environments becomes one of the buffer


def has_begun(buffer: RolloutBuffer) -> bool:
    """True where the buffer was given a step of a rollout, also one that it has left out."""
    return buffer.pos > 0 or (isinstance(buffer, TokenRolloutBuffer) and bool(buffer.draws and buffer.draws["steps"]))
