from __future__ import annotations

import math

import torch

from sb3_ppo_ext.objective.losses import clipped_surrogate, unclipped_surrogate
from sb3_ppo_ext.objective.sequence_ratios import cispo_surrogate, gspo_surrogate, response_log_ratio


def test_a_response_has_one_ratio_the_geometric_mean_of_its_tokens() -> None:
    # (1.2 * 0.6)^(1/2) over the first two tokens; the third is padding. The other response has one token.
    log_ratio = torch.tensor([[1.2, 0.6, math.nan], [1.5, math.nan, math.nan]]).log()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    ratio = response_log_ratio(log_ratio, mask).exp()
    torch.testing.assert_close(ratio[0, :2], torch.full((2,), math.sqrt(0.72)))
    torch.testing.assert_close(ratio[1, 0], torch.tensor(1.5))


def test_gspo_of_single_actions_is_the_clipped_loss() -> None:
    log_ratio, advantage = torch.tensor([0.3, -0.4]), torch.tensor([1.0, -1.0])
    ours = gspo_surrogate(log_ratio, advantage, low=0.2, high=0.1)
    torch.testing.assert_close(ours, clipped_surrogate(log_ratio, advantage, low=0.2, high=0.1))


def test_gspo_holds_back_a_whole_response_or_none_of_it() -> None:
    # Token ratios 2 and 1/2 have the mean 1: within the range, though both tokens are far outside it.
    log_ratio = torch.tensor([[2.0, 0.5], [1.3, 1.3]]).log().requires_grad_()
    gspo_surrogate(log_ratio, torch.ones(2, 2), low=0.1, high=0.1).backward()
    # The first: d(-s) / d log r = -s per token, as s is the ratio of both, over 4 slots. The second is beyond 1.1.
    torch.testing.assert_close(log_ratio.grad, torch.tensor([[-0.25, -0.25], [0.0, 0.0]]))


def test_cispo_clips_the_weight_and_keeps_the_gradient() -> None:
    log_ratio = torch.tensor([3.0, 0.5]).log().requires_grad_()
    cispo_surrogate(log_ratio, torch.tensor([1.0, -2.0]), low=1.0, high=0.2).backward()
    # weights: clip(3, 0, 1.2) = 1.2 and 0.5; gradient of the mean: -w A / 2
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-0.6, 0.5]))


def test_cispo_without_a_bound_has_the_gradient_of_the_plain_ratio() -> None:
    ours, plain = (torch.tensor([[0.7, -0.9]], requires_grad=True) for _ in range(2))
    advantage = torch.tensor([[1.5, -0.5]])
    cispo_surrogate(ours, advantage, low=1.0, high=1e9).backward()
    unclipped_surrogate(plain, advantage).backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_padding_changes_nothing() -> None:
    mask = torch.tensor([[True, True, False]])
    for surrogate in (gspo_surrogate, cispo_surrogate):
        log_ratio = torch.tensor([[0.1, -0.3, math.nan]], requires_grad=True)
        loss = surrogate(log_ratio, torch.tensor([[1.0, 1.0, math.nan]]), low=0.2, high=0.2, mask=mask)
        alone = surrogate(torch.tensor([[0.1, -0.3]]), torch.ones(1, 2), low=0.2, high=0.2)
        torch.testing.assert_close(loss.detach(), alone)
        loss.backward()
        assert log_ratio.grad is not None and log_ratio.grad[0, 2] == 0
