"""Infos of the vector environments: dicts as ``DummyVecEnv`` hands them out, made when they are asked for."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import EnvPoolVecEnv, GymnasiumVecEnv
from sb3_ppo_ext.vec_env.infos import Infos, info_row, unmade_infos
from tests.environments import needs_envpool

ROWS = [{"speed": 0.0}, {"speed": 1.0}, {}, {"speed": 3.0}]


def infos() -> Infos:
    columns = {"speed": np.arange(4.0), "_speed": np.array([True, True, False, True])}
    return unmade_infos((None,) * 4, columns, info_row)


@pytest.mark.parametrize(
    "read",
    [
        list,
        copy.copy,
        copy.deepcopy,
        lambda rows: rows.copy(),
        lambda rows: pickle.loads(pickle.dumps(rows)),
        lambda rows: json.loads(json.dumps(rows)),
        lambda rows: [dict(**info) for info in rows],
        lambda rows: [info | {} for _, info in sorted(enumerate(rows))],
        lambda rows: [*rows[:1], rows[1], rows[-2], *rows[3:]],
        lambda rows: ([{}] + rows)[1:],  # noqa: RUF005
        lambda rows: (rows + [{}])[:-1],  # noqa: RUF005
        lambda rows: list(reversed(rows))[::-1],
        lambda rows: np.array(rows, dtype=object).tolist(),
        lambda rows: eval(repr(rows), {"np": np}),
        lambda rows: [rows.pop(0) for _ in range(4)],
    ],
)
def test_every_way_to_read_a_list_gives_the_dicts(read: Callable[[Infos], Any]) -> None:
    assert read(infos()) == ROWS


def test_a_list_of_them_compares_as_a_list() -> None:
    assert infos() == ROWS and ROWS == infos() and infos() == infos()  # noqa: SIM300
    assert not infos() != ROWS  # noqa: SIM202
    assert isinstance(infos(), list) and len(infos()) == 4 and {} in infos() and infos().index({}) == 2
    with pytest.raises(IndexError):
        infos()[4]


def test_what_is_written_stays_and_what_is_replaced_is_replaced() -> None:
    rows = infos()
    rows[1]["note"] = 7
    rows[2] = {"speed": 2.0}
    assert rows == [ROWS[0], {"speed": 1.0, "note": 7}, {"speed": 2.0}, ROWS[3]]
    assert type(rows[0]) is dict


class Speeds(gym.Env[Any, Any]):
    """Episodes of ``length`` steps whose infos say a number that differs from step to step."""

    observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {"speed": -1.0, "started": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        info: dict[str, Any] = {
            "speed": float(self.steps),
            "parts": {"square": self.steps**2},
            "name": f"step {self.steps}",
        }
        ended = self.steps >= self.length
        return (
            np.full(1, self.steps, np.float32),
            1.0,
            ended,
            False,
            {**info, **({"is_success": True} if ended else {})},
        )


MAKERS: list[Any] = [lambda: Speeds(2), lambda: Speeds(3)]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("make", [SyncVectorEnv, partial(AsyncVectorEnv, context="fork")])
def test_every_step_says_what_dummy_vec_env_says(make: Any, mode: AutoresetMode) -> None:
    ours, theirs = GymnasiumVecEnv(make(MAKERS, autoreset_mode=mode)), DummyVecEnv(MAKERS)
    ours.reset(), theirs.reset()
    steps = [(ours.step(np.zeros(2, int))[3], theirs.step(np.zeros(2, int))[3]) for _ in range(7)]
    for mine, other in steps:  # after the last step: no later one writes to what was handed out
        for info, expected in zip(mine, other, strict=True):
            added = {"episode", "terminal_observation", "TimeLimit.truncated"}
            assert {key: info[key] for key in info.keys() - added} == {
                key: expected[key] for key in expected.keys() - added
            }
            assert ("terminal_observation" in info) == ("terminal_observation" in expected)
    ours.close()


class Reused(VectorWrapper[Any, Any, Any, Any, Any]):
    """Hands out the array it counts in."""

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        self.count = getattr(self, "count", np.zeros(2))
        self.count += 1
        return observation, reward, terminated, truncated, {**info, "count": self.count}


def test_columns_that_are_written_to_again_are_those_of_their_step() -> None:
    ours = GymnasiumVecEnv(Reused(SyncVectorEnv(MAKERS, autoreset_mode=AutoresetMode.SAME_STEP)))
    ours.reset()
    steps = [ours.step(np.zeros(2, int))[3] for _ in range(5)]
    assert [infos[1]["count"] for infos in steps if "episode" not in infos[1]] == [1, 2, 4, 5]


class Games(VecEnvWrapper):
    """Ends a game of its own every ten steps, and says so."""

    steps = 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observation, reward, done, infos = self.venv.step_wait()
        self.steps += 1
        if self.steps % 10 == 0:
            infos[0]["episode"] = {"r": 10.0, "l": 10, "t": 0.0}
        return observation, reward, done, infos


def vector_environments() -> list[Any]:
    return [
        pytest.param(lambda: DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2), id="dummy"),
        pytest.param(lambda: GymnasiumVecEnv("Pendulum-v1", 2), id="gymnasium"),
        pytest.param(lambda: EnvPoolVecEnv("Pendulum-v1", 2), id="envpool", marks=needs_envpool),
    ]


@pytest.mark.parametrize("make", vector_environments())
def test_what_a_wrapper_writes_into_an_info_is_there_in_that_step_alone(make: Callable[[], VecEnv]) -> None:
    model = PPOX("MlpPolicy", Games(make()), n_steps=50, batch_size=50, n_epochs=1, compile=False).learn(100)
    assert [episode["r"] for episode in model.ep_info_buffer or ()] == [10.0] * 5


class Seen(BaseCallback):
    def _on_step(self) -> bool:
        self.speeds = [*getattr(self, "speeds", []), *(info["speed"] for info in self.locals["infos"])]
        return True


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`:UserWarning")
@pytest.mark.parametrize("around", [lambda env: env, VecMonitor])
def test_a_callback_over_infos_and_the_statistics_see_what_they_see_over_dummy_vec_env(around: Any) -> None:
    found = []
    for env in (VecMonitor(DummyVecEnv(MAKERS)), around(GymnasiumVecEnv(SyncVectorEnv(MAKERS)))):
        callback = Seen()
        model = PPOX("MlpPolicy", env, n_steps=12, batch_size=24, n_epochs=1, compile=False).learn(24, callback)
        episodes = [(episode["r"], episode["l"]) for episode in model.ep_info_buffer or ()]
        found.append((callback.speeds, episodes, list(model.ep_success_buffer or ())))
    assert found[0] == found[1]
    # Row 0 counts 1, 2 six times, row 1 counts 1, 2, 3 four times.
    assert np.mean(found[0][0]) == (6 * 3 + 4 * 6) / 24


@needs_envpool
def test_envpool_says_at_every_step_how_many_there_were() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 2, max_episode_steps=4)
    env.reset()
    infos = [env.step(np.array([0, 1]))[3] for _ in range(6)]
    assert [info[0]["elapsed_step"] for info in infos] == [1, 2, 3, 4, 1, 2]
    assert ["TimeLimit.truncated" in info[0] for info in infos] == [False, False, False, True, False, False]
    assert "env_id" not in infos[0][0]
