"""New episodes of a run that goes on are not its first ones again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.checkpoints.environments import fresh_seed
from sb3_ppo_ext.checkpoints.settings import Checkpoints
from tests.checkpoints.environments import kinds

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "compile": False, "seed": 5}


def test_a_fresh_seed_depends_on_the_run_and_on_its_timesteps() -> None:
    seeds = [fresh_seed(seed, steps) for seed in (0, 1, -3, 17) for steps in (100, 200, 10**10)]
    assert len(set(seeds)) == len(seeds)
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    assert fresh_seed(7, 0) == 7
    assert fresh_seed(None, 100) is None


def first_observation(model: Any, env: VecEnv) -> Any:
    """What the next learn() begins with."""
    reset = env.reset
    seen: list[Any] = []

    def noted() -> Any:
        seen.append(reset())
        return seen[-1]

    env.reset = noted  # type: ignore[method-assign]  # for one call of learn()
    model.learn(16, reset_num_timesteps=False)
    return seen[0].tobytes()


def test_a_loaded_model_does_not_begin_with_the_first_episodes_of_its_run(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2)
    model = PPOX("MlpPolicy", env, **SMALL)
    at_start = first_observation(model, env)
    model.save(tmp_path / "model")
    envs = [make_vec_env("CartPole-v1", 2) for _ in range(2)]
    again = [first_observation(PPOX.load(tmp_path / "model", env), env) for env in envs]
    assert again[0] == again[1] != at_start


def test_a_model_of_plain_ppo_goes_on_as_in_plain_ppo(tmp_path: Path) -> None:
    PPO("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=16, batch_size=16, seed=5).learn(32).save(tmp_path / "m")
    envs = [make_vec_env("CartPole-v1", 2) for _ in range(2)]
    plain, extended = PPO.load(tmp_path / "m", envs[0]), PPOX.load(tmp_path / "m", envs[1], compile=False)
    assert first_observation(plain, envs[0]) == first_observation(extended, envs[1])


def test_a_run_whose_environments_cannot_be_saved_goes_on_with_other_episodes(tmp_path: Path) -> None:
    def make() -> VecEnv:
        return DummyVecEnv([kinds.GoesOnOverResets] * 2)

    env = make()
    model = PPOX("MlpPolicy", env, **SMALL)
    with pytest.warns(UserWarning, match=r"GoesOnOverResets\.numbers cannot be saved") as said:
        model.learn(96, checkpoint=Checkpoints(tmp_path, every="0s"))
    assert len(said) == 1  # at the first of three checkpoints
    with pytest.warns(UserWarning, match=r"GoesOnOverResets\.numbers cannot be saved"):
        resumed: Any = PPOX.resume(tmp_path, make(), total_timesteps=128)
    assert resumed._last_obs is None
    assert resumed.env.unwrapped._seeds[0] == fresh_seed(5, 96)
    with pytest.warns(UserWarning, match="begins new episodes"):
        resumed.learn()
    assert resumed.num_timesteps == 128
