"""The negative log-likelihood of right responses in the loss: whose, how much of it, and whatever the split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.language import LanguageModelPolicy, SequenceRolloutBuffer
from sb3_ppo_ext.language.training.micro_batches import rescaled
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from tests.language import setups, tiny
from tests.language.token_updates import gradients_of, minibatch, updater

RIGHT = torch.tensor([False, True, False, False, True, True])


@pytest.fixture(scope="module")
def double() -> LanguageModelPolicy:
    return setups.policy(dtype="float64").double()


def of_imitation_alone(policy: LanguageModelPolicy, loss_mean: str, right: Tensor) -> Minibatch:
    batch = minibatch(policy)
    assert batch.mask is not None
    weight = 0.1 * rescaled(right, batch.mask, loss_mean)[:, None] * batch.mask
    return batch._replace(advantage=torch.zeros_like(batch.advantage), nll_weight=weight)


def gradient(policy: LanguageModelPolicy, batch: Minibatch, **settings: Any) -> tuple[Tensor, Tensor]:
    update = updater(policy, Objective(kl_estimator="k3", normalize_advantage=False), **settings)
    found, _ = gradients_of(update).evaluate(batch, KnobValues(clip_range=0.2, vf_coef=0.0))
    grads = [p.grad.flatten() for p in policy.model_parameters() if p.grad is not None]
    return found.loss, torch.cat(grads)


def log_probs(policy: LanguageModelPolicy, batch: Minibatch) -> Tensor:
    assert batch.mask is not None
    tokens = policy.tokens(batch.observation, batch.action, batch.mask)
    return policy.evaluate_tokens(tokens, entropy_grad=False)[0]


@pytest.mark.parametrize("micro_batch_tokens", [None, 1, 30])
@pytest.mark.parametrize("loss_mean", ["token", "response", "length"])
def test_it_is_the_mean_over_the_right_responses_of_the_step(
    double: LanguageModelPolicy, loss_mean: str, micro_batch_tokens: int | None
) -> None:
    batch = of_imitation_alone(double, loss_mean, RIGHT)
    assert batch.mask is not None
    loss, mine = gradient(double, batch, loss_mean=loss_mean, micro_batch_tokens=micro_batch_tokens)
    double.zero_grad()
    nll, mask = -log_probs(double, batch)[RIGHT], batch.mask[RIGHT]
    expected = {
        "token": nll.sum() / mask.sum(),
        "response": (nll.sum(-1) / mask.sum(-1)).mean(),
        "length": nll.sum() / mask.numel(),
    }[loss_mean]
    (0.1 * expected).backward()
    theirs = torch.cat([p.grad.flatten() for p in double.model_parameters() if p.grad is not None])
    torch.testing.assert_close(loss, (0.1 * expected).detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)  # the factors are of float32


def test_without_a_right_response_there_is_none(double: LanguageModelPolicy) -> None:
    loss, mine = gradient(double, of_imitation_alone(double, "token", torch.zeros(6, dtype=torch.bool)))
    assert loss == 0 and not mine.any()


def test_right_is_what_the_environment_scores_so_without_penalties() -> None:
    model = setups.ppox(
        rollout_buffer_kwargs={"positive_nll_coef": 0.1, "success_score": 3.0, "missing_eos_penalty": 10.0}
    )
    model.learn(16)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    np.testing.assert_array_equal(buffer.right(), buffer.rewards >= 3)
    assert model.logger.name_to_value["lm/right_fraction"] == pytest.approx((buffer.rewards >= 3).mean())


def begins_low(prompts: list[list[int]], responses: list[list[int]]) -> list[bool]:
    return [bool(response) and response[0] < 12 for response in responses]


def test_the_environments_rule_of_success_comes_first() -> None:
    environment = setups.env_of(setups.low_ids, 8, success=begins_low)
    model = setups.ppox(environment=environment, rollout_buffer_kwargs={"positive_nll_coef": 0.1})
    model.learn(32)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    first = buffer.actions[..., 0]
    np.testing.assert_array_equal(buffer.right(), (first < 12) & (first != tiny.EOS))
    assert buffer.right().any() and not buffer.right().all()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="positive_nll_coef=-0"):
        setups.ppox(rollout_buffer_kwargs={"positive_nll_coef": -0.1})
