"""The layers around environments that other processes have saved: the rows of each environment are put together again.

Their attributes belong to single environments, row by row, or to the layer, and are alike in all processes then.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_ppo_ext.checkpoints.environments.attributes import objects_in_place
from sb3_ppo_ext.checkpoints.environments.in_place import ARRAY
from sb3_ppo_ext.checkpoints.environments.layers import has_state_dict, name_of, put_into_layer
from sb3_ppo_ext.checkpoints.environments.memory import Loss
from sb3_ppo_ext.checkpoints.environments.snapshot import read
from sb3_ppo_ext.vec_env.episodes import EpisodeVecEnv
from sb3_ppo_ext.vec_env.remote.ray_vec_env import RayVecEnv

# Attributes with a row for each environment.
ROWS: dict[type, frozenset[str]] = {
    VecEnv: frozenset(("reset_infos", "_seeds", "_options")),
    DummyVecEnv: frozenset(("buf_obs", "buf_dones", "buf_rews")),
    VecMonitor: frozenset(("episode_returns", "episode_lengths")),
    VecNormalize: frozenset(("returns", "old_obs", "old_reward")),
    EpisodeVecEnv: frozenset(("_returns", "_first_steps")),
    RayVecEnv: frozenset(("_last",)),
    SyncVectorEnv: frozenset(("_env_obs", "_observations", "_rewards", "_terminations", "_truncations"))
    | {"_autoreset_envs"},
}
OF_PROCESS = frozenset(("num_envs", "episode_count"))  # numbers of the environments of a process, which it has already
UNDIVIDED = "it goes on in as many processes as have saved it"
PACKAGES = ("stable_baselines3", "sb3_ppo_ext")  # whose layers have all their rows in the table


class Piece(NamedTuple):
    """What a process has saved of its environments, and which of them are taken from that."""

    state: dict[str, Any]
    shards: range  # of those that it has saved
    rows: range  # of its environments: those in these shards


def put_divided(layers: list[Any], pieces: Sequence[Piece]) -> list[Loss]:
    """Puts the rows of the pieces, one after the other, into these outermost layers; returns those that it cannot.

    Spaces keep the generators that the environments have restored.
    """
    found = objects_in_place(layers)
    try:
        read_states = [read(layers, piece.state["here"]["snapshot"], range(len(layers)), found) for piece in pieces]
    except Exception as error:  # whatever a user's object raises
        return [Loss(name_of(layers[0]), f"{type(error).__name__}: {error}")]
    in_memory = {path[0] for _, in_place in read_states for path, rule, *_ in in_place if rule is ARRAY}
    losses = []
    for index, layer in enumerate(layers):
        states = [states[index] for states, _ in read_states]
        reason = "it has arrays in memory that processes share" if index in in_memory else _obstacle(layer, states[0])
        if reason is None:
            put_into_layer(layer, _joined(layer, states, [piece.rows for piece in pieces]))
        else:
            losses.append(Loss(type(layer).__name__, f"{reason}; {UNDIVIDED}"))
    return losses


def _obstacle(layer: Any, state: dict[str, Any]) -> str | None:
    """Why it is not known which of its attributes have rows, or None."""
    if has_state_dict(layer):
        return None if _with_rows(layer) else "its state_dict() is of all its environments together"
    if type(layer).__module__.split(".")[0] in PACKAGES:
        return None
    with_rows = _with_rows(layer)
    for name, value in state.items():
        several = isinstance(value, (np.ndarray, list, tuple, dict)) and len(value) == state.get("num_envs")
        if several and name not in with_rows:
            return f"its attribute {name} may have a value for each environment"
    return None


def _with_rows(layer: Any) -> frozenset[str]:
    """The names of its attributes, or of the entries of its ``state_dict``, that have a row for each environment."""
    if has_state_dict(layer):
        return frozenset(getattr(type(layer), "rows_of_state", ()))
    return frozenset().union(*(names for kind, names in ROWS.items() if isinstance(layer, kind)))


def is_divided(layer: Any) -> bool:
    """True if the class of the layer names the entries of its ``state_dict`` that have rows, in ``rows_of_state``."""
    return has_state_dict(layer) and bool(_with_rows(layer))


def _joined(layer: Any, states: list[dict[str, Any]], rows: Sequence[range]) -> dict[str, Any]:
    if has_state_dict(layer):
        return {"state_dict": _joined_rows(layer, [state["state_dict"] for state in states], rows)}
    return _joined_rows(layer, states, rows)


def _joined_rows(layer: Any, states: list[dict[str, Any]], rows: Sequence[range]) -> dict[str, Any]:
    with_rows = _with_rows(layer)
    return {
        name: rows_of_all([state[name] for state in states], rows)
        if name in with_rows or isinstance(value, StackedObservations)
        else value
        for name, value in states[0].items()
        if name not in OF_PROCESS
    }


def rows_of_all(values: list[Any], rows: Sequence[range]) -> Any:
    """The ``rows`` of each value, one after the other, in arrays, lists, and what holds these by name."""
    first = values[0]
    if isinstance(first, dict):
        return {key: rows_of_all([value[key] for value in values], rows) for key in first}
    if isinstance(first, StackedObservations):
        stacked = copy.copy(first)
        for name in _stacks_of(first):
            vars(stacked)[name] = rows_of_all([vars(value)[name] for value in values], rows)
        return stacked
    if first is None:
        return None
    cut = [value[of.start : of.stop] for value, of in zip(values, rows, strict=True)]
    return np.concatenate(cut) if isinstance(first, np.ndarray) else [entry for entries in cut for entry in entries]


def _stacks_of(stacked: StackedObservations[Any]) -> Iterator[str]:
    yield from (name for name in ("stacked_obs", "sub_stacked_observations") if name in vars(stacked))
