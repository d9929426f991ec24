"""What PPOXLoss assumes of TorchRL's insides, assumption by assumption, on TorchRL's own loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sb3_ppo_ext_torchrl
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module, host
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CompositeDistribution
from torch.distributions import Categorical, Distribution, Normal
from torchrl.modules import RunningValueNorm
from torchrl.objectives import ClipPPOLoss, SoftUpdate, ValueEstimators
from torchrl.objectives.multiagent import MAPPOLoss

from sb3_ppo_ext import PPOX
from tests.torchrl.rollouts import collected, moved, rows_of

ROWS = torch.Size([32])


def batch_and_loss(**arguments: Any) -> tuple[TensorDictBase, ClipPPOLoss, PPOX]:
    """TorchRL's own loss of a policy that has moved since it collected the batch."""
    model = collected()
    rows = rows_of(model)
    loss = ClipPPOLoss(actor_module(model.policy), critic_module(model.policy), **arguments)
    moved(model)
    return rows, loss, model


def new_log_prob(rows: TensorDictBase, model: PPOX) -> torch.Tensor:
    with torch.no_grad():
        return model.policy.evaluate_actions(rows["observation"], rows["action"])[1]


def test_no_other_file_names_what_torchrl_keeps_private() -> None:
    folder = Path(str(sb3_ppo_ext_torchrl.__file__)).parent
    private = {name for cls in ClipPPOLoss.__mro__ for name in vars(cls) if re.match("_[a-z]", name)}
    private |= {name for name in vars(batch_and_loss()[1]) if re.match("_[a-z]", name)} | {"_has_critic"}
    private -= set(vars(torch.nn.Module)) | {"_build", "_values"}
    for path in folder.glob("*.py"):
        if path.name != "host.py":
            assert not private & set(re.findall(r"\b(?:self|loss|cls)\.(_[a-z]\w*)", path.read_text())), path.name


def test_the_losses_take_by_keyword_what_ppox_loss_accepts() -> None:
    assert {"clip_epsilon", "functional", "entropy_coeff", "reduction", "delay_actor"} <= set(host.ACCEPTED)
    for name in host.REMOVED:
        with pytest.raises(TypeError, match=f"{name}' has been removed.*{name}f"):
            batch_and_loss(**{name: 0.1})


def test_the_actor_gives_the_log_ratio_and_its_distribution() -> None:
    rows, loss, model = batch_and_loss()
    log_ratio, distribution, correction = host.acted(loss, rows, ROWS)
    torch.testing.assert_close(log_ratio, new_log_prob(rows, model) - rows["action_log_prob"])
    torch.testing.assert_close(distribution.log_prob(rows["action"]), new_log_prob(rows, model))
    assert correction is None and log_ratio.requires_grad


def test_a_capped_ratio_comes_with_a_correction_that_has_no_gradient() -> None:
    rows, loss, _ = batch_and_loss(max_importance_ratio=0.5)
    log_ratio, _, correction = host.acted(loss, rows, ROWS)
    assert correction is not None and not correction.requires_grad
    torch.testing.assert_close((log_ratio + correction).exp(), log_ratio.exp().clamp(max=0.5))


def test_a_delayed_actor_is_the_policy_the_ratio_is_to() -> None:
    rows, loss, model = batch_and_loss(delay_actor=True)
    SoftUpdate(loss, eps=0.9)  # brings the delayed actor to where the policy is now
    proximal = new_log_prob(rows, model)
    moved(model)
    torch.testing.assert_close(host.proximal_distribution(loss, rows).log_prob(rows["action"]), proximal)
    log_ratio, _, correction = host.acted(loss, rows, ROWS)
    torch.testing.assert_close(log_ratio, new_log_prob(rows, model) - proximal)
    torch.testing.assert_close(correction, proximal - rows["action_log_prob"])


def test_the_entropy_has_a_trailing_dimension_of_one() -> None:
    _, loss, _ = batch_and_loss()
    standard = torch.distributions.Independent(Normal(torch.zeros(32, 2), torch.ones(32, 2)), 1)
    # ln(2 pi e) / 2 for each of two dimensions
    torch.testing.assert_close(host.entropy(loss, standard, ROWS), torch.full((32, 1), 2 * 1.4189385))


def two_heads() -> CompositeDistribution:
    move, grip = {"loc": torch.zeros(32), "scale": torch.ones(32)}, {"logits": torch.zeros(32, 2)}
    params = TensorDict({"move": move, "grip": grip})
    maps: dict[str, type[Distribution]] = {"move": Normal, "grip": Categorical}
    return CompositeDistribution(params.auto_batch_size_(1), distribution_map=maps)


