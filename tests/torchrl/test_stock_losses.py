"""PPOXLoss is TorchRL's own loss where that can say what is asked, gradient included; and a masked row is no row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module
from tensordict import TensorDictBase
from torch import nn
from torchrl.objectives import ClipPPOLoss, KLPENPPOLoss

from tests.environments import ACTIONS
from tests.torchrl.rollouts import collected, moved, rows_of

LOSSES = ("loss_objective", "loss_entropy", "loss_critic")


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
@pytest.mark.parametrize("action", ACTIONS)
def test_a_masked_row_is_no_row_whatever_stands_there(action: str, name: str) -> None:
    model = collected(action)
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
