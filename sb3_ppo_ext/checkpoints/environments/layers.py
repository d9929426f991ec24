"""The layers of an environment that make up its state: its wrappers and itself, outermost first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_ppo_ext.vec_env.episodes import EpisodeVecEnv
from sb3_ppo_ext.vec_env.gymnasium_env import GymnasiumVecEnv
from sb3_ppo_ext.vec_env.remote.ray_vec_env import RayVecEnv

MEMORY = "_sb3_ppo_ext_memory"  # attribute of an outermost layer that holds what is remembered from save to save

# How a layer was made, how it is shown, and methods that stand in for those of its class: the program's, not state.
SETTINGS = frozenset(
    ("spec", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "class_attributes", "metadata")
) | {"render_mode", "step", "reset", MEMORY}

# Layers with no state but their attributes and that of the environments below them.
CARRIERS = (VecEnvWrapper, VectorEnv, DummyVecEnv, SubprocVecEnv, RayVecEnv)

# Attributes of one step, written anew by every step, and what joins a process to its workers.
TRANSIENT: dict[type, frozenset[str]] = {
    DummyVecEnv: frozenset(("envs", "actions", "buf_infos", "keys")),
    SubprocVecEnv: frozenset(("remotes", "work_remotes", "processes", "waiting", "closed")),
    RayVecEnv: frozenset(("_records", "_crew", "_pending", "_columns", "_reward", "_done", "_infos")),
    EpisodeVecEnv: frozenset(("step_info", "_actions", "_unmade")),
    SyncVectorEnv: frozenset(("envs", "env_fns")),
    AsyncVectorEnv: frozenset(
        ("env_fns", "context", "daemon", "worker", "parent_pipes", "processes", "error_queue", "_state", "closed")
    ),
}


def env_layers(env: Any) -> list[Any]:
    """A single environment with its wrappers."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def vec_layers(vec_env: VecEnv) -> list[Any]:
    """A vector environment with its wrappers; below ``GymnasiumVecEnv``, those of Gymnasium too."""
    layers: list[Any] = [vec_env]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    if isinstance(layers[-1], GymnasiumVecEnv):
        layers.append(layers[-1].env)
        while isinstance(layers[-1], VectorWrapper):
            layers.append(layers[-1].env)
    return layers


def split_layers(vec_env: VecEnv) -> tuple[list[Any], list[Any]]:
    """The layers around, and the environments that are stepped in this process.

    A vector environment of Gymnasium that has no single environments is one of the latter.
    """
    layers = vec_layers(vec_env)
    base = layers[-1]
    if isinstance(base, (DummyVecEnv, SyncVectorEnv)):
        return layers, list(base.envs)
    if isinstance(base, VectorEnv) and not isinstance(base, AsyncVectorEnv):
        return layers[:-1], [base]
    return layers, []


def state_of_layer(layer: Any, passed_over: Iterable[str] = ()) -> dict[str, Any]:
    """The attributes of a layer that make its state, or what its own ``state_dict`` gives, under that name."""
    if has_state_dict(layer):
        return {} if "state_dict" in passed_over else {"state_dict": layer.state_dict()}
    transient = SETTINGS.union(passed_over, *(names for kind, names in TRANSIENT.items() if isinstance(layer, kind)))
    return {name: value for name, value in vars(layer).items() if name not in transient}


def put_into_layer(layer: Any, state: dict[str, Any]) -> None:
    """The opposite of ``state_of_layer``."""
    if has_state_dict(layer):
        if state:
            layer.load_state_dict(state["state_dict"])
    else:
        vars(layer).update(state)  # not by setattr, for which wrappers may have their own rules


def has_state_dict(layer: Any) -> bool:
    """True if the class of the layer defines ``state_dict`` and ``load_state_dict``."""
    return all(callable(getattr(type(layer), name, None)) for name in ("state_dict", "load_state_dict"))


def path_of_class(layer: Any) -> str:
    """Module and name of its class; of one that rl_zoo3, when imported, puts in Gymnasium's place, Gymnasium's."""
    kind = next(base for base in type(layer).__mro__ if base.__module__ != "rl_zoo3.gym_patches")
    return f"{kind.__module__}.{kind.__qualname__}"


def name_of(env: Any) -> str:
    """Returns the name of an environment for messages: its id, or the name of its class."""
    base = env.unwrapped if isinstance(env, (gym.Env, VecEnv, VectorEnv)) else env
    spec = getattr(base, "spec", None)
    return str(spec.id) if spec is not None else type(base).__name__
