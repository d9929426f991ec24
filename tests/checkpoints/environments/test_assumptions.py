"""What is assumed of the insides of MuJoCo, of Stable-Baselines3's workers and of Gymnasium's, one test of each."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_ppo_ext.checkpoints.environments.workers import Workers
from tests.checkpoints.environments import kinds


def class_name(env: gym.Env[Any, Any], *arguments: Any) -> tuple[Any, ...]:
    return type(env).__name__, *arguments


def test_the_state_of_mujoco_data_is_a_byte_the_model_and_the_data() -> None:
    pytest.importorskip("mujoco")
    env: Any = gym.make("Hopper-v5").unwrapped
    whole, model = env.data.__getstate__(), env.model.__getstate__()
    assert whole.startswith(model, 1)
    assert len(whole) < len(model) + 1_000_000


@pytest.mark.parametrize("kind", [partial(SubprocVecEnv, start_method="fork"), partial(AsyncVectorEnv, context="fork")])
def test_a_worker_finds_a_method_that_comes_with_its_argument(kind: Any) -> None:
    env = kind([kinds.Counting] * 2)
    workers = Workers(env)
    assert workers.call(class_name) == [("Counting",)] * 2
    assert workers.call_each(class_name, [1, 2]) == [("Counting", 1), ("Counting", 2)]
    assert workers.call(class_name) == [("Counting",)] * 2  # nothing of the call before is left
    env.close()
