"""Rows of a rollout, gathered by index."""

from __future__ import annotations

from torch import Tensor

from sb3_ppo_ext.objective.batch import Minibatch, Observation
from sb3_ppo_ext.objective.distributions import gathered


def gathered_rows(rollout: Minibatch, rows: Tensor) -> Minibatch:
    """The minibatch of the rollout's rows with the indices ``rows`` [B]."""
    return Minibatch(
        observation_rows(rollout.observation, rows),
        rollout.action[rows],
        rollout.action_log_prob[rows],
        rollout.state_value[rows],
        rollout.advantage[rows],
        rollout.value_target[rows],
        None if rollout.distribution is None else gathered(rollout.distribution, rows),
    )


def observation_rows(observation: Observation, rows: Tensor) -> Observation:
    """The observations with the indices ``rows`` [B]; of each key in a dict of them."""
    if isinstance(observation, dict):
        return {key: _rows(tensor, rows) for key, tensor in observation.items()}
    return _rows(observation, rows)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    # Indexing copies uint8 element by element; index_select copies whole rows where they are contiguous.
    return tensor.index_select(0, rows) if tensor.is_contiguous() else tensor[rows]
