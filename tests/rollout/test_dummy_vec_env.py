"""A step of DummyVecEnv without its deep copies: the same results, buffers and ownership."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext.rollout.dummy_vec_env import copied_infos, dummy_step
from sb3_ppo_ext.rollout.vec_env_step import lean_step, step_of
from tests.environments import Toy, Walk
from tests.rollout_records import assert_same, plain


class Informative(gym.Wrapper[Any, Any, Any, Any]):
    """Infos of every kind: numbers, arrays, and a dict the environment goes on writing to."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.log: dict[str, Any] = {"steps": 0, "path": []}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        self.log["steps"] += 1
        self.log["path"].append(float(reward))
        info |= {"reward": np.float64(reward), "text": "x", "array": np.arange(3), "log": self.log}
        terminated = terminated or (truncated and self.log["steps"] < 9)  # both at once, for a while
        return obs, reward, terminated, truncated, info if self.log["steps"] % 3 else {"n": 1}


MAKERS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "vector": lambda: Monitor(Toy("vector", length=4)),
    "double": lambda: Monitor(Walk("double")),
    "dict": lambda: Monitor(Toy("dict", length=4)),
    "image": lambda: Toy("image", length=4),
    "reused": lambda: Walk("reused"),
    "infos": lambda: Informative(Monitor(Toy(length=5))),
}


def steps(kind: str, *, lean: bool) -> list[Any]:
    env = DummyVecEnv([MAKERS[kind]] * 3)
    env.seed(5)
    env.reset()
    step: Any = partial(dummy_step, env) if lean else env.step
    seen, results = [], []
    for actions in np.random.default_rng(0).integers(0, 3, (20, 3)):
        result = step(actions)
        buffers = (env.buf_obs, env.buf_rews, env.buf_dones, env.buf_infos, env.reset_infos, env.actions)
        seen.append(plain([*result, *buffers]))
        results.append((result, plain(result)))
    for result, then in results:  # no later step has written to them
        assert_same(plain(result), then)
    return seen


@pytest.mark.parametrize("kind", MAKERS)
def test_steps_and_buffers_are_dummy_vec_env_s(kind: str) -> None:
    assert_same(steps(kind, lean=True), steps(kind, lean=False))


def test_copied_infos_share_what_the_infos_share() -> None:
    shared = [1]
    infos = [{"a": 1.0}, {"b": shared}, {"b": shared}, {}]
    copies = copied_infos(infos)  # type: ignore[arg-type]
    assert copies == infos and not any(copy is info for copy, info in zip(copies, infos, strict=True))
    assert copies[1]["b"] is copies[2]["b"] and copies[1]["b"] is not shared


def results(env: DummyVecEnv) -> Any:
    return step_of(env)(np.zeros(1))


class Other(DummyVecEnv):
    pass


def test_only_an_unchanged_dummy_vec_env_is_stepped_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    env = DummyVecEnv([Toy])
    assert lean_step(env) is not None and lean_step(Other([Toy])) is None
    env.step_wait = lambda: "patched"  # type: ignore[assignment,method-assign,return-value]
    assert results(env) == "patched"
    monkeypatch.setattr(DummyVecEnv, "step_wait", lambda self: "patched too")
    assert results(DummyVecEnv([Toy])) == "patched too"
