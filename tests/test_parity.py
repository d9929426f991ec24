"""Law 1: with default knobs PPOX ends with PPO's parameters, bit for bit, and with its records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from tests.cases import OF_PPO, environments
from tests.rollout_buffers import Doubling
from tests.small_models import assert_same_parameters


def trained(algorithm: type[PPO], name: str, env: VecEnv | None = None) -> PPO:
    observation, action, policy, options = OF_PPO[name]
    settings = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "seed": 3, "device": "cpu", **options}
    model = algorithm(policy, env or environments(observation, action), **settings)
    return model.learn(4 * 64)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("name", OF_PPO)
def test_default_knobs_are_ppo_bit_for_bit(name: str) -> None:
    ppo, ppox = trained(PPO, name), trained(PPOX, name)
    assert_same_parameters(ppo, ppox)
    assert ppo._n_updates == ppox._n_updates
    records = ppo.logger.name_to_value
    assert {key for key in records if key.startswith("train/")} <= set(ppox.logger.name_to_value)
    for key, value in records.items():
        # 1 minus a ratio near 1 of float32 sums, which are taken in another order: rounding is that of the ratio.
        atol = 2e-6 if key == "train/explained_variance" else 1e-7
        np.testing.assert_allclose(ppox.logger.name_to_value[key], value, rtol=1e-6, atol=atol, err_msg=key)


def test_with_vecnormalize() -> None:
    ppo, ppox = (trained(algorithm, "box", VecNormalize(environments("vector", "box"))) for algorithm in (PPO, PPOX))
    assert_same_parameters(ppo, ppox)


class Locals(BaseCallback):
    """Notes the names callbacks see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def _on_step(self) -> bool:
        self.seen |= set(self.locals)
        return True


def test_callbacks_see_the_same_locals() -> None:
    seen = []
    for algorithm in (PPO, PPOX):
        callback = Locals()
        algorithm("MlpPolicy", environments("vector", "box"), n_steps=32).learn(64, callback=callback)
        seen.append(callback.seen)
    assert seen[0] <= seen[1]


def test_endless_training_runs_to_its_callback_as_ppos_does() -> None:
    settings: dict[str, Any] = {"n_steps": 64, "seed": 0, "device": "cpu", "learning_rate": 1e-3}
    endless: Any = float("inf")
    ppo = PPO("MlpPolicy", "CartPole-v1", **settings).learn(endless, callback=StopTrainingOnMaxEpisodes(5))
    ppox = PPOX("MlpPolicy", "CartPole-v1", compile=False, **settings)
    ppox.learn(endless, callback=StopTrainingOnMaxEpisodes(5))
    assert ppo.num_timesteps == ppox.num_timesteps > 64
    assert ppo._current_progress_remaining == ppox._current_progress_remaining == 1.0
    assert_same_parameters(ppo, ppox)


class ClippedValues(ActorCriticPolicy):
    """A policy with its own evaluate_actions."""

    def evaluate_actions(self, obs: Any, actions: torch.Tensor) -> Any:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values.clamp(-1, 1), log_prob, entropy


@pytest.mark.parametrize(
    ("policy", "options"), [("MlpPolicy", {"rollout_buffer_class": Doubling}), (ClippedValues, {})]
)
def test_custom_buffers_and_policies_are_used_as_ppo_uses_them(policy: Any, options: dict[str, Any]) -> None:
    models = [
        algorithm(policy, environments("vector", "box"), n_steps=32, n_epochs=2, seed=0, **options).learn(128)
        for algorithm in (PPO, PPOX)
    ]
    assert_same_parameters(*models)


def test_a_compiled_policy_trains_as_on_ppo() -> None:
    models = []
    for algorithm in (PPO, PPOX):
        model = algorithm("MlpPolicy", environments("vector", "discrete"), n_steps=32, n_epochs=2, seed=0)
        model.policy = torch.compile(model.policy, backend="eager")  # type: ignore[assignment]
        models.append(model.learn(128))
    assert_same_parameters(*(model for model in models))


def test_spaces_cover_what_ppo_supports() -> None:
    actions = {type(environments("vector", action).action_space) for action in ("box", "discrete", "multidiscrete")}
    assert actions == {spaces.Box, spaces.Discrete, spaces.MultiDiscrete}
