from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.objective.losses import unclipped_surrogate
from sb3_ppo_ext.objective.trust_regions import (
    binary_kl_masked_surrogate,
    kl_bounded_surrogate,
    kl_masked_surrogate,
    tv_masked_surrogate,
)

ADVANTAGE = torch.tensor([1.0, 1, -1, -1])


def log(*ratios: float) -> Tensor:
    return torch.tensor(ratios).log().requires_grad_()


def test_a_sample_is_held_back_where_its_state_has_moved_too_far_and_the_step_leads_further() -> None:
    log_ratio = log(1.5, 0.5, 1.5, 0.5)
    loss = kl_masked_surrogate(log_ratio, ADVANTAGE, kl=torch.full((4,), 0.1), divergence_limit=0.05)
    # A = 1 at r = 1.5 and A = -1 at r = 0.5 lead away and are held back; what leads home stays: -(0.5 - 1.5) / 4.
    torch.testing.assert_close(loss, torch.tensor(0.25))
    loss.backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([0.0, -0.125, 0.375, 0.0]))


def test_within_the_limit_nothing_is_held_back() -> None:
    near, free = log(1.5, 0.5, 1.5, 0.5), log(1.5, 0.5, 1.5, 0.5)
    kl_masked_surrogate(near, ADVANTAGE, kl=torch.full((4,), 0.04), divergence_limit=0.05).backward()
    unclipped_surrogate(free, ADVANTAGE).backward()
    torch.testing.assert_close(near.grad, free.grad)


def test_total_variation_is_the_difference_of_the_probabilities() -> None:
    # p = 0.1 -> 0.3: D = 0.2 is held back by a limit of 0.15; p = 0.01 -> 0.03, the same ratio, is not.
    log_ratio = log(3.0, 3.0)
    old = torch.tensor([0.1, 0.01]).log()
    tv_masked_surrogate(log_ratio, torch.ones(2), action_log_prob=old).backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([0.0, -1.5]))


@pytest.mark.parametrize(("limit", "held_back"), [(0.116, True), (0.117, False)])
def test_binary_kl_is_that_of_taking_the_action_or_another(limit: float, held_back: bool) -> None:
    # p = 0.1, p' = 0.3: 0.1 ln(1/3) + 0.9 ln(0.9/0.7) = -0.10986 + 0.22618 = 0.11632.
    log_ratio = log(3.0)
    old = torch.tensor([0.1]).log()
    binary_kl_masked_surrogate(log_ratio, torch.ones(1), action_log_prob=old, divergence_limit=limit).backward()
    assert log_ratio.grad is not None and (log_ratio.grad.item() == 0) is held_back


def test_certain_actions_have_a_finite_divergence() -> None:
    log_ratio = torch.tensor([-20.0, 0.0], requires_grad=True)
    loss = binary_kl_masked_surrogate(log_ratio, torch.tensor([-1.0, 1.0]), action_log_prob=torch.zeros(2))
    loss.backward()
    assert loss.isfinite() and log_ratio.grad is not None and log_ratio.grad.isfinite().all()


def test_an_exploding_ratio_that_is_held_back_has_no_gradient_of_nan() -> None:
    log_ratio = torch.tensor([500.0], requires_grad=True)
    kl_masked_surrogate(log_ratio, torch.ones(1), kl=torch.tensor([9.0])).backward()
    torch.testing.assert_close(log_ratio.grad, torch.zeros(1))


def test_beyond_the_bound_a_state_is_drawn_back_and_inside_it_learns() -> None:
    log_ratio, kl = log(1.5, 1.5), torch.tensor([0.01, 0.2], requires_grad=True)
    loss = kl_bounded_surrogate(log_ratio, torch.tensor([2.0, 2.0]), kl=kl, kl_coef=5.0, divergence_limit=0.1)
    # (-1.5 * 2 + 5 * 0.2) / 2
    torch.testing.assert_close(loss, torch.tensor(-1.0))
    loss.backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-1.5, 0.0]))
    torch.testing.assert_close(kl.grad, torch.tensor([0.0, 2.5]))


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (kl_masked_surrogate, {"kl": torch.tensor([[0.1, math.nan]])}),
        (tv_masked_surrogate, {"action_log_prob": torch.tensor([[-1.0, math.nan]])}),
        (binary_kl_masked_surrogate, {"action_log_prob": torch.tensor([[-1.0, math.nan]])}),
        (kl_bounded_surrogate, {"kl": torch.tensor([[0.1, math.nan]]), "kl_coef": 1.0}),
    ],
)
def test_what_stands_in_a_masked_slot_changes_nothing(function: Any, inputs: dict[str, Any]) -> None:
    mask = torch.tensor([[True, False]])
    log_ratio = torch.tensor([[0.3, math.nan]], requires_grad=True)
    loss = function(log_ratio, torch.tensor([[-1.0, math.nan]]), **inputs, mask=mask)
    first = {name: value[:, :1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    alone = function(torch.tensor([[0.3]]), torch.tensor([[-1.0]]), **first)
    torch.testing.assert_close(loss.detach(), alone)
    loss.backward()
    assert log_ratio.grad is not None and log_ratio.grad[0, 1] == 0 and log_ratio.grad.isfinite().all()
