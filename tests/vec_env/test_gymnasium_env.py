"""Gymnasium's vector environments against ``DummyVecEnv`` on the same dynamics, step for step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.environments import Walk, sync, walk

MODES = list(AutoresetMode)


def assert_same_observation(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same_observation(ours[key], theirs[key])
    else:
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


def assert_same_step(ours: Any, theirs: Any) -> int:
    """Two results of ``VecEnv.step``, but for the seconds in the statistics; returns how many episodes ended."""
    assert_same_observation(ours[0], theirs[0])
    for mine, other in zip(ours[1:3], theirs[1:3], strict=True):
        np.testing.assert_array_equal(mine, other)
        assert mine.dtype == other.dtype
    for done, mine, other in zip(theirs[2], ours[3], theirs[3], strict=True):
        if not done:
            assert mine == {key: other[key] for key in other if key != "TimeLimit.truncated"}
            continue
        assert mine.keys() == other.keys()
        assert {k: mine[k] for k in mine if k not in ("episode", "terminal_observation")} == {
            k: other[k] for k in other if k not in ("episode", "terminal_observation")
        }
        assert_same_observation(mine["terminal_observation"], other["terminal_observation"])
        assert (mine["episode"]["r"], mine["episode"]["l"]) == (other["episode"]["r"], other["episode"]["l"])
    return int(theirs[2].sum())


def compare(ours: VecEnv, theirs: VecEnv, steps: int) -> None:
    generator = np.random.default_rng(0)
    ours.seed(11)
    theirs.seed(11)
    assert_same_observation(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    ended = 0
    kept = []
    for _ in range(steps):
        actions = generator.integers(0, 3, ours.num_envs)
        mine, other = ours.step(actions), theirs.step(actions)
        ended += assert_same_step(mine, other)
        kept.append((mine, other))
        assert ours.reset_infos == theirs.reset_infos
    assert ended > steps / 10
    for mine, other in kept:  # no buffer was used again
        assert_same_step(mine, other)
    ours.close()


@pytest.mark.parametrize("kind", ["double", "float", "dict"])
@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_is_dummy_vec_env(mode: AutoresetMode, kind: str) -> None:
    theirs = DummyVecEnv([lambda: Monitor(walk(kind))] * 4)
    compare(GymnasiumVecEnv(sync(4, mode, kind)), theirs, 60)


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_environment_that_does_not_copy_is_dummy_vec_env(mode: AutoresetMode) -> None:
    compare(GymnasiumVecEnv(sync(3, mode, copy=False)), DummyVecEnv([lambda: Monitor(walk())] * 3), 40)


@pytest.mark.parametrize("mode", MODES)
def test_environments_in_processes_are_dummy_vec_env(mode: AutoresetMode) -> None:
    ours = GymnasiumVecEnv(AsyncVectorEnv([walk, walk], autoreset_mode=mode, context="fork"))
    compare(ours, DummyVecEnv([lambda: Monitor(walk())] * 2), 25)


def test_an_id_gives_the_environments_of_make_vec() -> None:
    ours = GymnasiumVecEnv("Pendulum-v1", 3, vectorization_mode="sync", max_episode_steps=5)
    theirs = make_vec_env("Pendulum-v1", 3, env_kwargs={"max_episode_steps": 5})
    ours.seed(1)
    theirs.seed(1)
    assert_same_observation(ours.reset(), theirs.reset())
    for step in range(11):
        actions = np.full((3, 1), np.sin(step), np.float32)
        assert_same_step(ours.step(actions), theirs.step(actions))


def test_an_environment_that_overwrites_its_buffer_keeps_its_last_observation() -> None:
    entry: Any = lambda: Walk("reused")  # noqa: E731
    gym.register("Reused-v0", entry, max_episode_steps=9, disable_env_checker=True)
    try:
        ours = GymnasiumVecEnv("Reused-v0", 2, seed=0)
    finally:
        del gym.registry["Reused-v0"]
    ours.reset()
    for _ in range(30):
        observation, reward, done, infos = ours.step(np.array([1, 1]))
        assert isinstance(observation, np.ndarray)
        for row in np.flatnonzero(done):
            last = infos[row]["terminal_observation"]
            np.testing.assert_allclose(last.sum() / 3, reward[row], rtol=1e-6)  # the reward is made of it
            assert observation[row, 0] == np.float32(ours.reset_infos[row]["start"])


def balance(observation: Any, generator: np.random.Generator) -> Any:
    """Keeps most poles up, so that both ways of ending occur; two rows act at random."""
    actions = (observation[:, 2] + observation[:, 3] > 0).astype(np.int64)
    actions[:2] = generator.integers(0, 2, 2)
    return actions


def test_cart_poles_as_one_batch_are_cart_poles_one_by_one() -> None:
    ours = GymnasiumVecEnv("CartPole-v1", 5, seed=3, max_episode_steps=40)
    theirs = make_vec_env("CartPole-v1", 5, env_kwargs={"max_episode_steps": 40})
    cart_poles: Any = ours.env
    generator = np.random.default_rng(0)
    observation, _ = ours.reset(), theirs.reset()
    restarted = np.arange(5)
    truncated = terminated = 0
    for _ in range(400):
        assert isinstance(theirs, DummyVecEnv)
        for row in restarted:
            one: Any = theirs.envs[row].unwrapped
            one.state = cart_poles.state[:, row]
            assert np.abs(cart_poles.state[:, row]).max() <= 0.05
        actions = balance(observation, generator)
        mine, other = ours.step(actions), theirs.step(actions)
        restarted = np.flatnonzero(other[2])
        other[0][restarted] = cart_poles.state[:, restarted].T  # type: ignore[index]  # their own new state is replaced
        assert_same_step(mine, other)
        observation = mine[0]
        for row in restarted:
            truncated += mine[3][row]["TimeLimit.truncated"]
            terminated += not mine[3][row]["TimeLimit.truncated"]
    assert truncated > 20 and terminated > 20


def test_cart_poles_restart_as_their_own_next_step_would() -> None:
    # Alone, so that the generator is asked in the same order: NEXT_STEP draws one step later, in a row of its own.
    ours = GymnasiumVecEnv("CartPole-v1", 1, seed=5)
    plain = gym.make_vec("CartPole-v1", 1)
    first, _ = plain.reset(seed=5)
    np.testing.assert_array_equal(ours.reset(), first)
    ended = False
    for _ in range(60):
        observation, _, done, infos = ours.step(np.array([1]))
        expected, _, ended, _, _ = plain.step(np.array([1]))
        assert done == ended
        if done:
            np.testing.assert_array_equal(infos[0]["terminal_observation"], expected[0])
            expected, *_ = plain.step(np.array([1]))
        np.testing.assert_array_equal(observation, expected)


def test_infos_are_distinct_and_what_was_handed_out_stays_as_it_was() -> None:
    ours = GymnasiumVecEnv(sync(3, AutoresetMode.DISABLED), seed=0)
    ours.reset()
    steps = [ours.step(np.array([0, 1, 2])) for _ in range(30)]
    assert all(len({id(info) for info in infos}) == 3 for *_, infos in steps)
    for observation, _, done, infos in steps:
        assert ["episode" in info for info in infos] == done.tolist()
        assert isinstance(observation, np.ndarray)
        for row in np.flatnonzero(done):
            assert infos[row]["place"] == infos[row]["terminal_observation"][0] != observation[row, 0]


def test_statistics_an_environment_keeps_itself_stand() -> None:
    # As in make_vec_env: the score is the task's, whatever wrappers above Monitor make of the reward.
    halved = [lambda: gym.wrappers.TransformReward(Monitor(walk()), lambda reward: float(reward) / 2)] * 2
    ours = GymnasiumVecEnv(SyncVectorEnv(halved, autoreset_mode=AutoresetMode.SAME_STEP), seed=0)
    ours.reset()
    total = np.zeros(2)
    for _ in range(12):
        _, reward, done, infos = ours.step(np.array([0, 2]))
        total += reward
        for row in np.flatnonzero(done):
            assert infos[row]["episode"]["r"] == pytest.approx(2 * total[row], abs=1e-5)
            total[row] = 0


@pytest.mark.parametrize("algorithm", [PPO, PPOX])
def test_training_is_that_on_dummy_vec_env_to_the_last_bit(algorithm: type[PPO]) -> None:
    def trained(env: VecEnv) -> dict[str, torch.Tensor]:
        model = algorithm("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=4, device="cpu")
        return model.learn(256).policy.state_dict()

    def normalized(env: VecEnv) -> VecEnv:
        return VecFrameStack(VecNormalize(env), 2)

    ours = trained(normalized(GymnasiumVecEnv(sync(4, AutoresetMode.DISABLED))))
    theirs = trained(normalized(DummyVecEnv([lambda: Monitor(walk())] * 4)))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_evaluation_sees_whole_episodes(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", GymnasiumVecEnv("CartPole-v1", 2), n_steps=32, batch_size=32, n_epochs=1, seed=0)
    callback = EvalCallback(GymnasiumVecEnv("CartPole-v1", 2), eval_freq=32, log_path=str(tmp_path), verbose=0)
    model.learn(128, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")
    np.testing.assert_array_equal(results["results"], results["ep_lengths"])  # CartPole gives 1 per step
    rewards, lengths = evaluate_policy(model, GymnasiumVecEnv("CartPole-v1", 3), 5, return_episode_rewards=True)
    assert rewards == lengths and len(model.ep_info_buffer or ()) > 2
