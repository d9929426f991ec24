"""PPOXLoss beyond one number per row: composite actions, tokens, masks, and one compiled graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    set_composite_lp_aggregate,
)
from torch import nn
from torch.distributions import Categorical, Normal
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss

from tests.torchrl.rollouts import collected, moved, rollout_of


def batch_and_parts(action: str = "box") -> tuple[TensorDictBase, Any, Any]:
    model = collected(action)
    batch = rollout_of(model)
    moved(model)
    return batch, actor_module(model.policy), critic_module(model.policy)


def loss_of(**arguments: Any) -> PPOXLoss:
    _, actor, critic = batch_and_parts()
    return PPOXLoss(actor, critic, **arguments)


def composite() -> tuple[TensorDictBase, Any, Any]:
    """Two heads, one Gaussian and one Categorical, in a tensordict of actions."""
    torch.manual_seed(0)
    maps = {"move": Normal, "grip": Categorical}
    net = TensorDictModule(nn.Linear(3, 4), in_keys=["observation"], out_keys=["flat"])
    split = TensorDictModule(
        lambda x: (x[..., 0], x[..., 1].exp(), x[..., 2:]),
        in_keys=["flat"],
        out_keys=[("params", "move", "loc"), ("params", "move", "scale"), ("params", "grip", "logits")],
    )
    draw = ProbabilisticTensorDictModule(
        in_keys=["params"],
        out_keys=[("agent", "move"), ("agent", "grip")],
        distribution_class=CompositeDistribution,
        distribution_kwargs={
            "distribution_map": maps,
            "name_map": {"move": ("agent", "move"), "grip": ("agent", "grip")},
        },
        return_log_prob=True,
        default_interaction_type=InteractionType.RANDOM,
    )
    actor = ProbabilisticTensorDictSequential(net, split, draw)
    critic = ValueOperator(nn.Linear(3, 1), in_keys=["observation"])
    batch = TensorDict({"observation": torch.randn(8, 3)}, [8])
    with torch.no_grad():
        actor(batch)
        net.module.weight.add_(0.1)
    batch["advantage"], batch["value_target"] = torch.randn(2, 8, 1)
    return batch.exclude("params", "flat"), actor, critic


def test_composite_actions_and_a_weight_for_the_entropy_of_each_head() -> None:
    with set_composite_lp_aggregate(False):
        batch, actor, critic = composite()
        for weights in (0.1, {("agent", "move_entropy"): 0.1, ("agent", "grip_entropy"): 0.7}):
            mine, theirs = (cls(actor, critic, entropy_coeff=weights)(batch) for cls in (PPOXLoss, ClipPPOLoss))
            for key in ("loss_objective", "loss_entropy", "entropy", "loss_critic", "clip_fraction"):
                torch.testing.assert_close(mine[key], theirs[key], msg=key)
            assert (mine["composite_entropy"] == theirs["composite_entropy"]).all()
        with pytest.raises(KeyError, match="grip_entropy"):
            PPOXLoss(actor, critic, entropy_coeff={("agent", "move_entropy"): 0.1})(batch)


def test_tokens_under_a_mask_are_what_they_are_alone() -> None:
    torch.manual_seed(0)
    embed, head, value = nn.Embedding(11, 6), nn.Linear(6, 11), nn.Linear(6, 1)
    actor = ProbabilisticActor(
        TensorDictModule(nn.Sequential(embed, head), in_keys=["tokens"], out_keys=["logits"]),
        in_keys=["logits"], distribution_class=Categorical, return_log_prob=True,
    )  # fmt: skip
    critic = ValueOperator(nn.Sequential(embed, value), in_keys=["tokens"])
    lengths = torch.tensor([5, 2, 4])
    mask = torch.arange(5) < lengths[:, None]
    batch = TensorDict({"tokens": torch.randint(11, (3, 5)), "action": torch.randint(11, (3, 5)), "mask": mask}, [3])
    batch["logits"] = torch.randn(3, 5, 11)
    batch["action_log_prob"] = Categorical(logits=batch["logits"]).log_prob(batch["action"])
    batch["advantage"], batch["value_target"] = torch.randn(2, 3, 5, 1)
    alone = TensorDict({key: batch[key][mask] for key in batch.keys()}, [11]).exclude("mask")  # noqa: SIM118
    for key in ("action_log_prob", "advantage", "value_target"):
        batch[key][~mask] = float("nan")
    loss = PPOXLoss(actor, critic, kl_coef=0.3, normalize_advantage=True)
    expected = loss(alone)
    loss.loss_mask_key = "mask"
    for key, number in loss(batch).items():
        torch.testing.assert_close(number, expected[key], msg=key)


def test_the_masks_torchrl_writes_itself_are_found() -> None:
    batch, actor, critic = batch_and_parts()
    rows = batch.flatten(0, 1)
    keep = torch.arange(32) < 20
    expected = ClipPPOLoss(actor, critic)(rows[keep])["loss_objective"]
    rows["collector", "mask"] = keep[:, None]
    torch.testing.assert_close(PPOXLoss(actor, critic)(rows)["loss_objective"], expected)


def test_of_several_masks_a_slot_must_pass_all() -> None:
    batch, actor, critic = batch_and_parts()
    rows = batch.flatten(0, 1)
    one, other = torch.arange(32) < 20, torch.arange(32) % 2 == 0
    rows["collector", "mask"], rows["shifted_valid"] = one[:, None], other[:, None]
    expected = PPOXLoss(actor, critic)(rows.exclude("collector", "shifted_valid")[one & other])
    torch.testing.assert_close(PPOXLoss(actor, critic)(rows)["loss_objective"], expected["loss_objective"])


def test_the_reference_pulls_by_its_own_log_probabilities() -> None:
    batch, actor, critic = batch_and_parts()
    log_prob = actor.get_dist(batch.clone()).log_prob(batch["action"])
    # log (reference / new) = 0.4 everywhere, so KL(new || reference) by k3 is e^0.4 - 1 - 0.4
    batch["ref_log_prob"] = log_prob.detach() + 0.4
    losses = PPOXLoss(actor, critic, ref_kl_coef=0.5)(batch)
    expected = PPOXLoss(actor, critic)(batch)["loss_objective"] + 0.5 * 0.09182470
    torch.testing.assert_close(losses["loss_objective"], expected)
    torch.testing.assert_close(losses["ref_kl"], torch.tensor(0.09182470))


def test_loss_critic_is_the_part_it_is_in_the_loss() -> None:
    batch, actor, critic = batch_and_parts()
    for arguments in ({}, {"clip_value": 0.1}, {"clip_value": 0.1, "value_clip": "sb3", "loss_critic_type": "l2"}):
        loss = PPOXLoss(actor, critic, **arguments)
        losses = loss(batch)
        errors, fraction, explained = loss.loss_critic(batch)
        torch.testing.assert_close(errors.mean(), losses["loss_critic"])
        torch.testing.assert_close(explained, losses["explained_variance"])
        assert errors.shape == (16, 2, 1) and (fraction is None) == (not arguments)


COMPILED: dict[str, dict[str, Any]] = {
    "default": {},
    "penalty": {"surrogate": "none", "kl_coef": 0.7},
    "all": {"clip_value": 0.1, "normalize_advantage": True, "clip_epsilon": (0.1, 0.2), "dual_clip": 3, "kl_coef": 0.1},
}


# Of the functional one, whose parameters dynamo takes seconds to go through, the largest case.
@pytest.mark.parametrize(("name", "functional"), [("default", False), ("penalty", False), ("all", True)])
def test_it_is_one_graph_and_a_schedule_does_not_recompile_it(name: str, functional: bool) -> None:
    batch, actor, critic = batch_and_parts()
    rows = batch.flatten(0, 1)
    rows["mask"] = torch.arange(32) < 20
    loss = PPOXLoss(actor, critic, functional=functional, **COMPILED[name])
    loss.loss_mask_key = "mask"
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for weight in (0.01, 0.5):
        loss.entropy_coeff = weight
        with torch.compiler.set_stance("fail_on_recompile" if weight == 0.5 else "default"):
            losses = compiled(rows)
        for key, value in loss(rows).items():
            torch.testing.assert_close(losses[key], value, msg=key)
