"""EnvPool as a VecEnv: what is refused, spaces, attributes and the monitor file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import load_results

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import EnvPoolVecEnv
from tests.environments import needs_envpool


@needs_envpool
def test_spaces_are_gymnasium_s_so_that_models_move() -> None:
    for task in ("CartPole-v1", "HalfCheetah-v5"):
        env, theirs = EnvPoolVecEnv(task, 1), gym.make(task)
        assert env.observation_space == theirs.observation_space and env.action_space == theirs.action_space
    lander = EnvPoolVecEnv("LunarLander-v3", 1).observation_space
    assert isinstance(lander, gym.spaces.Box) and (lander.low == -np.inf).all()


@needs_envpool
@pytest.mark.parametrize("algorithm", [PPO, PPOX])
def test_an_environment_that_is_not_the_model_s_is_refused_with_both_spaces(
    algorithm: type[PPO], tmp_path: Path
) -> None:
    model = algorithm("MlpPolicy", EnvPoolVecEnv("CartPole-v1", 2), n_steps=8, batch_size=8)
    model.save(tmp_path / "model")
    pendulum = EnvPoolVecEnv("Pendulum-v1", 2)
    spaces = r"Box\(\[-4\.8.*\(4,\), float32\) != Box\(\[-1\..*\(3,\), float32\)"
    with pytest.raises(ValueError, match=spaces):
        model.set_env(pendulum)
    with pytest.raises(ValueError, match=spaces):
        algorithm.load(tmp_path / "model", env=pendulum)


@needs_envpool
def test_episodes_are_lines_in_the_monitor_file(tmp_path: Path) -> None:
    env = EnvPoolVecEnv("CartPole-v1", 2, seed=0, monitor_file=str(tmp_path / "0"))
    env.reset()
    ended = [info["episode"]["l"] for _ in range(60) for info in env.step(np.array([0, 1]))[3] if "episode" in info]
    env.close()
    assert load_results(str(tmp_path))["l"].tolist() == ended


@needs_envpool
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"task": "HalfChetah-v5"}, "task='HalfChetah-v5'.*HalfCheetah-v5"),
        ({"n_envs": 0}, "n_envs=0: at least 1"),
        ({"threads": -1}, "threads=-1: at least 1"),
        ({"batch_size": 1}, "batch_size=1: .*all n_envs at once"),
        ({"gravity": 3}, "'gravity': 3.*does not take this"),
        ({"max_episode_steps": "long"}, "'max_episode_steps': 'long'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        EnvPoolVecEnv(**{"task": "CartPole-v1", "n_envs": 2, **arguments})


@needs_envpool
def test_what_the_pool_can_and_cannot_tell() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 2, max_episode_steps=30)
    assert env.get_attr("max_episode_steps") == [30, 30] and env.get_attr("render_mode", 0) == [None]
    assert not env.has_attr("gravity") and env.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]
    with pytest.raises(ValueError, match=r"set_attr\('gravity'\)"):
        env.set_attr("gravity", 1.0)
    with pytest.raises(AttributeError, match=r"env_method\('reset'\)"):
        env.env_method("reset")
    env.set_options({"low": 0.1})
    with pytest.raises(ValueError, match="EnvPool takes none at reset"):
        env.reset()


def test_without_envpool_only_envpool_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r'pip install "sb3_ppo_ext\[envpool\]"'):
        EnvPoolVecEnv("CartPole-v1", 2)
