"""One objective, two frameworks: PPO, PPOX and a TorchRL loop with PPOXLoss end with the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module
from stable_baselines3 import PPO
from tensordict import TensorDictBase
from torch import nn
from torchrl.objectives import ClipPPOLoss, KLPENPPOLoss

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.objective import normalized
from sb3_ppo_ext.value_norm import PopArtLinear
from tests.environments import ACTIONS
from tests.torchrl.rollouts import collected, moved, rollout_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch size"),
    pytest.mark.filterwarnings("ignore::sb3_ppo_ext.diagnostics.TrainingWarning"),  # the steps here are large
]

LOSSES = ("loss_objective", "loss_entropy", "loss_critic")


def rows_of(model: PPOX) -> TensorDictBase:
    """The rollout as Stable-Baselines3 flattens it: environment after environment."""
    return rollout_of(model).transpose(0, 1).flatten(0, 1)


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


def gradients(loss: nn.Module, rows: TensorDictBase) -> tuple[TensorDictBase, list[torch.Tensor]]:
    losses = loss(rows)
    parameters = list(dict.fromkeys(loss.parameters()))
    total = sum(losses[name].sum() for name in LOSSES if name in losses.keys())  # noqa: SIM118
    return losses, list(torch.autograd.grad(total, parameters, materialize_grads=True, allow_unused=True))


STOCK: dict[str, dict[str, Any]] = {
    "default": {},
    "asymmetric": {"clip_epsilon": (0.05, 0.3)},
    "value clip": {"clip_value": True},
    "l1, weights": {"loss_critic_type": "l1", "critic_coeff": 0.3, "entropy_coeff": 0.2},
    "l2, normalised": {"loss_critic_type": "l2", "normalize_advantage": True},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none", "clip_value": 0.1},
    "no entropy": {"entropy_bonus": False},
    "separate": {"separate_losses": True},
    "capped": {"max_importance_ratio": 1.05},
    "no critic loss": {"critic_coeff": 0.0, "log_explained_variance": False},
}


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("name", STOCK)
def test_it_is_torchrls_clip_loss_where_that_can_say_it(name: str, functional: bool) -> None:
    model = collected("box", "image") if name == "separate" else collected("discrete")
    rows = rows_of(model)
    moved(model, 0.02)
    parts = actor_module(model.policy), critic_module(model.policy)
    (mine, my_grads), (theirs, their_grads) = (
        gradients(cls(*parts, functional=functional, **STOCK[name]), rows) for cls in (PPOXLoss, ClipPPOLoss)
    )
    assert set(mine.keys()) == set(theirs.keys())
    for key in set(theirs.keys()) - {"kl_approx"}:  # k3 here, k1 there
        torch.testing.assert_close(mine[key].flatten(), theirs[key].flatten(), rtol=1e-6, atol=1e-6, msg=key)
    for one, other in zip(my_grads, their_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("action", ["box", "discrete", "multibinary"])
def test_it_is_torchrls_penalty_loss_where_that_can_say_it(action: str) -> None:
    model = collected(action)
    rows = rows_of(model)
    moved(model)
    parts = actor_module(model.policy), critic_module(model.policy)
    mine, my_grads = gradients(PPOXLoss(*parts, surrogate="none", kl_coef=0.7), rows)
    # At its target it leaves beta alone. Elsewhere it moves beta in place before the backward pass, which then takes
    # the new one: a gradient that is not its loss's.
    theirs, their_grads = gradients(KLPENPPOLoss(*parts, beta=0.7, dtarg=float(mine["kl"])), rows)
    assert mine["kl"] > 0.005
    for key in ("loss_objective", "loss_critic", "loss_entropy", "kl", "entropy"):
        torch.testing.assert_close(mine[key], theirs[key].mean(), msg=key)
    for one, other in zip(my_grads, their_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_it_is_the_decoupled_loss_with_a_delayed_actor() -> None:
    model = collected("discrete")
    rows = rows_of(model)
    parts = actor_module(model.policy), critic_module(model.policy)
    mine, theirs = (cls(*parts, delay_actor=True, clip_epsilon=0.05) for cls in (PPOXLoss, ClipPPOLoss))
    for loss in (mine, theirs):  # behaviour, proximal and current policy all differ
        loss._has_update_associated = dict.fromkeys(loss._has_update_associated, True)
        torch.manual_seed(0)
        for parameter in loss.target_actor_network_params.values(True, True):
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    moved(model)
    (one, my_grads), (other, their_grads) = gradients(mine, rows), gradients(theirs, rows)
    for key in ("loss_objective", "clip_fraction", "ESS", "max_ratio", "mean_ratio"):
        torch.testing.assert_close(one[key], other[key], rtol=1e-6, atol=1e-6, msg=key)
    for mine_grad, their_grad in zip(my_grads, their_grads, strict=True):
        torch.testing.assert_close(mine_grad, their_grad, rtol=1e-5, atol=1e-7)


MASKED: dict[str, dict[str, Any]] = {
    "clip": {"clip_value": 0.1, "normalize_advantage": True},
    "dual": {"dual_clip": 1.1, "clip_epsilon": (0.05, 0.2)},
    "spo": {"surrogate": "spo", "clip_value": 0.1, "value_clip": "sb3"},
    "penalty": {"surrogate": "none", "kl_coef": 0.7},
    "k1": {"kl_coef": 0.7, "kl_estimator": "k1"},
    "k2": {"kl_coef": 0.7, "kl_estimator": "k2", "reduction": "sum"},
    "reference": {"ref_kl_coef": 0.7, "kl_estimator": "k3", "kl_coef": 0.1},
}


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_row_is_no_row_whatever_stands_there(name: str) -> None:
    model = collected("box")
    rows = rows_of(model)
    moved(model)
    rows["ref_log_prob"] = rows["action_log_prob"] + 0.1 * torch.randn(32)
    keep = torch.arange(32) % 3 != 1
    loss = PPOXLoss(actor_module(model.policy), critic_module(model.policy), functional=False, **MASKED[name])
    expected, expected_grads = gradients(loss, rows[keep])
    padded = rows.clone()
    for key in ("advantage", "value_target", "state_value", "action_log_prob", "ref_log_prob"):
        padded[key][~keep] = float("nan")
    padded["mask"] = keep
    loss.loss_mask_key = "mask"
    losses, grads = gradients(loss, padded)
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-6, msg=key)
    for one, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
