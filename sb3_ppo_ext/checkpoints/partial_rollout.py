"""A rollout that is not complete: the rows that are in the buffer, and the noise by which a gSDE policy explores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution

from sb3_ppo_ext.checkpoints.plain import is_plain

State = dict[str, Any]


def can_be_saved(model: Any) -> bool:
    """True where the buffer holds all of the rollout: on a device, noise is drawn for many steps ahead."""
    return isinstance(model.rollout_buffer, RolloutBuffer) and not model._engines.keeps_rollouts_on_device(model._run())


def save_partial_rollout(model: Any) -> State:
    """The buffer's rows and numbers, and the exploration matrices."""
    return {
        "buffer": _rows(vars(model.rollout_buffer), model.rollout_buffer),
        "noise": _noise(model.policy),
        **_streams(model),
    }


def _streams(model: Any) -> State:
    if model._acting_streams is None:
        return {}
    return {"shards": model._acting_streams.state_dict(), "normalization": model._normalization.state()}


def _rows(attributes: State, buffer: RolloutBuffer) -> State:
    rows: State = {}
    for name, value in attributes.items():
        if isinstance(value, dict) and value and all(_is_filled(array, buffer) for array in value.values()):
            rows[name] = {key: array[: buffer.pos].copy() for key, array in value.items()}
        elif _is_filled(value, buffer):
            rows[name] = value[: buffer.pos].copy()
        elif is_plain(value):
            rows[name] = value
    return rows


def _is_filled(value: Any, buffer: RolloutBuffer) -> bool:
    return isinstance(value, np.ndarray) and value.shape[:1] == (buffer.buffer_size,) and value.dtype != object


def _noise(policy: Any) -> State | None:
    distribution = policy.action_dist if hasattr(policy, "action_dist") else None
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return None
    names = ("exploration_mat", "exploration_matrices", "weights_dist")
    return {name: getattr(distribution, name) for name in names if hasattr(distribution, name)}


def restore_partial_rollout(model: Any, state: State) -> int:
    """Fills the buffer and puts the matrices back; how many steps there are."""
    buffer = model.rollout_buffer
    buffer.reset()
    for name, value in state["buffer"].items():
        _put(vars(buffer), name, value)
    model.policy.set_training_mode(False)
    if state["noise"] is not None:
        for name, value in state["noise"].items():
            moved = value.to(model.device) if isinstance(value, torch.Tensor) else value
            setattr(model.policy.action_dist, name, moved)
    if "shards" in state:
        model._acting_streams.load_state_dict(state["shards"])
        model._normalization.load(state["normalization"])
    return int(buffer.pos)


def _put(attributes: State, name: str, value: Any) -> None:
    if isinstance(value, dict) and isinstance(attributes.get(name), dict):
        for key, rows in value.items():
            _put(attributes[name], key, rows)
    elif isinstance(value, np.ndarray) and isinstance(attributes.get(name), np.ndarray):
        attributes[name][: len(value)] = value
    else:
        attributes[name] = value
