"""Law 1: with default knobs PPOX ends with PPO's parameters, bit for bit, and with its records."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from tests.environments import Toy


def falling(progress_remaining: float) -> float:
    return 1e-3 * progress_remaining + 1e-4


CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "box": ("vector", "box", "MlpPolicy", {}),
    "discrete": ("vector", "discrete", "MlpPolicy", {}),
    "multidiscrete": ("vector", "multidiscrete", "MlpPolicy", {}),
    "multibinary": ("vector", "multibinary", "MlpPolicy", {}),
    "float64 observations": ("double", "box", "MlpPolicy", {}),
    "dict": ("dict", "box", "MultiInputPolicy", {}),
    "image": ("image", "discrete", "CnnPolicy", {}),
    "gSDE": ("vector", "box", "MlpPolicy", {"use_sde": True, "sde_sample_freq": 4}),
    "squashed gSDE": (
        "vector",
        "box",
        "MlpPolicy",
        {"use_sde": True, "policy_kwargs": {"squash_output": True, "use_expln": True}},
    ),
    "target_kl, clip_range_vf": ("vector", "box", "MlpPolicy", {"target_kl": 1e-4, "clip_range_vf": 0.2}),
    "truncated last minibatch": ("vector", "box", "MlpPolicy", {"batch_size": 24}),
    "last minibatch of one": ("vector", "box", "MlpPolicy", {"batch_size": 21}),
    "entropy, no normalisation": ("vector", "box", "MlpPolicy", {"ent_coef": 0.01, "normalize_advantage": False}),
    "lambda schedules": (
        "vector",
        "discrete",
        "MlpPolicy",
        {"learning_rate": falling, "ent_coef": 0.01},
    ),
    "AdamW, separate networks": (
        "vector",
        "box",
        "MlpPolicy",
        {"policy_kwargs": {"optimizer_class": torch.optim.AdamW, "share_features_extractor": False}},
    ),
}


def environments(observation: str, action: str, count: int = 2) -> VecEnv:
    return DummyVecEnv([partial(Toy, observation, action, 10 + index) for index in range(count)])


def trained(algorithm: type[PPO], name: str, env: VecEnv | None = None) -> PPO:
    observation, action, policy, options = CASES[name]
    settings = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "seed": 3, "device": "cpu", **options}
    model = algorithm(policy, env or environments(observation, action), **settings)
    return model.learn(4 * 64)


def assert_same(one: PPO, other: PPO) -> None:
    mine, theirs = one.policy.state_dict(), other.policy.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("name", CASES)
def test_default_knobs_are_ppo_bit_for_bit(name: str) -> None:
    ppo, ppox = trained(PPO, name), trained(PPOX, name)
    assert_same(ppo, ppox)
    assert ppo._n_updates == ppox._n_updates
    records = ppo.logger.name_to_value
    assert {key for key in records if key.startswith("train/")} <= set(ppox.logger.name_to_value)
    for key, value in records.items():
        np.testing.assert_allclose(ppox.logger.name_to_value[key], value, rtol=1e-6, atol=1e-7, err_msg=key)


def test_with_vecnormalize() -> None:
    ppo, ppox = (trained(algorithm, "box", VecNormalize(environments("vector", "box"))) for algorithm in (PPO, PPOX))
    assert_same(ppo, ppox)


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
    assert_same(ppo, ppox)


class Doubling(RolloutBuffer):
    """A buffer that draws its minibatches its own way."""

    def get(self, batch_size: int | None = None) -> Any:
        for sample in super().get(batch_size):
            yield sample._replace(advantages=2 * sample.advantages)


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
    assert_same(*models)


def test_a_compiled_policy_trains_as_on_ppo() -> None:
    models = []
    for algorithm in (PPO, PPOX):
        model = algorithm("MlpPolicy", environments("vector", "discrete"), n_steps=32, n_epochs=2, seed=0)
        model.policy = torch.compile(model.policy, backend="eager")  # type: ignore[assignment]
        models.append(model.learn(128))
    assert_same(*(model for model in models))


def test_spaces_cover_what_ppo_supports() -> None:
    actions = {type(environments("vector", action).action_space) for action in ("box", "discrete", "multidiscrete")}
    assert actions == {spaces.Box, spaces.Discrete, spaces.MultiDiscrete}
