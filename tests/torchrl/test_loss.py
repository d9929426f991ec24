"""PPOXLoss as a loss of TorchRL: everything ClipPPOLoss is used for works, and what is wrong is said."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module
from tensordict import TensorDictBase
from tensordict.nn import (
    TensorDictModule,
)
from torchrl.objectives import ClipPPOLoss, ValueEstimators

from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from tests.torchrl.rollouts import collected, moved, rollout_of


def batch_and_parts(action: str = "box") -> tuple[TensorDictBase, Any, Any]:
    model = collected(action)
    batch = rollout_of(model)
    moved(model)
    return batch, actor_module(model.policy), critic_module(model.policy)


def loss_of(**arguments: Any) -> PPOXLoss:
    _, actor, critic = batch_and_parts()
    return PPOXLoss(actor, critic, **arguments)


def test_every_argument_of_the_clip_loss_is_taken_with_its_default() -> None:
    mine, theirs = (inspect.signature(cls.__init__).parameters for cls in (PPOXLoss, ClipPPOLoss))
    for name, parameter in theirs.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert mine[name].default == parameter.default, name
    assert {"functional", "actor", "critic", "log_explained_variance"} <= set(mine)
    assert {"surrogate", "dual_clip", "kl_coef", "kl_estimator", "ref_kl_coef", "value_clip"} <= set(mine)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"clip_epsilom": 0.1}, TypeError, "no argument 'clip_epsilom'; did you mean 'clip_epsilon'"),
        ({"lmbda": 0.9}, TypeError, "no argument 'lmbda'"),
        ({"clip_value": "0.2"}, ValueError, "clip_value='0.2': a number is needed"),
        ({"gamma": 0.9}, TypeError, "make_value_estimator"),
        ({"clip_epsilon": -0.1}, ValueError, "clip_epsilon=-0.1: a number of at least 0"),
        ({"clip_epsilon": "wide"}, TypeError, "clip_epsilon='wide': a number is needed"),
        ({"clip_epsilon": float("nan")}, ValueError, "clip_epsilon=nan: a finite number"),
        ({"clip_epsilon": (0.1,)}, ValueError, "length 2"),
        ({"clip_epsilon": (-0.1, 0.2)}, ValueError, "non-negative"),
        ({"clip_epsilon": (1.5, 0.2)}, ValueError, "must be < 1"),
        ({"clip_epsilon": (0.1, 0.2), "clip_value": True}, ValueError, "clip_value=True"),
        ({"clip_epsilon": (0.1, 0.2), "surrogate": "spo"}, ValueError, "has an upper clip of its own.*one number"),
        ({"surrogate": "sbo"}, ValueError, "surrogate='sbo': one of 'clip', 'spo', 'none'"),
        ({"kl_estimator": "k4"}, ValueError, "kl_estimator='k4': one of"),
        ({"value_clip": "mean"}, ValueError, "value_clip='mean': one of"),
        ({"dual_clip": 0.5}, ValueError, "dual_clip=0.5: a number above 1"),
        ({"dual_clip": 3, "surrogate": "none"}, ValueError, 'with surrogate="clip"'),
        ({"reduction": "median"}, ValueError, "reduction='median': one of 'mean'"),
        ({"loss_critic_type": "l3"}, ValueError, "loss_critic_type='l3': one of 'l2'"),
        ({"kl_coef": float("inf")}, ValueError, "kl_coef=inf: a finite number"),
    ],
)
def test_a_wrong_argument_raises(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        loss_of(**arguments)


def test_a_critic_that_cannot_learn_is_warned_of_and_none_is_needed_with_its_weight_at_0() -> None:
    batch, actor, _ = batch_and_parts()
    constant = TensorDictModule(lambda x: x[..., :1], in_keys=["observation"], out_keys=["state_value"])
    with pytest.warns(TrainingWarning, match=r"no parameters to train.*critic_coeff=0"):
        loss = PPOXLoss(actor, constant)
    torch.testing.assert_close(loss(batch)["loss_critic"], ClipPPOLoss(actor, constant)(batch)["loss_critic"])
    with pytest.raises(TypeError, match="actor_network or critic_network"):
        PPOXLoss(actor, critic_coeff=1.0)
    losses = PPOXLoss(actor, critic_coeff=0.0)(batch)
    assert "loss_critic" not in losses and losses["loss_objective"].requires_grad


def test_integers_become_floats_and_numpy_numbers_can_be_assigned() -> None:
    loss = loss_of(clip_epsilon=1, entropy_coeff=1, critic_coeff=2, clip_value=1, kl_coef=1)
    for name in ("clip_epsilon", "entropy_coeff", "critic_coeff", "clip_value", "kl_coef"):
        for value in (0.3, np.float32(0.25), 1):
            setattr(loss, name, value)
            buffer = getattr(loss, name)
            assert buffer.dtype == torch.float32 and float(buffer) == pytest.approx(float(value))
    with pytest.raises(AttributeError, match=r"build it with kl_coef=0.0"):
        loss_of().kl_coef = 0.1
    with pytest.raises(AttributeError, match="symmetric"):
        loss.clip_epsilon_low = 0.1


def test_a_clip_of_one_and_more_has_no_lower_bound_and_no_nan() -> None:
    batch, actor, critic = batch_and_parts()
    # With an upper bound no ratio reaches, nothing is clipped: the plain ratio.
    wide = PPOXLoss(actor, critic, clip_epsilon=50)(batch)
    plain = PPOXLoss(actor, critic, surrogate="none")(batch)
    torch.testing.assert_close(wide["loss_objective"], plain["loss_objective"])
    assert wide["clip_fraction"] == 0


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "log-prob [B, 1]": (
        lambda b: b.set("action_log_prob", b["action_log_prob"][..., None]),
        ValueError,
        r"'advantage' has shape \(16, 2, 1\), 'action_log_prob' \(16, 2, 1\).*\[\*batch, 1\] and \[\*batch\]",
    ),
    "no old distribution": (lambda b: b.pop("loc"), KeyError, r"parameter 'loc' is missing.*get_dist_params"),
    "no reference": (lambda b: b.pop("ref_log_prob"), KeyError, "ref_kl_coef needs .* 'ref_log_prob'"),
    "flat reference": (
        lambda b: b.set("ref_log_prob", b["ref_log_prob"][..., None]),
        ValueError,
        r"\(16, 2, 1\) and \(16, 2\)",
    ),
    "no mask": (lambda b: b.pop("mask"), KeyError, "loss_mask_key is 'mask', and there is no such key"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_clip_ppo_loss_would_take_or_does_not_know_is_refused_by_name(name: str) -> None:
    batch, actor, critic = batch_and_parts()
    batch["ref_log_prob"] = batch["action_log_prob"].clone()
    batch["mask"] = torch.ones(16, 2, dtype=torch.bool)
    loss = PPOXLoss(actor, critic, kl_coef=0.1, ref_kl_coef=0.1, functional=False)
    loss.loss_mask_key = "mask"
    loss(batch)
    spoil, error, match = BAD[name]
    spoil(batch)
    with pytest.raises(error, match=match):
        loss(batch)


def test_forward_changes_nothing() -> None:
    batch, actor, critic = batch_and_parts()
    loss = PPOXLoss(actor, critic, kl_coef=0.7, ref_kl_coef=0.1)
    batch["ref_log_prob"] = batch["action_log_prob"].clone()
    state, before = copy.deepcopy(loss.state_dict()), batch.clone()
    first = loss(batch)
    for _ in range(3):
        assert (loss(batch) == first).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loss.state_dict().items())
    assert set(batch.keys(True)) == set(before.keys(True)) and (batch == before).all()


def test_every_output_but_the_unreduced_losses_is_a_scalar_for_any_batch_shape() -> None:
    batch, actor, critic = batch_and_parts()
    arguments: dict[str, Any] = {"kl_coef": 0.1, "clip_value": 0.1}
    grid, flat = (PPOXLoss(actor, critic, **arguments)(rows) for rows in (batch, batch.flatten(0, 1)))
    for key, value in flat.items():
        assert value.shape == ()
        torch.testing.assert_close(grid[key], value)
    unreduced = PPOXLoss(actor, critic, reduction="none", **arguments)(batch)
    for key, value in unreduced.items():
        assert value.shape == ((16, 2) if key.startswith("loss") else ())


def test_called_without_tensordict_it_returns_its_out_keys_in_order() -> None:
    batch, actor, critic = batch_and_parts()
    rows = batch[:, 0]
    rows["next", "observation"] = torch.roll(rows["observation"], -1, 0)
    for arguments in ({"kl_coef": 0.1}, {}, {"entropy_bonus": False, "critic_coeff": 0.5}):
        loss = PPOXLoss(actor, critic, **arguments)  # type: ignore[arg-type]
        names = {key if isinstance(key, str) else "_".join(key): key for key in loss.in_keys}
        assert list(names) == sorted(names)  # the same in every process
        given = {name: rows[key] for name, key in names.items()}
        returned = loss(**given)
        losses = loss(rows.exclude("advantage", "value_target"))
        assert len(returned) == len(loss.out_keys)
        for key, value in zip(loss.out_keys, returned, strict=True):
            torch.testing.assert_close(value, losses[key], msg=key)
    assert {"loc", "scale"} <= set(PPOXLoss(actor, critic, kl_coef=0.1).in_keys)
    loss = PPOXLoss(actor, critic)
    loss.select_out_keys("loss_objective", "ESS")
    assert len(loss(**given)) == 2


def test_keys_can_be_renamed() -> None:
    batch, actor, critic = batch_and_parts()
    loss = PPOXLoss(actor, critic, ref_kl_coef=0.5)
    expected = loss(batch.set("ref_log_prob", batch["action_log_prob"] - 0.1))
    names = {
        "advantage": "A",
        "value_target": ("deep", "R"),
        "sample_log_prob": "lp",
        "action": "a",
        "ref_log_prob": "r",
    }
    old = {"sample_log_prob": "action_log_prob"}
    for name, key in names.items():
        batch.rename_key_(old.get(name, name), key)
    loss.set_keys(**names)
    torch.testing.assert_close(loss(batch)["loss_objective"], expected["loss_objective"])
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(advantages="A")
    loss.set_keys(advantage=None)
    assert loss.tensor_keys.advantage == "advantage"


def test_state_goes_over_and_so_does_a_copy() -> None:
    batch, actor, critic = batch_and_parts()
    loss, other = (PPOXLoss(actor, critic, clip_epsilon=eps, kl_coef=beta) for eps, beta in ((0.1, 0.5), (0.3, 2.0)))
    twin = copy.deepcopy(loss)
    assert pickle.loads(pickle.dumps(loss))(batch)["loss_objective"] == loss(batch)["loss_objective"]
    assert twin(batch)["loss_objective"] == loss(batch)["loss_objective"] != other(batch)["loss_objective"]
    other.load_state_dict(loss.state_dict())
    assert other(batch)["loss_objective"] == loss(batch)["loss_objective"] and float(other.kl_coef) == 0.5
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1.0)
    assert (next(iter(twin.parameters())) != next(iter(loss.parameters()))).any()


@pytest.mark.parametrize("estimator", [ValueEstimators.GAE, ValueEstimators.TD0, ValueEstimators.TDLambda, "gae"])
def test_missing_advantages_are_estimated_by_its_value_estimator(estimator: Any) -> None:
    batch, actor, critic = batch_and_parts()
    batch["next", "observation"] = torch.roll(batch["observation"], -1, 0)
    loss = PPOXLoss(actor, critic)
    loss.make_value_estimator(estimator, gamma=0.9)
    without = batch.exclude("advantage", "value_target")
    losses = loss(without)
    assert "advantage" not in without
    loss.value_estimator(batch, params=loss.critic_network_params.detach())
    torch.testing.assert_close(losses["loss_objective"], loss(batch)["loss_objective"])
    torch.testing.assert_close(losses["loss_critic"], loss(batch)["loss_critic"])


@pytest.mark.parametrize("functional", [True, False])
def test_separate_losses_leave_the_actor_alone(functional: bool) -> None:
    model = collected("discrete", "image")
    rows = rollout_of(model).flatten(0, 1)
    parts = actor_module(model.policy), critic_module(model.policy)
    shared = list(model.policy.features_extractor.parameters())
    loss = PPOXLoss(*parts, separate_losses=functional, functional=functional)
    grads = torch.autograd.grad(loss(rows)["loss_critic"], [*shared, model.policy.value_net.weight], allow_unused=True)
    assert all((grad is None) == functional for grad in grads[:-1]) and grads[-1] is not None
