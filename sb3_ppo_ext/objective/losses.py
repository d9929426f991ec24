"""The objective: pure functions of tensors, shared by every framework that trains with it.

Tensors are [B], or [B, L] with a mask for tokens; the content of a masked slot, NaN included, changes neither the
value nor the gradient. A mask is boolean, or holds numbers >= 0, the weight of each slot in a mean. r is the
probability ratio new / old, A the advantage; boundaries pass ``log_ratio = log r``, from which ratio, KL and clip
fraction all follow. Losses are to be minimised; KL is in nats per action.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sb3_ppo_ext.objective.registration import kl_estimator, surrogate, value_clip, value_error
from sb3_ppo_ext.objective.registry import VALUE_ERRORS

Scalar = float | Tensor

# From one number per slot to the loss: ``masked_mean``, ``masked_sum``, or ``fill_masked`` for no reduction at all.
Reduce = Callable[[Tensor, Tensor | None], Tensor]


def _same_shape(**tensors: Tensor) -> None:
    """``ValueError`` unless all shapes agree: [B] against [B, 1] would broadcast to [B, B]."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def fill_masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """``tensor`` with 0 where ``mask`` is False or 0, and no gradient there. Zero times NaN would be NaN."""
    return tensor if mask is None else tensor.masked_fill(mask == 0, 0.0)


def masked_mean(tensor: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over the slots where ``mask`` is True, or weighted by it; 0 if there are none."""
    if mask is None:
        return tensor.mean()
    return masked_sum(tensor, mask) / mask.sum().clamp(min=1)


def masked_sum(tensor: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sum over the slots where ``mask`` is True, or weighted by it."""
    return tensor.sum() if mask is None else (fill_masked(tensor, mask) * mask).sum()


def sum_of(first: Tensor, *others: Tensor | None) -> Tensor:
    """The sum of the terms there are."""
    return sum((term for term in others if term is not None), first)


def normalized(advantage: Tensor, mask: Tensor | None = None) -> Tensor:
    """``(A - mean) / (std + 1e-8)`` with the unbiased std, as in Stable-Baselines3's PPO; unchanged for one element."""
    if mask is None:
        return advantage if advantage.numel() <= 1 else (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    # Indexing by the mask would give a shape that depends on the data, which a graph cannot have.
    counted = mask > 0
    count = counted.sum()
    centred = fill_masked(advantage - masked_mean(advantage, counted), counted)
    std = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return torch.where(count > 1, centred / (std + 1e-8), advantage)


def _clamped(tensor: Tensor, low: Scalar, high: Scalar) -> Tensor:
    return torch.clamp(tensor, low, high)  # type: ignore[arg-type]  # takes numbers or tensors; typed for one at a time


@surrogate("clip", keeps_gradient=False)
def clipped_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    low: Scalar,
    high: Scalar,
    dual_clip: Scalar | None = None,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """Clipped policy loss, ``-E[min(r A, clip(r, 1 - low, 1 + high) A)]``; with ``dual_clip`` = c > 1 the maximum of
    that minimum and ``c A`` where A < 0, so that a huge ratio cannot make it arbitrarily bad.

    Schulman et al. 2017, eq. 7 (low == high); Yu et al. 2025 (DAPO), eq. 8, for a higher upper bound; Ye et al. 2020,
    eq. 5, for the dual clip.
    """
    _same_shape(log_ratio=log_ratio, advantage=advantage)
    advantage = fill_masked(advantage, mask)
    ratio = fill_masked(log_ratio, mask).exp()
    gain = torch.min(advantage * ratio, advantage * _clamped(ratio, 1 - low, 1 + high))
    if dual_clip is not None:
        gain = torch.where(advantage < 0, torch.max(gain, dual_clip * advantage), gain)
    return -reduce(gain, mask)


@surrogate("spo", divides_by_clip_range=True)
def spo_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    clip_range: Scalar,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """Simple policy optimization, ``-E[r A - |A| (r - 1)^2 / (2 eps)]``: best at r = 1 + sign(A) eps, without a kink.

    Xie et al. 2025, eq. 11, with eps = ``clip_range``.
    """
    _same_shape(log_ratio=log_ratio, advantage=advantage)
    advantage = fill_masked(advantage, mask)
    ratio = fill_masked(log_ratio, mask).exp()
    return -reduce(ratio * advantage - advantage.abs() * (ratio - 1) ** 2 / (2 * clip_range), mask)


@surrogate("none")
def unclipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, *, mask: Tensor | None = None, reduce: Reduce = masked_mean
) -> Tensor:
    """``-E[r A]``, for use with a KL penalty. Schulman et al. 2017, eq. 6 (the conservative policy iteration loss)."""
    _same_shape(log_ratio=log_ratio, advantage=advantage)
    return -reduce(fill_masked(log_ratio, mask).exp() * fill_masked(advantage, mask), mask)


@kl_estimator("k1")
def kl_k1(log_ratio: Tensor, mask: Tensor | None = None, reduce: Reduce = masked_mean) -> Tensor:
    """``E_old[-log r]``, an unbiased estimate of KL(old || new) that can be negative."""
    return reduce(-log_ratio, mask)


@kl_estimator("k2")
def kl_k2(log_ratio: Tensor, mask: Tensor | None = None, reduce: Reduce = masked_mean) -> Tensor:
    """``E_old[(log r)^2 / 2]``, a biased estimate of KL(old || new) of low variance."""
    return reduce(fill_masked(log_ratio, mask) ** 2 / 2, mask)


def k3_of_slots(log_ratio: Tensor, ratio: Tensor) -> Tensor:
    """``(r - 1) - log r`` of every slot, in Stable-Baselines3's order of operations."""
    return (ratio - 1) - log_ratio


@kl_estimator("k3")
def kl_k3(log_ratio: Tensor, mask: Tensor | None = None, reduce: Reduce = masked_mean) -> Tensor:
    """``E_old[(r - 1) - log r]``, unbiased and never negative: Stable-Baselines3's ``approx_kl``.

    The three estimators: Schulman 2020, "Approximating KL divergence".
    """
    log_ratio = fill_masked(log_ratio, mask)
    return reduce(k3_of_slots(log_ratio, torch.exp(log_ratio)), mask)


# The error of a value, slot by slot, under TorchRL's names. Stable-Baselines3's is "l2" (no factor 1/2).
value_error("l2")(functional.mse_loss)
value_error("l1")(functional.l1_loss)
value_error("smooth_l1")(functional.smooth_l1_loss)


def value_loss(
    value: Tensor, target: Tensor, *, mask: Tensor | None = None, error: str = "l2", reduce: Reduce = masked_mean
) -> Tensor:
    """The error of the value; by default its mean square, ``E[(V - target)^2]``, as in Stable-Baselines3."""
    _same_shape(value=value, target=target)
    of_slots = VALUE_ERRORS[error]
    if mask is None and reduce is masked_mean and of_slots.averages:
        return of_slots.function(value, target)  # in one pass
    return reduce(of_slots(fill_masked(value, mask), fill_masked(target, mask)), mask)


@value_clip("sb3")
def sb3_clipped_value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor,
    *,
    clip: Scalar,
    mask: Tensor | None = None,
    error: str = "l2",
    reduce: Reduce = masked_mean,
) -> Tensor:
    """``E[(V_old + clip(V - V_old, -clip, clip) - target)^2]``: only the clipped value, as in Stable-Baselines3."""
    return value_loss(_clipped_value(value, old_value, clip), target, mask=mask, error=error, reduce=reduce)


