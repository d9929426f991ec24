"""What a TensorDict of a rollout has besides the columns of every buffer, by the buffer's class."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from tensordict import TensorDictBase
from torch import Tensor

from sb3_ppo_ext.rollout.token_buffer import TokenRolloutBuffer
from sb3_ppo_ext.tensordicts.reading import Key, numbers_of

MASK, REFERENCE = "mask", "ref_log_prob"

End = tuple[Tensor | None, np.ndarray | None]  # of the rollout: values [N] of the next states; whether episodes ended


def copied(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A copy of the array as a tensor on ``device``."""
    return torch.as_tensor(array).to(device, copy=True)


@singledispatch
def add_content(
    buffer: RolloutBuffer, content: dict[Key, Any], last_values: Tensor | None, dones: np.ndarray | None
) -> End:
    """Adds the keys that the buffer's class alone has; returns the end of the rollout, which a buffer may hold."""
    return last_values, dones


@add_content.register
def _add_tokens(
    buffer: TokenRolloutBuffer, content: dict[Key, Any], last_values: Tensor | None, dones: np.ndarray | None
) -> End:
    if last_values is not None or dones is not None:
        raise ValueError(f"{type(buffer).__name__} keeps last_values and dones itself; give neither")
    content[MASK] = copied(buffer.masks, content["state_value"].device)
    if buffer.ref_log_probs is not None:
        content[REFERENCE] = copied(buffer.ref_log_probs, content["state_value"].device)
    return torch.from_numpy(buffer.last_values), buffer.ended[-1]


@singledispatch
def further_attributes(buffer: RolloutBuffer, rows: TensorDictBase) -> dict[str, np.ndarray]:
    """The arrays of ``rows`` [T, N] for the attributes that the buffer's class alone has, by their names."""
    if rows.get(MASK, None) is not None:
        raise ValueError(f"{type(buffer).__name__} has no place for the key {MASK!r}; exclude it first")
    return {}


@further_attributes.register
def _attributes_of_tokens(buffer: TokenRolloutBuffer, rows: TensorDictBase) -> dict[str, np.ndarray]:
    length = buffer.masks.shape[2:]
    ends = numbers_of(rows, ("next", "done"), True, torch.bool)
    arrays = {"masks": numbers_of(rows, MASK, False, torch.bool, length), "ended": ends}
    arrays["last_values"] = numbers_of(rows, ("next", "state_value"), True)[-1]
    if rows.get(REFERENCE, None) is not None:
        arrays["ref_log_probs"] = numbers_of(rows, REFERENCE, False, shape=length)
    return arrays
