"""``DummyVecEnv.step`` without deep copies: each result is copied as far as its contents need it."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

# Values of which a deep copy is the value itself.
SCALARS = frozenset(
    (
        *(bool, int, float, complex, str, bytes, type(None), np.bool_),
        *(np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8),
    )
)


def dummy_step(env: DummyVecEnv, actions: np.ndarray) -> VecEnvStepReturn:
    """Observations, rewards, dones and infos; the environments, buffers and results are those of ``DummyVecEnv``."""
    env.actions = actions
    buf_rews, buf_dones, buf_infos, save = env.buf_rews, env.buf_dones, env.buf_infos, env._save_obs
    single: Any = None if len(env.keys) != 1 else env.buf_obs.get(None)  # type: ignore[call-overload]  # not a Dict
    for index, environment in enumerate(env.envs):
        obs, buf_rews[index], terminated, truncated, info = environment.step(actions[index])
        buf_infos[index] = info
        done = terminated or truncated
        buf_dones[index] = done
        info["TimeLimit.truncated"] = truncated and not terminated
        if done:
            info["terminal_observation"] = obs
            obs, env.reset_infos[index] = environment.reset()
        if single is None:
            save(index, obs)
        else:
            single[index] = obs
    if single is None:
        observation: Any = dict_to_obs(env.observation_space, copied_observation(env.buf_obs))
    else:
        observation = single.copy()  # what dict_to_obs takes out of the dict of it
    return observation, buf_rews.copy(), buf_dones.copy(), copied_infos(buf_infos)


def copied_observation(obs: Any) -> Any:
    """``deepcopy(obs)``, faster for an array or a dict of arrays."""
    if type(obs) is np.ndarray and not obs.dtype.hasobject:
        return obs.copy(order="K")
    if type(obs) in (dict, OrderedDict):
        return type(obs)((key, copied_observation(array)) for key, array in obs.items())
    return deepcopy(obs)


def copied_infos(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``deepcopy(infos)``, faster for dicts of plain numbers."""
    copies = [info.copy() if is_flat(info) else None for info in infos]
    if None in copies:
        nested = [index for index, copy in enumerate(copies) if copy is None]
        # Together, so that what several of them share is shared by their copies.
        for index, info in zip(nested, deepcopy([infos[index] for index in nested]), strict=True):
            copies[index] = info
    return copies  # type: ignore[return-value]  # every None has been replaced


def is_flat(info: dict[str, Any]) -> bool:
    """Whether a shallow copy equals a deep one."""
    return type(info) is dict and SCALARS.issuperset(map(type, info.values()))