@value_clip("max")
def max_clipped_value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor,
    *,
    clip: Scalar,
    mask: Tensor | None = None,
    error: str = "l2",
    reduce: Reduce = masked_mean,
) -> Tensor:
    """``E[max((V - target)^2, (V_clipped - target)^2)]``, as in the authors' code (openai/baselines ppo2/model.py)."""
    _same_shape(value=value, target=target, old_value=old_value)
    value, target, old_value = (fill_masked(tensor, mask) for tensor in (value, target, old_value))
    errors = [VALUE_ERRORS[error](estimate, target) for estimate in (value, _clipped_value(value, old_value, clip))]
    return reduce(torch.max(*errors), mask)


def _clipped_value(value: Tensor, old_value: Tensor, clip: Scalar) -> Tensor:
    _same_shape(value=value, old_value=old_value)
    return old_value + _clamped(value - old_value, -clip, clip)


def entropy_loss(
    entropy: Tensor | None, log_prob: Tensor, mask: Tensor | None = None, reduce: Reduce = masked_mean
) -> Tensor:
    """``-E[H]``; without an analytic entropy ``-E[-log_prob]``, as Stable-Baselines3 does for squashed actions."""
    if entropy is None:
        return -reduce(-log_prob, mask)
    return -reduce(entropy, mask)


def effective_sample_size(log_ratio: Tensor, mask: Tensor | None = None) -> Tensor:
    """``(sum r)^2 / sum r^2`` over the number of slots, 1 where all ratios agree; 0 under an empty mask."""
    if mask is None:
        count: Scalar = log_ratio.numel()
    else:
        log_ratio, count = log_ratio.masked_fill(~mask, -math.inf), mask.sum().clamp(min=1)
    flat = log_ratio.flatten()
    size = (2 * flat.logsumexp(0) - (2 * flat).logsumexp(0)).exp() / count
    return size if mask is None else torch.where(mask.any(), size, torch.zeros_like(size))
