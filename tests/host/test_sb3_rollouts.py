"""How Stable-Baselines3 collects and keeps rollouts is what ``host/sb3.py`` assumes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from tests.environments import Toy

BOX = spaces.Box(-1, 1, (3,))
DICTS = spaces.Dict({"a": BOX, "b": spaces.Discrete(4)})


def algorithm() -> PPO:
    return PPO("MlpPolicy", DummyVecEnv([Toy, Toy]), n_steps=4, batch_size=8, device="cpu")


def buffer(space: spaces.Space[Any] = BOX) -> Any:
    kind: Any = DictRolloutBuffer if isinstance(space, spaces.Dict) else RolloutBuffer
    return kind(4, space, BOX, device="cpu", gamma=0.9, gae_lambda=0.8, n_envs=2)


def observations(space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: observations(subspace) for key, subspace in space.spaces.items()}
    return np.stack([space.sample() for _ in range(2)])


def fill(filled: Any) -> list[Any]:
    """What each step gives to ``add``."""
    steps = []
    for step in range(filled.buffer_size):
        obs, action = observations(filled.observation_space), observations(BOX)
        numbers = torch.rand(3, 2)
        steps.append((obs, action, numbers[0].numpy(), np.array([step == 2, 0.0]), numbers[1], numbers[2]))
        filled.add(*steps[-1])
    return steps


def test_collecting_calls_policy_environment_callback_and_buffer_in_this_order() -> None:
    model = algorithm()
    calls: list[str] = []

    def logged(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return inner(*args, **kwargs)

        setattr(owner, name, call)

    class Callback(BaseCallback):
        def _on_step(self) -> bool:
            calls.append("on_step")
            return True

    _, callback = model._setup_learn(8, Callback())
    for name in ("set_training_mode", "forward", "predict_values"):
        logged(model.policy, name)
    logged(model.env, "step")
    logged(model, "_update_info_buffer")
    for name in ("reset", "add", "compute_returns_and_advantage"):
        logged(model.rollout_buffer, name)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 2)  # type: ignore[arg-type]  # it is there
    step = ["forward", "step", "on_step", "_update_info_buffer", "add"]
    assert calls == ["set_training_mode", "reset", *step, *step, "predict_values", "compute_returns_and_advantage"]
    assert {
        "obs_tensor",
        "actions",
        "clipped_actions",
        "new_obs",
        "rewards",
        "dones",
        "infos",
    } <= callback.locals.keys()


def test_counting_uses_episodes_and_the_success_of_those_that_ended() -> None:
    read: set[str] = set()

    class Info(dict[str, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

    model = algorithm()
    model._setup_learn(8)
    infos: Any = [Info(), Info(episode={"r": 1.0}), Info(is_success=True), Info(is_success=False)]
    model._update_info_buffer(infos, np.array([False, True, False, True]))
    assert list(model.ep_info_buffer or ()) == [{"r": 1.0}] and list(model.ep_success_buffer or ()) == [False]
    assert read == {"episode", "is_success"}


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(4), DICTS], ids=["box", "discrete", "dict"])
def test_adding_copies_each_argument_to_its_row(space: spaces.Space[Any]) -> None:
    filled = buffer(space)
    names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs")
    for row, arguments in enumerate(fill(filled)):
        for name, argument in zip(names, arguments, strict=True):
            arrays, rows = getattr(filled, name), argument
            for key in arrays if isinstance(arrays, dict) else [slice(None)]:
                array = arrays[key][row] if isinstance(arrays, dict) else arrays[row]
                np.testing.assert_array_equal(array.reshape(2, -1), np.asarray(rows[key]).reshape(2, -1))
    assert filled.pos == filled.buffer_size and filled.full
    assert not filled.advantages.any() and not filled.returns.any()


@pytest.mark.parametrize("space", [BOX, DICTS], ids=["box", "dict"])
def test_sampling_follows_one_permutation_of_the_rows(space: spaces.Space[Any]) -> None:
    filled = buffer(space)
    fill(filled)
    rows = filled.swap_and_flatten(filled.log_probs.copy()).flatten()
    np.random.seed(3)
    order = np.random.permutation(8)
    np.random.seed(3)
    samples = list(filled.get(3))
    assert [len(sample.returns) for sample in samples] == [3, 3, 2]
    np.testing.assert_array_equal(torch.cat([sample.old_log_prob for sample in samples]), rows[order])
    assert all(sample.actions.dtype == torch.float32 for sample in samples)


def test_estimating_is_gae_and_returns_add_the_values() -> None:
    filled = buffer()
    fill(filled)
    last, dones = torch.rand(2), np.array([True, False])
    filled.compute_returns_and_advantage(last, dones)
    values, goes_on = np.vstack([filled.values, last]), 1 - np.vstack([filled.episode_starts[1:], dones])
    deltas = filled.rewards + 0.9 * values[1:] * goes_on - values[:-1]
    for step in range(4):
        sums = sum(
            (0.9 * 0.8) ** (later - step) * np.prod(goes_on[step:later], axis=0) * deltas[later]
            for later in range(step, 4)
        )
        np.testing.assert_allclose(filled.advantages[step], sums, rtol=1e-5)
    np.testing.assert_array_equal(filled.returns, filled.advantages + filled.values)


class TwoSteps(gym.Env[Any, Any]):
    observation_space, action_space = BOX, spaces.Discrete(2)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(3, np.float32), {"reset": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.full(3, self.steps, np.float32), 1.0, False, self.steps == 2, {"nested": {"n": self.steps}}


def test_stepping_resets_what_has_ended_and_returns_copies_of_the_buffers() -> None:
    env = DummyVecEnv([TwoSteps])
    env.reset()
    first: Any = env.step(np.zeros(1))
    assert not np.shares_memory(first[0], env.buf_obs[None]) and first[3][0]["nested"] is not env.buf_infos[0]["nested"]  # type: ignore[index]
    second: Any = env.step(np.zeros(1))
    obs, rewards, dones, infos = second
    assert first[0].tolist() == [[1] * 3] and obs.tolist() == [[0] * 3] and rewards == [1] and dones == [True]
    assert infos[0]["TimeLimit.truncated"] is True and (infos[0]["terminal_observation"] == 2).all()
    assert env.reset_infos == [{"reset": True}] and not np.shares_memory(rewards, env.buf_rews)
