"""Rows of a rollout: gathered by index, or split into views."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sb3_ppo_ext.objective.batch import Minibatch, Observation
from sb3_ppo_ext.objective.distributions import gathered

ALIGNMENT = 64  # bytes, of what torch allocates
GATHERED_AT_ONCE = 2**24  # bytes; a second copy of images would be too much


def gathered_rows(rollout: Minibatch, rows: Tensor) -> Minibatch:
    """The given rows of a whole rollout."""
    return Minibatch(
        observation_rows(rollout.observation, rows),
        rollout.action[rows],
        rollout.action_log_prob[rows],
        rollout.state_value[rows],
        rollout.advantage[rows],
        rollout.value_target[rows],
        None if rollout.distribution is None else gathered(rollout.distribution, rows),
    )


def tensors_of(rollout: Minibatch) -> list[Tensor]:
    """Everything with a row per step but the distribution."""
    observations = rollout.observation.values() if isinstance(rollout.observation, dict) else (rollout.observation,)
    return [*observations, *rollout[1:6]]


def splits_evenly(rollout: Minibatch, batch_size: int) -> bool:
    """Whether an epoch can be gathered at once: small enough, and minibatches begin where fresh tensors could.

    A matrix product may round differently for a matrix that does not begin at a multiple of 64 bytes.
    """
    row_bytes = [tensor.nbytes // max(len(tensor), 1) for tensor in tensors_of(rollout)]
    return sum(row_bytes) * len(rollout.advantage) <= GATHERED_AT_ONCE and all(
        batch_size * size % ALIGNMENT == 0 for size in row_bytes
    )


def split_rows(rollout: Minibatch, batch_size: int) -> Iterator[Minibatch]:
    """Views of ``batch_size`` rows after another."""
    columns = zip(*(torch.split(tensor, batch_size) for tensor in tensors_of(rollout)), strict=True)
    for parts in columns:
        observation: Observation = parts[0]
        if isinstance(rollout.observation, dict):
            observation = dict(zip(rollout.observation, parts, strict=False))
        yield Minibatch(observation, *parts[-5:])


def observation_rows(observation: Observation, rows: Tensor) -> Observation:
    """The given rows of the observations, or of each of them."""
    if isinstance(observation, dict):
        return {key: _rows(tensor, rows) for key, tensor in observation.items()}
    return _rows(observation, rows)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    # Of bytes, indexing copies one after the other; index_select copies whole rows, if they are whole.
    return tensor.index_select(0, rows) if tensor.is_contiguous() else tensor[rows]
