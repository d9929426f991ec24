"""Gymnasium's vector wrappers, and a user's, below ``GymnasiumVecEnv``: numbers of whole episodes, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import (
    DictInfoToList,
    NormalizeReward,
    RecordEpisodeStatistics,
    RescaleObservation,
    TransformObservation,
    TransformReward,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext.vec_env import GymnasiumVecEnv

MODES = list(AutoresetMode)
RESTARTING = [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


class Steps(gym.Env[Any, Any]):
    """Episodes of ``length`` steps with reward 1; the observation counts them."""

    observation_space = gym.spaces.Box(0, 10, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert not options, "the mask is for vector environments"
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, self.steps >= self.length, False, {}


def steps(mode: AutoresetMode, *lengths: int, vectorized: Any = SyncVectorEnv) -> Any:
    return vectorized([partial(Steps, length) for length in lengths], autoreset_mode=mode)


def episodes(env: Any, count: int = 12) -> list[tuple[int, float, int]]:
    """Row, return and length of each that ended; the observations after it are those of a new one."""
    env.reset()
    found = []
    for _ in range(count):
        *_, infos = env.step(np.zeros(env.num_envs, int))
        found += [
            (row, float(info["episode"]["r"]), int(info["episode"]["l"]))
            for row, info in enumerate(infos)
            if "episode" in info
        ]
    env.close()
    return found


EXPECTED = episodes(DummyVecEnv([partial(lambda length: Monitor(Steps(length)), length) for length in (2, 5)]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vectorized", [SyncVectorEnv, partial(AsyncVectorEnv, context="fork")])
@pytest.mark.parametrize(
    "wrap",
    [
        RecordEpisodeStatistics,
        lambda env: TransformReward(RecordEpisodeStatistics(env), lambda reward: reward * 3),
        lambda env: RecordEpisodeStatistics(RecordEpisodeStatistics(env, stats_key="inner")),
        lambda env: DictInfoToList(RecordEpisodeStatistics(env)),
        DictInfoToList,
    ],
)
def test_statistics_of_wrapped_environments_are_those_of_monitor(
    wrap: Any, vectorized: Any, mode: AutoresetMode
) -> None:
    assert EXPECTED[:3] == [(0, 2.0, 2), (0, 2.0, 2), (1, 5.0, 5)]
    assert episodes(GymnasiumVecEnv(wrap(steps(mode, 2, 5, vectorized=vectorized)))) == EXPECTED


class Counter(VectorWrapper[Any, Any, Any, Any, Any]):
    """Keeps a return per row, cleared where ``clears`` says, and says it in the infos."""

    def __init__(self, env: Any, clears: str) -> None:
        super().__init__(env)
        self.clears = clears
        self.table = {"returns": np.zeros(self.num_envs)}
        self.ended = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask") if self.clears == "masked rows" else None
        rows = slice(None) if mask is None else mask
        self.table["returns"][rows] = 0
        self.ended[rows] = False
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended, self.ended = self.ended, terminated | truncated
        returns = self.table["returns"] + reward
        if self.clears == "a step later":
            returns[ended] = 0
        self.table["returns"] = returns
        if self.clears == "at the end":
            self.table["returns"] = np.where(self.ended, 0, returns)
            self.ended = np.zeros(self.num_envs, bool)
        return (
            observation,
            reward,
            terminated,
            truncated,
            {**info, "total": returns.copy()},
        )


class LateClearing(Counter):
    """As Counter, without a ``reset`` of its own."""

    reset = VectorWrapper.reset


def totals(env: Any) -> list[list[float]]:
    env.reset()
    found: list[list[float]] = [[], []]
    for _ in range(11):
        for row, info in enumerate(env.step(np.zeros(2, int))[3]):
            if "episode" in info:
                found[row].append(float(info["total"]))
    return found


@pytest.mark.parametrize("mode", RESTARTING)
def test_a_wrapper_that_reads_the_mask_counts_whole_episodes(mode: AutoresetMode) -> None:
    assert totals(GymnasiumVecEnv(Counter(steps(mode, 2, 5), "masked rows"))) == [[2.0] * 5, [5.0] * 2]


@pytest.mark.parametrize("mode", MODES)
def test_a_wrapper_that_clears_what_has_ended_counts_whole_episodes(mode: AutoresetMode) -> None:
    assert totals(GymnasiumVecEnv(LateClearing(steps(mode, 2, 5), "at the end"))) == [[2.0] * 5, [5.0] * 2]


@pytest.mark.parametrize("mode", RESTARTING)
@pytest.mark.parametrize(
    ("wrap", "lengths", "name"),
    [
        (lambda env: Counter(env, "all rows"), (2, 5), "table.returns"),
        (lambda env: LateClearing(env, "a step later"), (2, 5), "ended"),
        (lambda env: LateClearing(env, "a step later"), (2,), "ended"),
        (lambda env: CommonLimit(env), (2, 5), "elapsed"),
    ],
)
def test_a_wrapper_that_would_go_on_with_wrong_numbers_is_refused(
    wrap: Any, lengths: tuple[int, ...], name: str, mode: AutoresetMode
) -> None:
    env = GymnasiumVecEnv(wrap(steps(mode, *lengths)))
    env.reset()
    with pytest.raises(ValueError, match=rf"\.{name} is wrong.*SAME_STEP.*reset_mask"):
        for _ in range(3):
            env.step(np.zeros(len(lengths), int))


class CommonLimit(VectorWrapper[Any, Any, Any, Any, Any]):
    """One clock for all environments."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.elapsed = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        self.elapsed += 1
        observation, reward, terminated, truncated, info = self.env.step(actions)
        return observation, reward, terminated, truncated | (self.elapsed >= 4), info


