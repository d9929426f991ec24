"""A rollout is collected as Stable-Baselines3 collects it: the same numbers, the same calls, the same faults."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from tests.cases import OF_PPO
from tests.environments import Toy
from tests.rollout_records import ARRAYS, assert_same, collected, environments, plain, state


@pytest.mark.parametrize("name", OF_PPO)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_rollouts_and_what_callbacks_see_are_ppo_s(name: str) -> None:
    observation, action, policy, options = OF_PPO[name]
    (ppo, theirs), (ppox, mine) = (
        collected(algorithm, environments(observation, action), policy, **options) for algorithm in (PPO, PPOX)
    )
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


def test_what_a_callback_keeps_is_not_overwritten() -> None:
    _, recorder = collected(PPOX, environments())
    for arrays, then in recorder.kept:
        assert_same(plain(arrays), then)


def test_the_buffer_s_arrays_are_new_for_every_rollout() -> None:
    model, _ = collected(PPOX, environments())
    arrays = {name: getattr(model.rollout_buffer, name) for name in ARRAYS}
    before = plain(arrays)
    model.learn(72)
    assert_same(plain(arrays), before)


class Meddler(BaseCallback):
    """Changes rewards in place, as callbacks that add an intrinsic reward do."""

    def _on_step(self) -> bool:
        self.locals["rewards"] += 0.5
        self.locals["values"] *= 2
        return True


def test_a_callback_may_change_the_step_in_place() -> None:
    states: list[Any] = []
    for algorithm in (PPO, PPOX):
        model = algorithm("MlpPolicy", environments(), n_steps=24, batch_size=18, seed=0, device="cpu")
        states.append(state(model.learn(72, callback=Meddler())))
    assert_same(*states)


class Leaving(BaseCallback):
    """Stops at a step, by ``False`` or by an exception."""

    def __init__(self, error: type[BaseException] | None) -> None:
        super().__init__()
        self.error = error

    def _on_step(self) -> bool:
        if self.n_calls == 31 and self.error is not None:
            raise self.error("stopped")
        return self.n_calls != 31


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_a_model_stopped_in_a_rollout_saves_loads_and_continues(
    error: type[BaseException] | None, tmp_path: Path
) -> None:
    states: list[Any] = []
    for algorithm in (PPO, PPOX):
        env = environments()
        model = algorithm("MlpPolicy", env, n_steps=24, batch_size=18, seed=0, device="cpu")
        if error is None:
            model.learn(10_000, callback=Leaving(None))
        else:
            with pytest.raises(error, match="stopped"):
                model.learn(10_000, callback=Leaving(error))
        assert model.num_timesteps == 31 * 3
        model.save(tmp_path / algorithm.__name__)
        torch.manual_seed(1), np.random.seed(1)
        continued = algorithm.load(tmp_path / algorithm.__name__, env=env, seed=None, force_reset=False, device="cpu")
        torch.manual_seed(2), np.random.seed(2)
        states.append(state(model.learn(72, reset_num_timesteps=False)))
        torch.manual_seed(2), np.random.seed(2)
        states.append(state(continued.learn(72, reset_num_timesteps=False)))
    assert_same(states[2], states[0])
    assert_same(states[3], states[1])


def test_with_vecnormalize_and_other_rewards() -> None:
    def wrapped() -> VecEnv:
        envs = DummyVecEnv([partial(TransformReward, Toy("vector", "box"), lambda reward: float(reward) / 3)] * 1)
        return VecNormalize(envs)

    (ppo, theirs), (ppox, mine) = (collected(algorithm, wrapped()) for algorithm in (PPO, PPOX))
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete", "multibinary"])
def test_parameters_that_are_not_finite_stop_the_rollout_where_they_stop_ppo_s(action: str, value: float) -> None:
    outcomes, generators = [], []
    for algorithm in (PPO, PPOX):
        model = algorithm("MlpPolicy", environments(action=action), n_steps=24, batch_size=18, seed=0, device="cpu")
        with torch.no_grad():
            model.policy.get_parameter("action_net.bias")[0] = value
        _, callback = model._setup_learn(72)
        message = ""
        try:
            model.collect_rollouts(model.env, callback, model.rollout_buffer, 24)  # type: ignore[arg-type]
        except ValueError as error:
            message = str(error.__cause__ or error).partition("\n")[0]
        outcomes.append((message, model.num_timesteps))
        generators.append(torch.get_rng_state())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] or torch.equal(*generators)  # neither draws after an error


def test_a_discrete_observation_and_one_environment() -> None:
    class Rooms(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Discrete(5)

    (ppo, theirs), (ppox, mine) = (collected(algorithm, DummyVecEnv([Rooms])) for algorithm in (PPO, PPOX))
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


def test_recorder_tells_two_seeds_apart() -> None:
    (_, first), (_, second) = (collected(PPOX, environments(), seed=seed) for seed in (3, 4))
    with pytest.raises(AssertionError):
        assert_same(first.calls, copy.copy(second.calls))
