"""Runs over environments whose state is not plain values end, stopped and resumed, as those that never were."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.checkpoints.runs import SETTINGS, assert_same, trained

STOPS = [41, 65, 130]  # after an update, and in the middle of rollouts


def monitored(task: str) -> gym.Env[Any, Any]:
    return Monitor(gym.make(task))


def processes() -> VecEnv:
    return VecNormalize(SubprocVecEnv([partial(monitored, "Pendulum-v1")] * 2, "fork"))


CASES: dict[str, tuple[str, Callable[[], VecEnv]]] = {
    "HalfCheetah, VecNormalize": ("mujoco", lambda: VecNormalize(make_vec_env("HalfCheetah-v5", 2))),
    "LunarLander": ("Box2D", partial(make_vec_env, "LunarLander-v3", 2)),
    "SubprocVecEnv, VecNormalize": ("gymnasium", processes),
    "CartPoleVectorEnv": ("gymnasium", partial(GymnasiumVecEnv, "CartPole-v1", 2)),
    "SyncVectorEnv": ("gymnasium", partial(GymnasiumVecEnv, "CartPole-v1", 2, vectorization_mode="sync")),
}


@pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_run_over_simulators_and_processes_goes_on_exactly(case: str, tmp_path: Path) -> None:
    module, env = CASES[case]
    pytest.importorskip(module)
    unbroken = trained(lambda: PPOX("MlpPolicy", env(), seed=3, **SETTINGS), env, tmp_path / "a", total=192, stops=[])
    broken = trained(lambda: PPOX("MlpPolicy", env(), seed=3, **SETTINGS), env, tmp_path / "b", total=192, stops=STOPS)
    assert_same(broken[0], unbroken[0])