class Limit(VectorWrapper[Any, Any, Any, Any, Any]):
    """Cuts episodes after three steps."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = np.ones(self.num_envs, bool) if not options else options["reset_mask"]
        self.elapsed = np.where(mask, 0, getattr(self, "elapsed", 0))
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        self.elapsed = self.elapsed + 1
        return observation, reward, terminated, truncated | (self.elapsed >= 3), info


@pytest.mark.parametrize("mode", RESTARTING)
def test_a_wrapper_may_end_episodes(mode: AutoresetMode) -> None:
    found = episodes(GymnasiumVecEnv(Limit(steps(mode, 2, 5))), 6)
    assert found == [(0, 2.0, 2), (1, 3.0, 3), (0, 2.0, 2), (0, 2.0, 2), (1, 3.0, 3)]


def test_a_wrapper_that_ends_what_only_the_environment_could_restart_is_refused() -> None:
    env = GymnasiumVecEnv(Limit(steps(AutoresetMode.SAME_STEP, 3, 5)))
    env.reset()
    with pytest.raises(ValueError, match=r"without info\['final_obs'\].*DISABLED"):
        for _ in range(3):
            env.step(np.zeros(2, int))


@pytest.mark.parametrize("mode", RESTARTING)
def test_rewards_normalised_by_returns_that_every_reset_forgets_are_refused(mode: AutoresetMode) -> None:
    with pytest.raises(ValueError, match=r"NormalizeReward.*SAME_STEP.*VecNormalize"):
        GymnasiumVecEnv(NormalizeReward(steps(mode, 2, 5)))


def test_rewards_are_normalised_as_gymnasium_does_where_nothing_restarts_in_between() -> None:
    ours = GymnasiumVecEnv(NormalizeReward(steps(AutoresetMode.SAME_STEP, 2, 5)))
    theirs = NormalizeReward(steps(AutoresetMode.SAME_STEP, 2, 5))
    ours.reset(), theirs.reset()
    for _ in range(7):
        actions = np.zeros(2, int)
        np.testing.assert_allclose(ours.step(actions)[1], theirs.step(actions)[1], rtol=1e-6)


@pytest.mark.parametrize("mode", RESTARTING)
@pytest.mark.parametrize(
    "wrap", [lambda env: TransformObservation(env, lambda x: x / 10), lambda env: RescaleObservation(env, 0.0, 1.0)]
)
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")  # of the wrapper
def test_last_observations_are_transformed_as_all_are(wrap: Callable[[Any], Any], mode: AutoresetMode) -> None:
    env = GymnasiumVecEnv(wrap(steps(mode, 2, 5)))
    env.reset()
    for step in range(1, 6):
        observation, *_, infos = env.step(np.zeros(2, int))
        assert isinstance(observation, np.ndarray)
        # Steps of an episode, the first of which comes after every second step of row 0 and the fifth of row 1.
        np.testing.assert_allclose(observation[:, 0], [step % 2 / 10, step % 5 / 10], rtol=1e-6)
        for row, length in ((0, 2), (1, 5)):
            if step % length == 0:
                np.testing.assert_allclose(infos[row]["terminal_observation"], [length / 10], rtol=1e-6)


class Tenth(VectorWrapper[Any, Any, Any, Any, Any]):
    """Divides observations by ten, last ones too if ``all_of_them``."""

    def __init__(self, env: Any, all_of_them: bool) -> None:
        super().__init__(env)
        self.all_of_them = all_of_them

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation / 10, info

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if self.all_of_them and "final_obs" in info:
            info["final_obs"] = np.array([None if last is None else last / 10 for last in info["final_obs"]], object)
        return observation / 10, reward, terminated, truncated, info


def test_a_wrapper_that_forgets_the_last_observation_is_refused() -> None:
    env = GymnasiumVecEnv(Tenth(steps(AutoresetMode.SAME_STEP, 2, 5), all_of_them=False))
    env.reset()
    with pytest.raises(ValueError, match=r"not info\['final_obs'\].*DISABLED"):
        [env.step(np.zeros(2, int)) for _ in range(2)]
    for mode, all_of_them in ((AutoresetMode.SAME_STEP, True), (AutoresetMode.DISABLED, False)):
        env = GymnasiumVecEnv(Tenth(steps(mode, 2, 5), all_of_them))
        env.reset()
        infos = [env.step(np.zeros(2, int))[3] for _ in range(5)]
        assert infos[1][0]["terminal_observation"] == np.float32(0.2)
        assert infos[4][1]["terminal_observation"] == np.float32(0.5)


def test_the_environments_are_as_before_once_a_row_has_restarted() -> None:
    inner = steps(AutoresetMode.DISABLED, 2, 5)
    wrapped = RecordEpisodeStatistics(inner)
    env = GymnasiumVecEnv(wrapped)
    assert len(episodes(env, 3)) == 1
    assert env.env is wrapped and wrapped.env is inner and "reset" not in vars(inner)


def test_cart_poles_as_one_batch_take_wrappers() -> None:
    counted = GymnasiumVecEnv(RecordEpisodeStatistics(gym.make_vec("CartPole-v1", 3)), seed=0)
    plain = GymnasiumVecEnv("CartPole-v1", 3, seed=0)
    found = [episodes(env, 80) for env in (counted, plain)]
    assert found[0] == found[1] and len(found[0]) > 12
    assert make_vec_env("CartPole-v1", 1).observation_space == counted.observation_space
