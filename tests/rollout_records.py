"""Everything a rollout leaves behind and shows on its way, to be compared between two algorithms."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from tests.environments import Toy

ARRAYS = ("actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")


def environments(observation: str = "vector", action: str = "box", count: int = 3) -> VecEnv:
    return DummyVecEnv([partial(lambda i: Monitor(Toy(observation, action, 7 + i)), index) for index in range(count)])


def plain(value: Any) -> Any:
    """Something to be compared with ``assert_same``; what differs between two runs by nature is left out."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key != "t"}  # seconds since the start
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if isinstance(value, (bool, int, float, np.generic)) else type(value).__name__.replace("PPOX", "PPO")


def assert_same(mine: Any, theirs: Any, *, where: str = "") -> None:
    assert type(mine) is type(theirs), where
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for key in mine:
            assert_same(mine[key], theirs[key], where=f"{where}[{key!r}]")
    elif isinstance(mine, list):
        assert len(mine) == len(theirs), where
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_same(*pair, where=f"{where}[{index}]")
    elif isinstance(mine, np.ndarray):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, where
        np.testing.assert_array_equal(mine, theirs, err_msg=where)
    else:
        assert mine == theirs, where


class Recorder(BaseCallback):
    """Keeps what callbacks see: a copy when they see it, and the objects themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.kept: list[tuple[dict[str, Any], Any]] = []

    def _on_rollout_start(self) -> None:
        self.calls.append("start")

    def _on_step(self) -> bool:
        self._note()
        return True

    def _on_rollout_end(self) -> None:
        self._note()

    def _note(self) -> None:
        # What PPOX has besides.
        own = {
            "actor_of",
            "actor",
            "step",
            "store",
            "bounded",
            "leaves_out",
            "sampled",
            "begun",
            "after_step",
            "division",
        }
        seen = {name: value for name, value in self.locals.items() if name not in own}
        self.calls.append(plain(seen))
        arrays = {name: seen[name] for name in ("obs_tensor", "values", "log_probs", "new_obs", "dones", "infos")}
        self.kept.append((arrays, plain(arrays)))


def collected(algorithm: type[PPO], env: VecEnv, policy: Any = "MlpPolicy", **options: Any) -> tuple[PPO, Recorder]:
    settings = {"n_steps": 24, "batch_size": 12, "n_epochs": 2, "seed": 3, "device": "cpu", **options}
    model, recorder = algorithm(policy, env, **settings), Recorder()
    return model.learn(2 * 24 * env.num_envs, callback=recorder), recorder


def state(model: PPO) -> dict[str, Any]:
    buffer = model.rollout_buffer
    flattened = {name: getattr(buffer, name) for name in ARRAYS}
    if not buffer.generator_ready:  # train() has flattened Stable-Baselines3's
        flattened |= {name: buffer.swap_and_flatten(flattened[name]) for name in ARRAYS if name not in UNFLATTENED}
    attributes = ("_last_obs", "_last_episode_starts", "num_timesteps", "_n_updates")
    return {
        "buffer": plain(flattened),
        "pos, full": [buffer.pos, buffer.full],
        "episodes": plain(list(model.ep_info_buffer or [])),
        "parameters": plain(dict(model.policy.state_dict())),
        **{name: plain(getattr(model, name)) for name in attributes},
    }


UNFLATTENED = ("rewards", "episode_starts")
