"""What processes have saved of their environments goes on in others, that have others of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_ppo_ext.checkpoints.environments import (
    Piece,
    Restored,
    prepare_environments,
    restore_divided,
    save_environments,
)
from sb3_ppo_ext.vec_env import GymnasiumVecEnv, RayVecEnv
from tests.checkpoints.environments.continuing import as_bytes
from tests.distributed.jobs import OwnSpaces
from tests.vec_env.remote.in_process import InProcessRay

BEFORE, AFTER = 40, 60  # steps
Make = Callable[[int], VecEnv]


def monitored(task: str) -> gym.Env[Any, Any]:
    return Monitor(gym.make(task))


def dummy(task: str, n: int) -> VecEnv:
    return DummyVecEnv([partial(monitored, task)] * n)


class Counting(VecEnvWrapper):
    """Has a number for each environment, which no table has."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.steps, self.of_each = 0, np.zeros(venv.num_envs)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.steps += 1
        self.of_each += 1
        return self.venv.step_wait()


STACKS: dict[str, Make] = {
    "Dummy": partial(dummy, "CartPole-v1"),
    "wrappers": lambda n: VecFrameStack(
        VecNormalize(VecMonitor(DummyVecEnv([partial(gym.make, "Pendulum-v1")] * n)), training=False), 3
    ),
    "Dict": lambda n: VecNormalize(
        DummyVecEnv([partial(OwnSpaces, "dict", "box", 12)] * n), training=False, norm_obs_keys=["a"]
    ),
    "processes": lambda n: SubprocVecEnv([partial(monitored, "CartPole-v1")] * n, "fork"),
    "workers of Ray": lambda n: RayVecEnv([partial(monitored, "CartPole-v1")] * n, envs_per_worker=2),
    "sync": partial(GymnasiumVecEnv, "CartPole-v1", vectorization_mode="sync"),
}


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are objects of this process."""
    monkeypatch.setattr("sb3_ppo_ext.vec_env.remote.ray_vec_env.imported_ray", InProcessRay)


def stepped(env: VecEnv, first: int, actions: np.ndarray, done: int = 0) -> list[Any]:
    """The results of each environment, by step; the environments begin with number ``first``."""
    own = actions[done:, first : first + env.num_envs]
    results = [env.step(action) for action in own]
    return [[as_bytes([rows(part, row) for part in result]) for row in range(env.num_envs)] for result in results]


def rows(part: Any, row: int) -> Any:
    return as_bytes({key: value[row] for key, value in part.items()} if isinstance(part, dict) else part[row])


def saved(make: Make, first: int, count: int, actions: np.ndarray) -> bytes:
    """The state of a process whose environments, a shard each, begin with number ``first``, after some steps."""
    env = make(count)
    prepare_environments(env, count)
    env.seed(5 + first)
    env.reset()
    stepped(env, first, actions[:BEFORE])
    state = pickle.dumps(save_environments(env, count))
    env.close()
    return state


def actions_of(make: Make) -> np.ndarray:
    env = make(1)
    env.action_space.seed(1)
    actions = np.array([[env.action_space.sample() for _ in range(4)] for _ in range(BEFORE + AFTER)])
    env.close()
    return actions


def piece(state: bytes, *shards: int) -> Piece:
    of = range(shards[0], shards[-1] + 1)
    return Piece(pickle.loads(state), of, of)


@pytest.mark.parametrize("name", STACKS)
def test_other_processes_go_on_with_the_environments(name: str) -> None:
    make = STACKS[name]
    actions = actions_of(make)
    whole = make(4)
    whole.seed(5)
    whole.reset()
    unbroken = stepped(whole, 0, actions)[BEFORE:]
    whole.close()
    one, three = saved(make, 0, 1, actions), saved(make, 1, 3, actions)
    divided = {0: [piece(one, 0), piece(three, 0)], 2: [piece(three, 1, 2)]}  # first environment -> its state
    for first, pieces in divided.items():
        env = make(2)
        assert restore_divided(env, pieces) == []
        assert stepped(env, first, actions, BEFORE) == [results[first : first + 2] for results in unbroken]
        env.close()


def restored(make: Make) -> tuple[VecEnv, Restored]:
    actions = actions_of(make)
    env = make(2)
    return env, restore_divided(env, [piece(saved(make, 0, 1, actions), 0), piece(saved(make, 1, 3, actions), 0)])


def test_returns_and_lengths_so_far_are_those_of_each_environment() -> None:
    env, lines = restored(lambda n: VecNormalize(VecMonitor(DummyVecEnv([partial(gym.make, "Pendulum-v1")] * n))))
    assert isinstance(env, VecNormalize) and isinstance(env.venv, VecMonitor) and lines == []
    assert env.venv.episode_lengths.tolist() == [BEFORE, BEFORE] and env.num_envs == len(env.returns) == 2
    assert len(set(env.returns.tolist())) == 2


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda n: Counting(dummy("CartPole-v1", n)),
            "Counting begins new episodes: its attribute of_each may have a v",
        ),
        (
            partial(GymnasiumVecEnv, "CartPole-v1"),
            "begins new episodes: its environments are saved together; it goes on",
        ),
    ],
)
def test_what_cannot_be_divided_begins_new_episodes_and_says_why(make: Make, line: str) -> None:
    _, lines = restored(make)
    assert lines.new_episodes and line in lines[0]
