"""The step of a vector environment; for Stable-Baselines3's ``DummyVecEnv`` without its deep copies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_ppo_ext.host.sb3 import steps_as_sb3

Step = Callable[[np.ndarray], VecEnvStepReturn]

# Values of which a deep copy is the value itself.
SCALARS = frozenset(
    (
        *(bool, int, float, complex, str, bytes, type(None), np.bool_),
        *(np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8),
    )
)


def step_of(env: VecEnv) -> Step:
    """``env.step``, or the same faster for a ``DummyVecEnv`` that nobody has changed."""
    return DummyStep(env) if steps_as_sb3(env) else env.step  # type: ignore[arg-type]  # it is one


class DummyStep:
    """``DummyVecEnv.step``: the same calls, buffers and results.

    Results are the consumer's own here too, but made by the copy that is enough for what they hold.
    """

    def __init__(self, env: DummyVecEnv) -> None:
        self.env = env

    def __call__(self, actions: np.ndarray) -> VecEnvStepReturn:
        """Observations, rewards, dones and infos."""
        env = self.env
        env.actions = actions
        buf_rews, buf_dones, buf_infos, save = env.buf_rews, env.buf_dones, env.buf_infos, env._save_obs
        single: Any = None if len(env.keys) != 1 else env.buf_obs.get(None)  # type: ignore[call-overload]  # not a Dict
        for index, one in enumerate(env.envs):
            obs, buf_rews[index], terminated, truncated, info = one.step(actions[index])
            buf_infos[index] = info
            done = terminated or truncated
            buf_dones[index] = done
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = obs
                obs, env.reset_infos[index] = one.reset()
            if single is None:
                save(index, obs)
            else:
                single[index] = obs
        return self._observations(), buf_rews.copy(), buf_dones.copy(), copied_infos(buf_infos)

    def _observations(self) -> Any:
        copies = OrderedDict((key, array.copy()) for key, array in self.env.buf_obs.items())
        return dict_to_obs(self.env.observation_space, copies)


def copied_infos(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As ``deepcopy(infos)``, which takes most of its time over dicts of plain numbers."""
    copies = [info.copy() if is_flat(info) else None for info in infos]
    nested = [index for index, copy in enumerate(copies) if copy is None]
    # Together, so that what several of them share is shared by their copies.
    for index, info in zip(nested, deepcopy([infos[index] for index in nested]) if nested else (), strict=True):
        copies[index] = info
    return copies  # type: ignore[return-value]  # every None has been replaced


def is_flat(info: dict[str, Any]) -> bool:
    """Whether a shallow copy is as good as a deep one."""
    return type(info) is dict and SCALARS.issuperset(map(type, info.values()))
