"""The table of cases: every combination of spaces, policy and settings that one engine is tried on is tried on all.

Each is trained eagerly, by graphs on the CPU and by the rehearsal of the GPU's engine; those that PPO can run too are
compared with PPO as well. What applies to language models is in ``tests.language.cases`` once more.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_ppo_ext import PPOX, AdaptiveClipFraction, AdaptiveKL, Lagrangian, Proportional, Threshold
from tests.environments import Toy

Case = tuple[str, str, Any, dict[str, Any]]  # observation, action, policy, settings


def falling(progress_remaining: float) -> float:
    return 1e-3 * progress_remaining + 1e-4


def body_and_head(policy: ActorCriticPolicy) -> tuple[list[Any], list[Any]]:
    head = list(policy.value_net.parameters())
    return [p for p in policy.parameters() if all(p is not q for q in head)], head


class TwoRates(ActorCriticPolicy):
    """The value head learns ten times as fast."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        body, head = body_and_head(self)
        rate = lr_schedule(1)
        self.optimizer = torch.optim.Adam([{"params": body, "lr": rate}, {"params": head, "lr": 10 * rate}])


OF_PPO: dict[str, Case] = {
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

OF_PPOX: dict[str, Case] = {
    "clip schedule": ("vector", "discrete", "MlpPolicy", {"ent_coef": 0.01, "clip_range": "linear:0.3:0.1"}),
    "everything": (
        "double",
        "box",
        "MlpPolicy",
        {
            "batch_size": 40,  # the last minibatch of 24 rows is updated without a graph
            "clip_range_high": 0.3,
            "dual_clip": 3.0,
            "clip_range_vf": 0.2,
            "kl_coef": AdaptiveKL(0.3, 0.001, every="epoch"),
            "normalize_value": True,
            "recompute_advantage": True,
            "value_lambda": 0.5,
            "advantage_scope": "rollout",
            "target_kl": 0.02,
            "policy_kwargs": {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
        },
    ),
    "minibatch controller, two rates, gSDE": (
        "vector",
        "box",
        TwoRates,
        {"learning_rate": AdaptiveKL(1e-3, 1e-4, Threshold(2.0, 1.5), every="minibatch"), "use_sde": True},
    ),
    "stopped early, minibatch controller": (
        "vector",
        "box",
        "MlpPolicy",
        {"learning_rate": AdaptiveKL(3e-3, 2e-4, Threshold(2.0, 1.5), every="minibatch"), "target_kl": 1e-3},
    ),
    "KL bound, multiplier": (
        "vector",
        "box",
        "MlpPolicy",
        {
            "surrogate": "kl_bound",
            "kl_coef": AdaptiveKL(1.0, 1e-3, Lagrangian(0.2), every="minibatch"),
            "divergence_limit": "linear:1e-3:1e-4",
            "learning_rate": 3e-3,
        },
    ),
    "KL of mean and deviation": (
        "vector",
        "box",
        "MlpPolicy",
        {
            "kl_coef": 0.3,
            "kl_coef_std": AdaptiveKL(1.0, 1e-6, Lagrangian(0.2), every="minibatch"),
            "ent_coef": 0.1,
            "learning_rate": 3e-3,
        },
    ),
    "held back by the KL": ("dict", "box", "MultiInputPolicy", {"surrogate": "dppo_kl", "divergence_limit": 1e-4}),
    "held back by the probability": (
        "vector",
        "discrete",
        "MlpPolicy",
        {"surrogate": "dppo_binary_tv", "divergence_limit": 0.005, "learning_rate": 3e-3},
    ),
    "dict, multibinary, spo": ("dict", "multibinary", "MultiInputPolicy", {"surrogate": "spo"}),
    "image, k3": ("image", "discrete", "CnnPolicy", {"kl_coef": 0.1, "kl_estimator": "k3", "n_epochs": 1}),
    "controllers of the epoch": (
        "vector",
        "discrete",
        "MlpPolicy",
        {
            "learning_rate": AdaptiveKL(1e-3, 1e-4, every="epoch"),
            "clip_range": AdaptiveClipFraction(0.2, 0.01, Proportional(500), every="epoch"),
            "kl_estimator": "k1",
        },
    ),
    "stopped early, two moments": (
        "vector",
        "box",
        TwoRates,
        {
            "learning_rate": AdaptiveKL(3e-3, 1e-3, Threshold(2.0, 1.5), every="minibatch"),
            "kl_coef": AdaptiveKL(0.1, 1e-3, every="epoch"),
            "target_kl": 2e-3,
            "n_epochs": 6,
        },
    ),
}

CASES = {**OF_PPO, **OF_PPOX}


def environments(observation: str, action: str, count: int = 2) -> VecEnv:
    return DummyVecEnv([partial(Toy, observation, action, 10 + index) for index in range(count)])


def model_of(name: str, **more: Any) -> PPOX:
    observation, action, policy, options = CASES[name]
    settings = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "seed": 3, "device": "cpu", **options, **more}
    return PPOX(policy, environments(observation, action), **settings)


def assert_same_learning(mine: PPOX, eager: PPOX) -> None:
    """Parameters, knobs, records and counts of two trainings, up to rounding."""
    assert mine._n_updates == eager._n_updates
    assert mine.knobs.numbers() == pytest.approx(eager.knobs.numbers(), rel=1e-3)
    theirs = eager.policy.state_dict()
    for key, tensor in mine.policy.state_dict().items():
        scale = max(theirs[key].abs().max().item(), 1e-3)
        assert (tensor - theirs[key]).abs().max().item() <= 2e-4 * scale, key
    records = mine.logger.name_to_value
    for key, value in eager.logger.name_to_value.items():
        if key.startswith(("train/", "rollout/")):
            np.testing.assert_allclose(records[key], value, rtol=5e-3, atol=1e-4, err_msg=key)
    steps = [[state["step"].item() for state in model.policy.optimizer.state.values()] for model in (eager, mine)]
    assert steps[0] == steps[1]