def test_weights_of_the_entropy_by_head_are_applied_by_torchrl() -> None:
    _, loss, _ = batch_and_loss(entropy_coeff={"move_entropy": 0.1, "grip_entropy": 1.0})
    by_head = host.entropy(loss, two_heads(), ROWS)
    # 0.1 ln(2 pi e) / 2 + ln 2
    torch.testing.assert_close(host.entropy_loss_by_head(loss, by_head), torch.full(ROWS, -(0.14189385 + 0.6931472)))
    assert host.entropy_loss_by_head(batch_and_loss()[1], by_head) is None


def test_an_advantage_norm_divides_and_a_fresh_advantage_updates_it() -> None:
    rows, loss, _ = batch_and_loss(advantage_norm=RunningValueNorm(shape=1))
    before = host.normalized_advantage(loss, rows["advantage"], rows, fresh=False)
    torch.testing.assert_close(before * loss.advantage_norm.scale(), rows["advantage"])
    old_scale = loss.advantage_norm.scale().clone()
    host.normalized_advantage(loss, rows["advantage"], rows, fresh=True)
    assert (loss.advantage_norm.scale() != old_scale).all()


@pytest.mark.parametrize("functional", [True, False])
def test_the_value_estimator_writes_advantage_and_target(functional: bool) -> None:
    rows, loss, _ = batch_and_loss(functional=functional)
    rows["next", "observation"] = torch.roll(rows["observation"], -1, 0)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.0)
    host.estimate_advantage(loss, rows)
    torch.testing.assert_close(rows["value_target"], rows["next", "reward"])
    value = host.critic_output(loss, rows.clone())["state_value"]
    torch.testing.assert_close(rows["advantage"], (rows["next", "reward"] - value).detach())


@pytest.mark.parametrize("functional", [True, False])
def test_the_critic_runs_with_the_parameters_that_are_trained(functional: bool) -> None:
    rows, loss, model = batch_and_loss(functional=functional)
    value = host.critic_output(loss, rows)["state_value"]
    torch.testing.assert_close(value, model.policy.predict_values(rows["observation"]))
    assert value.requires_grad


def test_what_the_value_is_compared_with_passes_a_hook_of_subclasses() -> None:
    _, loss, _ = batch_and_loss()
    three = (torch.zeros(2, 1), torch.ones(2, 1), torch.full((2, 1), 2.0))
    assert host.critic_loss_inputs(loss, *three) == three
    assert MAPPOLoss._critic_loss_inputs is not ClipPPOLoss._critic_loss_inputs


def test_the_keys_of_masks_follow_loss_mask_key() -> None:
    _, loss, _ = batch_and_loss()
    assert set(host.mask_keys(loss)) == {("collector", "mask"), "shifted_valid"}
    loss.loss_mask_key = "mine"
    assert host.mask_keys(loss) == ("mine",)
    loss.loss_mask_key = None
    assert host.mask_keys(loss) == ()


def test_a_loss_says_whether_it_has_a_critic_and_two_clip_ranges() -> None:
    _, loss, _ = batch_and_loss()
    _, other, _ = batch_and_loss(critic_coeff=0.0, clip_epsilon=(0.1, 0.2))
    assert (host.has_critic(loss), host.has_two_clip_ranges(loss)) == (True, False)
    assert (host.has_critic(other), host.has_two_clip_ranges(other)) == (False, True)
    assert float(loss.clip_epsilon) == pytest.approx(0.2)
    assert float(other.clip_epsilon_low) == pytest.approx(0.1) and float(other.clip_epsilon_high) == pytest.approx(0.2)


def extended(**arguments: Any) -> PPOXLoss:
    model = collected()
    return PPOXLoss(actor_module(model.policy), critic_module(model.policy), **arguments)


def test_a_further_key_can_be_renamed_and_in_keys_follow() -> None:
    loss = extended(ref_kl_coef=0.5)
    assert "ref_log_prob" in loss.in_keys
    loss.set_keys(ref_log_prob="elsewhere")  # which has TorchRL call _set_in_keys
    assert "elsewhere" in loss.in_keys and "ref_log_prob" not in loss.in_keys
    stock = batch_and_loss()[1]
    assert set(stock.in_keys) < set(loss.in_keys)


def test_a_further_coefficient_is_a_buffer_that_numbers_are_assigned_into() -> None:
    loss = extended(kl_coef=0.5)
    buffer = loss.kl_coef
    loss.kl_coef = 0.25
    assert loss.kl_coef is buffer and float(buffer) == 0.25 and "kl_coef" in dict(loss.named_buffers())


def test_chosen_out_keys_replace_those_of_the_loss() -> None:
    loss = extended()
    assert loss.out_keys[0] == "loss_objective"
    loss.select_out_keys("ESS")
    assert loss.out_keys == ["ESS"]


def test_releasing_weak_references_is_for_graphs_alone() -> None:
    rows, loss, _ = batch_and_loss()
    host.release(loss, rows)
    assert all(hasattr(loss, name) for name in host.PARAMETERS)
