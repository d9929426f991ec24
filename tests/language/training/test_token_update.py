from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.language.training.micro_batches import micro_batches, row_groups, rows_of
from sb3_ppo_ext.language.training.token_settings import TokenSettings
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.registry import SURROGATES
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from tests.language import setups, tiny
from tests.language.token_updates import KNOBS, gradients_of, minibatch, updater


def outcome(policy: LanguageModelPolicy, batch: Minibatch, **options: Any) -> tuple[Tensor, Tensor]:
    """All gradients in one vector, and the statistics."""
    update = updater(policy, **options)
    found, _ = gradients_of(update).evaluate(batch, KNOBS)
    gradients = [parameter.grad.flatten() for parameter in update.parameters]  # type: ignore[union-attr]  # all have one
    return torch.cat(gradients), found.row()


@pytest.fixture(scope="module")
def double() -> LanguageModelPolicy:
    return setups.policy(dtype="float64").double()


def test_the_first_minibatch_has_the_gradient_of_reinforce(double: LanguageModelPolicy) -> None:
    batch = minibatch(double, drift=0.0)
    assert isinstance(batch.observation, dict) and batch.mask is not None
    update = updater(double, Objective(kl_estimator="k3", normalize_advantage=False))
    gradients_of(update).evaluate(batch, KnobValues(clip_range=0.2, vf_coef=0.0))
    mine = [parameter.grad.clone() for parameter in double.model_parameters()]  # type: ignore[union-attr]  # all have one
    double.zero_grad()
    gain = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch.action)):  # each response by itself, without padding, by the plain model
        prompt = batch.observation[INPUT_IDS][row][batch.observation[ATTENTION_MASK][row].bool()]
        response, advantage = batch.action[row][batch.mask[row]], batch.advantage[row][batch.mask[row]]
        logits = double.lm.plain(input_ids=torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
        gain = gain + (logits.log_softmax(-1)[torch.arange(len(response)), response] * advantage).sum()
    (-gain / batch.mask.sum()).backward()
    for parameter, gradient in zip(double.model_parameters(), mine, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


OF_TOKENS = [name for name in SURROGATES if not SURROGATES[name].measures_kl]


@pytest.mark.parametrize("loss_mean", ["token", "response", "length"])
@pytest.mark.parametrize("surrogate", OF_TOKENS)
def test_every_objective_begins_with_the_gradient_of_reinforce(
    double: LanguageModelPolicy, surrogate: str, loss_mean: str
) -> None:
    """With an advantage that is constant over each response: GSPO has one ratio for all of its tokens."""
    batch = minibatch(double, drift=0.0)
    advantage = batch.advantage[:, :1].expand_as(batch.advantage)
    batch = batch._replace(advantage=advantage)
    update = updater(
        double, Objective(surrogate=surrogate, kl_estimator="k3", normalize_advantage=False), loss_mean=loss_mean
    )
    gradients_of(update).evaluate(batch, KnobValues(clip_range=0.2, vf_coef=0.0, divergence_limit=0.1))
    mine = [parameter.grad.clone() for parameter in double.model_parameters()]  # type: ignore[union-attr]  # all have one
    double.zero_grad()
    mask = batch.mask
    assert mask is not None
    log_prob = double.evaluate_tokens(double.tokens(batch.observation, batch.action, mask), entropy_grad=False)[0]
    gain = (log_prob * advantage).masked_fill(~mask, 0.0)
    means = {"token": gain.sum() / mask.sum(), "length": gain.sum() / mask.numel()}
    (-means.get(loss_mean, (gain.sum(-1) / mask.sum(-1)).mean())).backward()
    for parameter, gradient in zip(double.model_parameters(), mine, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss_mean", ["token", "response", "length"])
@pytest.mark.parametrize("max_tokens", [1, 20, 35])
def test_the_split_for_memory_changes_nothing(double: LanguageModelPolicy, loss_mean: str, max_tokens: int) -> None:
    batch = minibatch(double)
    whole, row = outcome(double, batch, loss_mean=loss_mean)
    split, split_row = outcome(double, batch, loss_mean=loss_mean, micro_batch_tokens=max_tokens)
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(split_row, row, equal_nan=True)


def test_the_order_of_the_responses_changes_nothing(double: LanguageModelPolicy) -> None:
    batch = minibatch(double)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    shuffled = rows_of(batch, order)
    for one, other in zip(outcome(double, batch), outcome(double, shuffled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_what_stands_in_masked_slots_changes_nothing(double: LanguageModelPolicy) -> None:
    batch = minibatch(double)
    assert batch.mask is not None and batch.ref_log_prob is not None
    hole = ~batch.mask
    spoiled = batch._replace(
        action=batch.action.masked_fill(hole, 23),
        **{
            name: getattr(batch, name).masked_fill(hole, float("nan"))
            for name in ("action_log_prob", "state_value", "advantage", "value_target", "ref_log_prob")
        },
    )
    for one, other in zip(outcome(double, batch), outcome(double, spoiled), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 2), (1, 4)])
def test_padding_on_either_side_changes_nothing(double: LanguageModelPolicy, left: int, right: int) -> None:
    batch = minibatch(double)
    assert isinstance(batch.observation, dict) and batch.mask is not None and batch.ref_log_prob is not None

    def wider(tensor: Tensor, before: int, after: int, fill: float) -> Tensor:
        return torch.nn.functional.pad(tensor, (before, after), value=fill)

    observation = {
        INPUT_IDS: wider(batch.observation[INPUT_IDS], left, 0, 23),
        ATTENTION_MASK: wider(batch.observation[ATTENTION_MASK], left, 0, 0),
    }
    names = ("action", "action_log_prob", "state_value", "advantage", "value_target", "ref_log_prob")
    rest: dict[str, Any] = {name: wider(getattr(batch, name), 0, right, 9) for name in names}
    padded = batch._replace(observation=observation, mask=wider(batch.mask, 0, right, 0), **rest)
    for one, other in zip(outcome(double, batch), outcome(double, padded), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_means_count_tokens_or_responses_as_asked(double: LanguageModelPolicy) -> None:
    """With V = 0 and targets 1 for the first response and 0 for the others, the value loss tells the weights."""
    batch = minibatch(double)
    assert batch.mask is not None
    target = torch.zeros_like(batch.value_target)
    target[0] = 1.0
    lengths = batch.mask.sum(-1).double()
    batch = batch._replace(value_target=target, state_value=torch.zeros_like(target))
    expected = {
        "token": lengths[0] / lengths.sum(),
        "response": torch.tensor(1 / 6, dtype=torch.float64),
        "length": lengths[0] / (6 * 5),
    }
    for loss_mean, weight in expected.items():
        update = updater(double, Objective(kl_estimator="k3", normalize_advantage=False), loss_mean=loss_mean)
        zero = batch._replace(advantage=torch.zeros_like(target))
        found, _ = gradients_of(update).evaluate(zero, KnobValues(clip_range=0.2, vf_coef=1.0))
        torch.testing.assert_close(found.loss, weight)


def test_shares_add_up_to_one_and_groups_keep_to_the_limit() -> None:
    policy = setups.policy()
    parts = list(micro_batches(minibatch(policy), TokenSettings(loss_mean="response", micro_batch_tokens=20)))
    assert len(parts) > 1
    assert sum(part.share for part in parts) == pytest.approx(1) == sum(part.weight for part in parts)
    lengths = [3, 9, 4, 12, 5]
    groups = list(row_groups(lengths, 20))
    assert sorted(row for group in groups for row in group) == [0, 1, 2, 3, 4]
    assert all(len(group) * max(lengths[row] for row in group) <= 20 for group in groups)


@pytest.mark.parametrize("micro_batch_tokens", [None, 8, 30])
def test_optimizer_steps_are_epochs_times_minibatches(micro_batch_tokens: int | None) -> None:
    model = setups.ppox(n_epochs=3, rollout_buffer_kwargs={"micro_batch_tokens": micro_batch_tokens})
    model.learn(32)
    # Two rollouts of 16 responses in minibatches of 4, three epochs each.
    assert {float(state["step"]) for state in model.policy.optimizer.state.values()} == {2 * 3 * 4}


def test_training_is_the_same_whatever_the_split() -> None:
    trained = []
    for micro_batch_tokens in (None, 25):
        model = setups.ppox(rollout_buffer_kwargs={"micro_batch_tokens": micro_batch_tokens}, ref_kl_coef=0.05)
        model.learn(32)
        trained.append(np.concatenate([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    # Adam turns rounding of tiny gradients into steps of up to the learning rate, 1e-3.
    np.testing.assert_allclose(trained[0], trained[1], rtol=0, atol=2e-4)


def test_padding_with_the_end_of_text_is_the_same_as_with_another_token() -> None:
    batches = []
    for pad in (tiny.PAD, tiny.EOS):
        policy = setups.policy(pad=pad)
        batch = minibatch(policy)
        assert batch.mask is not None
        batches.append(outcome(policy, batch._replace(action=batch.action.masked_fill(~batch.mask, pad)))[0])
    torch.testing.assert_close(*batches, rtol=0, atol=0)


def test_while_the_value_function_warms_up_the_model_stays() -> None:
    model = setups.ppox(policy_kwargs={"value_warmup": 1})
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    before = [parameter.clone() for parameter in policy.model_parameters()]
    model.learn(16)
    assert all(one.equal(other) for one, other in zip(before, policy.model_parameters(), strict=True))
    assert any(parameter.any() for parameter in policy.value_parameters())
    assert not any(parameter in policy.optimizer.state for parameter in policy.model_parameters())  # no moments of Adam
    model.learn(16, reset_num_timesteps=False)
    assert not before[0].equal(policy.model_parameters()[0])
