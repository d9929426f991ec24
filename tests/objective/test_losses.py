import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.objective import losses as objective
from sb3_ppo_ext.objective.losses import (
    clipped_surrogate,
    dual_clipped_surrogate,
    entropy_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    max_clipped_value_loss,
    normalized,
    sb3_clipped_value_loss,
    spo_surrogate,
    unclipped_surrogate,
    value_loss,
)


def log(*ratios: float) -> Tensor:
    return torch.tensor(ratios).log().requires_grad_()


def test_clipping_takes_the_worse_of_both_terms() -> None:
    # A = 1: min(0.5, 0.8) = 0.5, min(1.5, 1.2) = 1.2; A = -1: min(-0.5, -0.8) = -0.8, min(-1.5, -1.2) = -1.5
    loss = clipped_surrogate(log(0.5, 1.5, 0.5, 1.5), torch.tensor([1.0, 1, -1, -1]), low=0.2, high=0.2)
    torch.testing.assert_close(loss, torch.tensor(-(0.5 + 1.2 - 0.8 - 1.5) / 4))


def test_no_gradient_exactly_where_the_ratio_left_the_range_for_the_better() -> None:
    log_ratio = log(0.5, 1.5, 0.5, 1.5)
    clipped_surrogate(log_ratio, torch.tensor([1.0, 1, -1, -1]), low=0.2, high=0.2).backward()
    # d(-r A / 4) / d log r = -r A / 4 where the unclipped term was taken
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-0.125, 0.0, 0.0, 0.375]))


def test_asymmetric_clip_moves_only_its_own_side() -> None:
    advantage = torch.tensor([1.0, -1.0])
    # upper bound 1.5 takes r = 1.4 whole; the lower one clips r = 0.5 at 0.9
    loss = clipped_surrogate(log(1.4, 0.5), advantage, low=0.1, high=0.5)
    torch.testing.assert_close(loss, torch.tensor(-(1.4 - 0.9) / 2))


def test_dual_clip_bounds_a_bad_action_whose_ratio_explodes() -> None:
    # A = -1, r = 10: clip alone gives -10; dual clip c = 3 gives max(-10, -3) = -3. A = 1 is as without it.
    log_ratio = log(10.0, 10.0)
    loss = dual_clipped_surrogate(log_ratio, torch.tensor([-1.0, 1.0]), low=0.2, high=0.2, dual_clip=3.0)
    torch.testing.assert_close(loss, torch.tensor(-(-3.0 + 1.2) / 2))
    loss.backward()
    torch.testing.assert_close(log_ratio.grad, torch.zeros(2))


def test_spo_is_best_at_the_edge_of_the_range() -> None:
    # r A - |A| (r - 1)^2 / (2 eps) has slope A - |A| (r - 1) / eps: zero at r = 1 + sign(A) eps.
    for sign, best in ((1.0, 1.2), (-1.0, 0.8)):
        log_ratio = log(best)
        loss = spo_surrogate(log_ratio, torch.tensor([sign]), clip=0.2)
        loss.backward()
        torch.testing.assert_close(log_ratio.grad, torch.zeros(1), atol=1e-6, rtol=0)
        # at the best ratio: r A - |A| eps / 2 = 1.2 - 0.1 or -0.8 - 0.1
        torch.testing.assert_close(loss.detach(), torch.tensor(-(best * sign - 0.1)))


def test_unclipped_is_the_plain_ratio() -> None:
    torch.testing.assert_close(unclipped_surrogate(log(2.0, 0.5), torch.tensor([1.0, -3.0])), torch.tensor(-0.25))


def test_all_surrogates_have_the_policy_gradient_at_ratio_one() -> None:
    advantage = torch.tensor([0.3, -1.2, 2.0])
    surrogates: list[Callable[[Tensor], Tensor]] = [
        lambda r: clipped_surrogate(r, advantage, low=0.2, high=0.3),
        lambda r: dual_clipped_surrogate(r, advantage, low=0.2, high=0.3, dual_clip=3.0),
        lambda r: spo_surrogate(r, advantage, clip=0.2),
        lambda r: unclipped_surrogate(r, advantage),
    ]
    for surrogate in surrogates:
        log_ratio = torch.zeros(3, requires_grad=True)
        surrogate(log_ratio).backward()
        torch.testing.assert_close(log_ratio.grad, -advantage / 3)


def test_kl_estimators_at_known_ratios() -> None:
    log_ratio = torch.tensor([math.log(2.0), -math.log(2.0)])
    torch.testing.assert_close(kl_k1(log_ratio), torch.tensor(0.0))
    torch.testing.assert_close(kl_k2(log_ratio), torch.tensor(math.log(2.0) ** 2 / 2))
    # ((2 - 1) - log 2 + (0.5 - 1) + log 2) / 2 = 0.25
    torch.testing.assert_close(kl_k3(log_ratio), torch.tensor(0.25))


