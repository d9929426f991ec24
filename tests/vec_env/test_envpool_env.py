"""EnvPool as a VecEnv: against EnvPool stepped by hand, and against Gymnasium's dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.vec_env import EnvPoolVecEnv
from tests.environments import needs_envpool

Transition = tuple[
    Any, float, bool, bool, Any
]  # observation after it, reward, terminated, truncated, first of the next


def actions_of(space: gym.Space[Any], counts: Any) -> Any:
    """The same actions for an environment's own n-th transition, however its rows fall into steps of the pool."""
    if isinstance(space, gym.spaces.Discrete):
        return np.array([(7 * row + count * count // 3) % space.n for row, count in enumerate(counts)])
    return np.array([np.sin(0.3 * count + np.arange(space.shape[0]) + row) for row, count in enumerate(counts)])  # type: ignore[index]


def by_hand(task: str, count: int, steps: int, **config: Any) -> list[list[Transition]]:
    """Per environment, the transitions of the bare pool; its rows after an episode's end are not among them."""
    import envpool

    pool = envpool.make(task, env_type="gymnasium", num_envs=count, seed=5, **config)
    found: list[list[Transition]] = [[] for _ in range(count)]
    pool.reset()
    after_end = np.zeros(count, bool)
    for _ in range(steps):
        actions = actions_of(pool.action_space, [len(one) for one in found])
        observation, reward, terminated, truncated, _ = pool.step(actions)
        for row in range(count):
            if after_end[row]:
                found[row][-1] = (*found[row][-1][:4], observation[row].copy())
            else:
                found[row].append((observation[row].copy(), reward[row], terminated[row], truncated[row], None))
        after_end = (terminated | truncated) & ~after_end
    return found


def through_ours(task: str, count: int, steps: int, **config: Any) -> list[list[Transition]]:
    env = EnvPoolVecEnv(task, count, seed=5, **config)
    found: list[list[Transition]] = [[] for _ in range(count)]
    env.reset()
    for _ in range(steps):
        observation, reward, done, infos = env.step(actions_of(env.action_space, [len(one) for one in found]))
        assert isinstance(observation, np.ndarray) and observation.dtype == env.observation_space.dtype
        for row in range(count):
            if not done[row]:
                assert "terminal_observation" not in infos[row] and "TimeLimit.truncated" not in infos[row]
                found[row].append((observation[row], reward[row], False, False, None))
                continue
            cut = infos[row]["TimeLimit.truncated"]
            last = infos[row]["terminal_observation"]
            found[row].append((last, reward[row], not cut, cut, observation[row]))
    env.close()
    return found


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")  # of the bare pool
@pytest.mark.parametrize(
    ("task", "config", "steps"),
    [
        ("CartPole-v1", {"max_episode_steps": 13}, 150),
        ("Pendulum-v1", {"max_episode_steps": 20}, 100),
        ("Hopper-v5", {"max_episode_steps": 25}, 150),
        ("HalfCheetah-v5", {"max_episode_steps": 30}, 100),
        ("LunarLander-v3", {"max_episode_steps": 80}, 250),
        ("FrozenLake-v1", {"max_episode_steps": 8}, 60),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_transitions_are_those_of_the_bare_pool(task: str, config: dict[str, Any], steps: int, threads: int) -> None:
    ours = through_ours(task, 4, steps, threads=threads, **config)
    theirs = by_hand(task, 4, steps, **config)
    limit, ends = config["max_episode_steps"], 0
    for mine, other in zip(ours, theirs, strict=True):
        length = 0
        for (last, reward, terminated, truncated, first), expected in zip(mine, other, strict=False):
            length += 1
            np.testing.assert_array_equal(last, expected[0])
            assert reward == np.float32(expected[1])
            assert terminated + truncated == expected[2] + expected[3]
            assert terminated >= expected[2] and (length == limit or truncated == expected[3])
            if first is not None and expected[4] is not None:
                np.testing.assert_array_equal(first, expected[4])
                ends += 1
            length = 0 if first is not None else length
    assert ends > 6


@needs_envpool
def test_cart_poles_move_as_gymnasium_s_do_and_end_where_they_end() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 3, seed=0, max_episode_steps=30)
    before: Any = env.reset()
    one: Any = gym.make("CartPole-v1").unwrapped
    one.reset()
    ended = 0
    for step in range(200):
        actions = np.array([step % 2, 1, int(before[2, 2] + before[2, 3] > 0)])
        after, reward, done, infos = env.step(actions)
        for row in range(3):
            one.state = np.float64(before[row])
            one.steps_beyond_terminated = None
            expected, gain, terminated, _, _ = one.step(actions[row])
            last = infos[row]["terminal_observation"] if done[row] else after[row]  # type: ignore[index]
            np.testing.assert_allclose(last, expected, atol=1e-6)
            assert reward[row] == gain == 1.0
            assert terminated == (done[row] and not infos[row]["TimeLimit.truncated"])
            if done[row]:
                assert infos[row]["episode"]["l"] == infos[row]["episode"]["r"] <= 30
                assert infos[row]["TimeLimit.truncated"] == (not terminated)
                assert np.abs(after[row]).max() <= 0.05 and (after[row] != last).all()  # type: ignore[index]
                ended += 1
        before = after
    assert ended > 15


@needs_envpool
def test_an_end_in_the_very_last_step_is_the_task_s_own() -> None:
    # Pushed to one side all the time, a pole falls within 8 to 10 steps.
    def first_end(**config: Any) -> dict[str, Any]:
        env = EnvPoolVecEnv("CartPole-v1", 1, seed=0, **config)
        env.reset()
        while "episode" not in (infos := env.step(np.array([1]))[3])[0]:
            pass
        return infos[0]

    end = first_end()
    length = end["episode"]["l"]
    at_limit, cut = first_end(max_episode_steps=length), first_end(max_episode_steps=length - 1)
    assert [one["TimeLimit.truncated"] for one in (end, at_limit, cut)] == [False, False, True]
    assert [one["episode"]["l"] for one in (at_limit, cut)] == [length, length - 1]
    np.testing.assert_array_equal(at_limit["terminal_observation"], end["terminal_observation"])


@needs_envpool
def test_what_was_handed_out_stays_as_it_was() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 4, seed=0)
    env.reset()
    kept, copies = [], []
    for step in range(100):
        observation, *_, infos = env.step(np.full(4, step % 2))
        kept.append([observation, *(info["terminal_observation"] for info in infos if "episode" in info)])
        copies.append([np.array(one) for one in kept[-1]])
    for one, copy in zip(kept, copies, strict=True):
        for mine, other in zip(one, copy, strict=True):
            np.testing.assert_array_equal(mine, other)


@needs_envpool
def test_seeds_are_used_at_the_next_reset_as_in_every_vec_env() -> None:
    env = EnvPoolVecEnv("Pendulum-v1", 3, seed=7)
    first: Any = env.reset()
    second: Any = env.reset()
    env.seed(100)
    other: Any = env.reset()
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(env.reset(), second)
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(EnvPoolVecEnv("Pendulum-v1", 3, seed=100).reset(), other)
    assert len(np.unique(np.concatenate([first, second, other]), axis=0)) == 9
    env.seed(2**32 - 2)  # rl_zoo3 draws from this range, EnvPool counts in 31 bits
    env.reset()
    unseeded: list[Any] = [EnvPoolVecEnv("Pendulum-v1", 1).reset() for _ in range(2)]
    assert (unseeded[0] != unseeded[1]).any()


@needs_envpool
def test_training_and_evaluation(tmp_path: Path) -> None:
    def model(seed: int) -> PPOX:
        env = VecFrameStack(VecNormalize(EnvPoolVecEnv("CartPole-v1", 4)), 2)
        return PPOX("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=seed, device="cpu")

    evaluation = VecFrameStack(VecNormalize(EnvPoolVecEnv("CartPole-v1", 2), norm_reward=False), 2)
    trained = model(1).learn(256, callback=EvalCallback(evaluation, eval_freq=32, log_path=str(tmp_path), verbose=0))
    again = model(1).learn(256)
    for mine, other in zip(trained.policy.parameters(), again.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    results = np.load(tmp_path / "evaluations.npz")
    np.testing.assert_array_equal(results["results"], results["ep_lengths"])
    assert evaluation.env_is_wrapped(Monitor) == [True, True]
    rewards, lengths = evaluate_policy(trained, evaluation, 5, return_episode_rewards=True)
    assert rewards == lengths and trained.ep_info_buffer


@needs_envpool
def test_the_score_of_a_game_is_not_the_clipped_reward() -> None:
    env = EnvPoolVecEnv("MsPacman-v5", 2, seed=0, max_episode_steps=200, reward_clip=True)
    env.reset()
    clipped, points = np.zeros(2), np.zeros(2)
    infos: list[dict[str, Any]] = [{}]
    for step in range(200):
        _, reward, _, infos = env.step(np.array([step % 9, 3]))
        clipped, points = clipped + reward, points + env.step_info["reward"]
    assert [info["episode"]["r"] for info in infos] == points.tolist() and (points > clipped).all()
