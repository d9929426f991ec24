"""One objective, two frameworks: PPO, PPOX and a TorchRL loop with PPOXLoss end with the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss
from stable_baselines3 import PPO
from torch import nn

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.objective.losses import normalized
from sb3_ppo_ext.policies.popart import PopArtLinear
from tests.environments import ACTIONS
from tests.torchrl.rollouts import collected, moved, rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch size"),
    pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning"),  # the steps here are large
]

LOSSES = ("loss_objective", "loss_entropy", "loss_critic")


def train_in_torchrl(model: PPOX, **overrides: Any) -> None:
    """What a TorchRL user writes, over the model's own policy and optimizer."""
    rows = rows_of(model)
    if model.advantage_scope == "rollout":
        rows["advantage"] = normalized(rows["advantage"])
    if model.normalize_value:
        head = model.policy.value_net
        assert isinstance(head, PopArtLinear)
        head.update(rows["value_target"].flatten())
    loss = PPOXLoss.from_ppox(model, **overrides)
    for _ in range(model.n_epochs):
        for chosen in torch.split(torch.from_numpy(np.random.permutation(len(rows))), model.batch_size):
            model.policy.optimizer.zero_grad()
            losses = loss(rows[chosen])
            sum(losses[name] for name in LOSSES if name in losses.keys()).backward()  # noqa: SIM118
            nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
            model.policy.optimizer.step()


def distance(one: PPO, other: PPO) -> float:
    """The largest difference of a parameter."""
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)


def as_ppo(model: PPOX) -> None:
    np.random.seed(5)
    PPO.train(model)


def as_ppox(model: PPOX) -> None:
    np.random.seed(5)
    model.train()


def as_torchrl(model: PPOX, **overrides: Any) -> None:
    np.random.seed(5)
    train_in_torchrl(model, **overrides)


BOTH: dict[str, dict[str, Any]] = {
    "default": {},
    "entropy, no normalisation": {"ent_coef": 0.01, "normalize_advantage": False},
    "value clip, weight": {"clip_range_vf": 0.1, "vf_coef": 0.3},
    "other clip": {"clip_range": 0.07},
}
PPOX_ONLY: dict[str, dict[str, Any]] = {
    "asymmetric": {"clip_range": 0.03, "clip_range_high": 0.1},
    "dual clip": {"clip_range": 0.03, "dual_clip": 1.2},
    "spo": {"surrogate": "spo", "clip_range": 0.1},
    "held back by the KL": {"surrogate": "dppo_kl", "divergence_limit": 1e-4},
    "KL bound": {"surrogate": "kl_bound", "kl_coef": 2.0, "divergence_limit": 1e-4},
    "penalty": {"surrogate": "none", "kl_coef": 0.8},
    "clip and penalty": {"kl_coef": 3.0, "clip_range": 0.05},
    "k1": {"kl_coef": 0.5, "kl_estimator": "k1"},
    "k2": {"kl_coef": 0.5, "kl_estimator": "k2"},
    "k3": {"kl_coef": 0.5, "kl_estimator": "k3"},
    "larger value error": {"clip_range_vf": 0.05, "value_clip": "max"},
    "over the rollout": {"advantage_scope": "rollout"},
    "value units": {"normalize_value": True, "clip_range_vf": 0.5},
}
TRAINING: dict[str, Any] = {"n_epochs": 3, "batch_size": 12, "learning_rate": 3e-3}  # 32 rows: the last one smaller


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("action", ACTIONS)
def test_ppo_ppox_and_the_torchrl_loop_agree_to_the_bit(action: str, name: str) -> None:
    ppo, ppox, torchrl = (collected(action, **TRAINING, **BOTH[name]) for _ in range(3))
    start = collected(action, **TRAINING)
    as_ppo(ppo)
    as_ppox(ppox)
    as_torchrl(torchrl)
    assert distance(ppo, start) > 1e-3
    assert distance(ppo, ppox) == 0
    assert distance(ppox, torchrl) == 0


@pytest.mark.parametrize(("action", "observation"), [("box", "dict"), ("multidiscrete", "image"), ("box", "double")])
def test_so_they_do_on_other_observations(action: str, observation: str) -> None:
    ppox, torchrl = (collected(action, observation, **TRAINING) for _ in range(2))
    as_ppox(ppox)
    as_torchrl(torchrl)
    # Shared features are computed once by SB3 and once by each module here: gradients are summed in another order.
    assert distance(ppox, torchrl) <= (2e-6 if observation != "double" else 0)


@pytest.mark.parametrize("name", PPOX_ONLY)
@pytest.mark.parametrize("action", ACTIONS)
def test_ppox_and_the_torchrl_loop_agree_on_every_knob(action: str, name: str) -> None:
    plain, ppox, torchrl = (collected(action, **TRAINING, **options) for options in ({}, *2 * [PPOX_ONLY[name]]))
    for model in (plain, ppox):
        as_ppox(model)
    as_torchrl(torchrl)
    assert distance(plain, ppox) > 1e-5  # the knob does something here
    assert distance(ppox, torchrl) <= 1e-6


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_ppox_and_the_torchrl_loop_weigh_the_deviation_alike(weight: float) -> None:
    settings = {**TRAINING, "kl_coef": 1.0, "ent_coef": 0.05}
    whole, ppox, torchrl = (collected("box", **settings, kl_coef_std=coef) for coef in (None, weight, weight))
    for model in (whole, ppox):
        as_ppox(model)
    as_torchrl(torchrl)
    assert distance(whole, ppox) > 1e-5
    assert distance(ppox, torchrl) <= 1e-6


def test_so_it_is_functional() -> None:
    ppox, torchrl = (collected("box", **TRAINING) for _ in range(2))
    as_ppox(ppox)
    as_torchrl(torchrl, functional=True)
    assert distance(ppox, torchrl) == 0


@pytest.mark.parametrize("action", ACTIONS)
def test_the_terms_are_those_that_ppo_logs(action: str) -> None:
    model = collected(action, n_epochs=1, ent_coef=0.02, vf_coef=0.3)
    moved(model)
    np.random.seed(5)
    order = np.random.permutation(32)  # sums depend on it
    with torch.no_grad():
        losses = PPOXLoss.from_ppox(model)(rows_of(model)[order])
    as_ppo(model)
    logged = model.logger.name_to_value
    for name, expected in (
        ("loss_objective", logged["train/policy_gradient_loss"]),
        ("loss_critic", 0.3 * logged["train/value_loss"]),
        ("loss_entropy", 0.02 * logged["train/entropy_loss"]),
        ("kl_approx", logged["train/approx_kl"]),
        ("clip_fraction", logged["train/clip_fraction"]),
    ):
        assert float(losses[name]) == pytest.approx(expected, rel=2e-6, abs=1e-7), name
    assert sum(float(losses[name]) for name in LOSSES) == pytest.approx(logged["train/loss"], rel=1e-6)
