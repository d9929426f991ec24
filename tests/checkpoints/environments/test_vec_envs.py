"""Vector environments and their wrappers go on from what was saved."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import (
    FrameStackObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    StickyAction,
    TransformReward,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_ppo_ext.checkpoints.environments import restore_environments
from sb3_ppo_ext.vec_env import EnvPoolVecEnv, GymnasiumVecEnv
from tests.checkpoints.environments.continuing import goes_on_exactly, interrupted
from tests.environments import Toy, needs_envpool


def pendulums() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1")


pendulum = partial(make_vec_env, "Pendulum-v1", 2)

STACKS: dict[str, Callable[[], VecEnv]] = {
    "VecNormalize": lambda: VecNormalize(pendulum()),
    "VecFrameStack of VecNormalize of VecMonitor": lambda: VecFrameStack(
        VecNormalize(VecMonitor(DummyVecEnv([pendulums] * 2))), 3
    ),
    "VecNormalize of VecFrameStack": lambda: VecNormalize(VecFrameStack(pendulum(), 3), gamma=0.9),
    "VecCheckNan": lambda: VecCheckNan(pendulum()),
    "VecNormalize of Dict": lambda: VecNormalize(make_vec_env(partial(Toy, "dict"), 2), norm_obs_keys=["a"]),
    "VecExtractDictObs": lambda: VecExtractDictObs(make_vec_env(partial(Toy, "dict"), 2), key="a"),
}


@pytest.mark.parametrize("name", STACKS)
def test_wrappers_of_vector_environments_go_on(name: str) -> None:
    assert goes_on_exactly(STACKS[name], after=300)


def wrapped(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    env = NormalizeReward(NormalizeObservation(RecordEpisodeStatistics(env, stats_key="statistics")))
    return TransformReward(FrameStackObservation(StickyAction(env, 0.3), 3), lambda reward: 2 * float(reward))


def test_wrappers_of_single_environments_go_on() -> None:
    assert goes_on_exactly(partial(make_vec_env, "CartPole-v1", 2, wrapper_class=wrapped))


def test_episodes_that_began_before_the_checkpoint_have_their_whole_length() -> None:
    run = interrupted(pendulum, before=50, after=160)
    ends = [info["episode"] for *_, infos in run.results for info in infos if "episode" in info]
    assert {episode["l"] for episode in ends} == {"200"}


def monitored(task: str) -> gym.Env[Any, Any]:
    return Monitor(gym.make(task))


@pytest.mark.parametrize("task", ["Pendulum-v1", "LunarLander-v3"])
def test_environments_in_processes_of_their_own_go_on(task: str) -> None:
    if task == "LunarLander-v3":
        pytest.importorskip("Box2D")
    assert goes_on_exactly(partial(SubprocVecEnv, [partial(monitored, task)] * 2, "fork"), before=90, after=150)


GYMNASIUM: dict[str, Callable[[], VecEnv]] = {
    "sync": partial(GymnasiumVecEnv, "CartPole-v1", 3, vectorization_mode="sync"),
    "async": partial(GymnasiumVecEnv, "CartPole-v1", 3, vectorization_mode="async", vector_kwargs={"context": "fork"}),
    "CartPoleVectorEnv": partial(GymnasiumVecEnv, "CartPole-v1", 3),
    "same step": partial(
        GymnasiumVecEnv,
        "CartPole-v1",
        3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    ),
}


@pytest.mark.parametrize("name", GYMNASIUM)
def test_vector_environments_of_gymnasium_go_on(name: str) -> None:
    assert goes_on_exactly(GYMNASIUM[name])


@needs_envpool
def test_envpool_begins_new_episodes_and_says_what_has_the_same_task() -> None:
    make = partial(EnvPoolVecEnv, "CartPole-v1", 2)
    run = interrupted(make, after=1)
    restored = restore_environments(make(), pickle.loads(run.state))
    assert restored.new_episodes and run.lines == restored
    assert len(restored) == 1 and "CartPole-v1 begins new episodes" in restored[0] and "GymnasiumVecEnv" in restored[0]
