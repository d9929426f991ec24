"""Whole runs: what PPOX writes, warns about and raises by itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.monitoring.divergence import DivergedError

SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "seed": 0}


class Spoiled(gym.Env[Any, Any]):
    """One number of one step, counted from 1, is NaN."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, what: str = "", at: int = 0) -> None:
        self.what, self.at, self.steps = what, at, 0

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(3, np.float32), {}

    def step(self, _: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        spoiled = self.steps == self.at
        observation = np.full(3, 0.1, np.float32)
        if spoiled and self.what == "observation":
            observation[1] = np.nan
        return observation, float("nan") if spoiled and self.what == "reward" else 1.0, False, False, {}


def environments(what: str, at: int) -> DummyVecEnv:
    """The second of two spoils what it returns."""
    return DummyVecEnv([Spoiled, lambda: Spoiled(what, at)])


def failure(model: PPOX, steps: int, callback: BaseCallback | None = None) -> str:
    with pytest.raises(DivergedError) as caught:
        model.learn(steps, callback=callback)
    return str(caught.value)


# The rollout has 8 steps, numbered 0 - 7; an observation returned by step 4 is the one of step 5.
@pytest.mark.parametrize(
    ("what", "at", "said"),
    [
        ("reward", 12, "Rollout 2: rewards at step 3, env 1 is nan"),
        ("observation", 12, "Rollout 2: the observation given to the policy, at env 1, entry 1 is nan"),
        ("observation", 16, "Rollout 2: the observation after the last step, at env 1, entry 1 is nan"),
    ],
)
def test_a_nan_of_the_environment_is_named_and_the_last_good_model_saved(
    what: str, at: int, said: str, tmp_path: Path
) -> None:
    model = PPOX("MlpPolicy", environments(what, at), **SMALL)
    text = failure(model, 64, CheckpointCallback(10**6, str(tmp_path), name_prefix="m"))
    assert text.startswith(said) and "learning_rate=0.0003" in text and "clip_range=0.2" in text
    (saved,) = tmp_path.glob("m_last_good_*_steps.zip")
    assert str(saved) in text
    restored = PPOX.load(saved, env=environments("", 0))
    assert all(torch.isfinite(parameter).all() for parameter in restored.policy.parameters())
    assert restored._n_updates == 2  # the two epochs of the first rollout
    restored.learn(16)


def stacked(what: str, at: int) -> VecFrameStack:
    return VecFrameStack(VecNormalize(environments(what, at)), 2)


@pytest.mark.parametrize(("what", "at"), [("observation", 20), ("observation", 16), ("reward", 20)])
@pytest.mark.parametrize("wrapped", [lambda *spoiled: VecNormalize(environments(*spoiled)), stacked])
def test_the_statistics_of_the_last_good_model_lie_beside_it(what: str, at: int, wrapped: Any, tmp_path: Path) -> None:
    env = wrapped(what, at)
    model = PPOX("MlpPolicy", env, **SMALL)
    before: list[float] = []

    class Noting(CheckpointCallback):
        def _on_rollout_start(self) -> None:
            normalizing: Any = model.get_vec_normalize_env()
            before[:] = [normalizing.obs_rms.count]

    text = failure(model, 64, Noting(10**6, str(tmp_path), name_prefix="m"))
    (saved,), (statistics,) = tmp_path.glob("m_last_good_*.zip"), tmp_path.glob("m_last_good_vecnormalize_*_steps.pkl")
    assert f"saved as {saved}, and the statistics of its VecNormalize as {statistics}" in text
    restored: Any = VecNormalize.load(str(statistics), environments("", 0))
    assert all(np.isfinite(value).all() for rms in (restored.obs_rms, restored.ret_rms) for value in vars(rms).values())
    assert [restored.obs_rms.count] == before  # those the rollout began with
    again = restored if env.observation_space.shape == (3,) else VecFrameStack(restored, 2)
    PPOX.load(saved, env=again).learn(16)


def test_a_nan_loss_stops_before_the_step(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", environments("", 0), vf_coef=lambda progress: 0.5 if progress > 0.4 else np.inf, **SMALL)
    text = failure(model, 32, CheckpointCallback(10**6, str(tmp_path)))
    assert text.startswith("Rollout 2, epoch 0: loss is inf, grad_norm is ") and "vf_coef=inf" in text
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert len(list(tmp_path.glob("rl_model_last_good_32_steps.zip"))) == 1


def test_parameters_that_diverged_are_named_and_not_saved_as_good(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", environments("", 0), **SMALL)
    with torch.no_grad():
        model.policy.get_parameter("value_net.bias")[0] = torch.nan
    text = failure(model, 16, CheckpointCallback(10**6, str(tmp_path)))
    assert text.startswith("Rollout 1: values at step 0, env 0 is nan (16 of 16")
    assert list(tmp_path.glob("*.zip")) == []


def test_other_errors_of_an_environment_pass_unchanged() -> None:
    class Refusing(Spoiled):
        def step(self, _: Any) -> Any:
            raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        PPOX("MlpPolicy", Refusing(), **SMALL).learn(8)


def test_a_run_with_a_reckless_learning_rate_is_warned_once_each() -> None:
    model = PPOX("MlpPolicy", "CartPole-v1", **(SMALL | {"n_steps": 64}), learning_rate=0.3, clip_range=0.01)
    with pytest.warns(TrainingWarning) as caught:
        model.learn(64 * 6)
    texts = [str(warning.message) for warning in caught if warning.category is TrainingWarning]
    assert len([text for text in texts if "clip range" in text]) == 1


def test_a_run_describes_itself(tmp_path: Path) -> None:
    model = PPOX(
        "MlpPolicy",
        "CartPole-v1",
        **SMALL,
        learning_rate=AdaptiveKL(start=3e-4, target=0.01),
        tensorboard_log=str(tmp_path),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        model.learn(24)
        model.learn(24, reset_num_timesteps=False)
        model.learn(24)
    for run, steps in (("PPOX_1", 48), ("PPOX_2", 24)):
        events = EventAccumulator(str(tmp_path / run))
        events.Reload()
        assert "custom_scalars__config__" in events.Tags()["tensors"]
        hyperparameters = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        assert b"AdaptiveKL(start=0.0003" in hyperparameters and b"ActorCriticPolicy" in hyperparameters
        # Two files of one second are read in the order of their names, in which ".10" comes before ".9".
        assert sorted(event.step for event in events.Scalars("train/loss"))[-2:] == [steps, steps]
        assert max(event.step for event in events.Scalars("train/kl_target")) == steps
    assert "train/loss" in model.logger.name_to_value