def test_kl_estimators_agree_with_the_exact_kl_in_expectation() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.6, 0.3, 0.1])
    exact = (p * (p / q).log()).sum()
    log_ratio = (q / p).log()
    for estimate in (-log_ratio, (log_ratio.exp() - 1) - log_ratio):  # k1 and k3, weighed by p
        torch.testing.assert_close((p * estimate).sum(), exact)
    draws = log_ratio[torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(kl_k3(draws), exact, rtol=0.05, atol=0)
    torch.testing.assert_close(kl_k1(draws), exact, rtol=0.1, atol=0)


def test_value_losses() -> None:
    value, target, old = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.5])
    torch.testing.assert_close(value_loss(value, target), torch.tensor(1.0))
    # clipped to within 0.2 of old: 0.2 and 0.3; errors 0.64 and 0.49
    torch.testing.assert_close(sb3_clipped_value_loss(value, target, old, clip=0.2), torch.tensor(0.565))
    # max(1, 0.64), max(1, 0.49)
    torch.testing.assert_close(max_clipped_value_loss(value, target, old, clip=0.2), torch.tensor(1.0))
    # where clipping made it worse: value 0.9, old 0 -> 0.2; max(0.01, 0.64)
    near = max_clipped_value_loss(torch.tensor([0.9]), torch.tensor([1.0]), torch.tensor([0.0]), clip=0.2)
    torch.testing.assert_close(near, torch.tensor(0.64))


def test_entropy_loss_is_negative_entropy_or_the_sampled_one() -> None:
    log_prob = torch.tensor([-1.0, -3.0])
    torch.testing.assert_close(entropy_loss(torch.tensor([0.5, 1.5]), log_prob), torch.tensor(-1.0))
    torch.testing.assert_close(entropy_loss(None, log_prob), torch.tensor(-2.0))


def test_normalized_has_mean_zero_and_unit_unbiased_std() -> None:
    advantage = normalized(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(advantage, torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(normalized(torch.tensor([5.0])), torch.tensor([5.0]))


MASKED: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "clip": lambda r, a, m: clipped_surrogate(r, a, low=0.2, high=0.2, mask=m),
    "dual": lambda r, a, m: dual_clipped_surrogate(r, a, low=0.2, high=0.2, dual_clip=3.0, mask=m),
    "spo": lambda r, a, m: spo_surrogate(r, a, clip=0.2, mask=m),
    "none": lambda r, a, m: unclipped_surrogate(r, a, mask=m),
    "k1": lambda r, a, m: kl_k1(r, m),
    "k2": lambda r, a, m: kl_k2(r, m),
    "k3": lambda r, a, m: kl_k3(r, m),
    "value": lambda r, a, m: value_loss(r, a, mask=m),
    "sb3": lambda r, a, m: sb3_clipped_value_loss(r, a, a + 0.1, clip=0.2, mask=m),
    "max": lambda r, a, m: max_clipped_value_loss(r, a, a + 0.1, clip=0.2, mask=m),
    "entropy": lambda r, a, m: entropy_loss(r, a, m),
    "sampled entropy": lambda r, a, m: entropy_loss(None, r, m),
    "normalized": lambda r, a, m: (
        (normalized(r, m).masked_fill(~m, 0.0) ** 3).sum() if m is not None else (normalized(r) ** 3).sum()
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_nan_in_a_masked_slot_changes_neither_value_nor_gradient(name: str) -> None:
    function = MASKED[name]
    kept = torch.tensor([0.3, -0.4, 0.9], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5])
    plain = function(kept, advantage, None)
    plain.backward()
    nan = float("nan")
    padded = torch.tensor([[0.3, -0.4, nan], [nan, 0.9, nan]], requires_grad=True)
    padded_advantage = torch.tensor([[1.0, -2.0, nan], [nan, 0.5, 3.0]])
    mask = torch.tensor([[True, True, False], [False, True, False]])
    masked = function(padded, padded_advantage, mask)
    masked.backward()
    torch.testing.assert_close(masked, plain)
    assert kept.grad is not None and padded.grad is not None
    torch.testing.assert_close(padded.grad[mask], kept.grad)
    torch.testing.assert_close(padded.grad[~mask], torch.zeros(3), rtol=0, atol=0)


def test_an_empty_mask_gives_zero() -> None:
    assert masked_mean(torch.tensor([float("nan")]), torch.tensor([False])) == 0.0


def test_shapes_that_would_broadcast_are_refused() -> None:
    calls: list[Callable[[], Tensor]] = [
        lambda: clipped_surrogate(torch.zeros(4), torch.zeros(4, 1), low=0.2, high=0.2),
        lambda: spo_surrogate(torch.zeros(4, 1), torch.zeros(4), clip=0.2),
        lambda: value_loss(torch.zeros(4), torch.zeros(4, 1)),
        lambda: sb3_clipped_value_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1), clip=0.1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"\(4,\).*\(4, 1\)|\(4, 1\).*\(4,\)"):
            call()


def test_clip_bounds_may_be_tensors() -> None:
    log_ratio, advantage = torch.tensor([0.5, -0.5]), torch.tensor([1.0, -1.0])
    number = clipped_surrogate(log_ratio, advantage, low=0.2, high=0.3)
    tensor = clipped_surrogate(log_ratio, advantage, low=torch.tensor(0.2), high=torch.tensor(0.3))
    torch.testing.assert_close(tensor, number)
    assert objective.sb3_clipped_value_loss(log_ratio, advantage, advantage, clip=torch.tensor(0.2)).isfinite()
