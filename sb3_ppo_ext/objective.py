"""The objective: pure functions of tensors, shared by every framework that trains with it.

Tensors are [B], or [B, L] with a mask for tokens; what stands in a masked slot, NaN included, changes neither the
value nor the gradient. A mask is boolean, or says by numbers >= 0 how much each slot counts in a mean. r is the
probability ratio new / old, A the advantage; boundaries pass ``log_ratio = log r``, from which ratio, KL and clip
fraction all follow. Losses are to be minimised; KL is in nats per action.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Scalar = float | Tensor


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
    return (fill_masked(tensor, mask) * mask).sum() / mask.sum().clamp(min=1)


def normalized(advantage: Tensor, mask: Tensor | None = None) -> Tensor:
    """``(A - mean) / (std + 1e-8)`` with the unbiased std, as in Stable-Baselines3's PPO; unchanged for one element."""
    kept = advantage if mask is None else advantage[mask > 0]
    if kept.numel() <= 1:
        return advantage
    return (fill_masked(advantage, mask) - kept.mean()) / (kept.std() + 1e-8)


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, *, low: Scalar, high: Scalar, mask: Tensor | None = None
) -> Tensor:
    """Clipped policy loss, ``-E[min(r A, clip(r, 1 - low, 1 + high) A)]``.

    Schulman et al. 2017, eq. 7 (low == high); Yu et al. 2025 (DAPO), eq. 8, for a higher upper bound.
    """
    return -masked_mean(_clipped_gain(log_ratio, advantage, low, high, mask), mask)


def dual_clipped_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    low: Scalar,
    high: Scalar,
    dual_clip: Scalar,
    mask: Tensor | None = None,
) -> Tensor:
    """The clipped loss with ``max(., c A)`` where A < 0, so that a huge ratio cannot make it arbitrarily bad.

    Ye et al. 2020, eq. 5, with c = ``dual_clip`` > 1.
    """
    gain = _clipped_gain(log_ratio, advantage, low, high, mask)
    advantage = fill_masked(advantage, mask)
    return -masked_mean(torch.where(advantage < 0, torch.max(gain, dual_clip * advantage), gain), mask)


def _clipped_gain(log_ratio: Tensor, advantage: Tensor, low: Scalar, high: Scalar, mask: Tensor | None) -> Tensor:
    _same_shape(log_ratio=log_ratio, advantage=advantage)
    advantage = fill_masked(advantage, mask)
    ratio = fill_masked(log_ratio, mask).exp()
    return torch.min(advantage * ratio, advantage * _clamped(ratio, 1 - low, 1 + high))


def _clamped(tensor: Tensor, low: Scalar, high: Scalar) -> Tensor:
    return torch.clamp(tensor, low, high)  # type: ignore[arg-type]  # takes numbers or tensors; typed for one at a time


def spo_surrogate(log_ratio: Tensor, advantage: Tensor, *, clip: Scalar, mask: Tensor | None = None) -> Tensor:
    """Simple policy optimization, ``-E[r A - |A| (r - 1)^2 / (2 clip)]``: best at r = 1 + sign(A) clip, without a kink.

    Xie et al. 2025, eq. 11, where ``clip`` is their epsilon.
    """
    _same_shape(log_ratio=log_ratio, advantage=advantage)
    advantage = fill_masked(advantage, mask)
    ratio = fill_masked(log_ratio, mask).exp()
    return -masked_mean(ratio * advantage - advantage.abs() * (ratio - 1) ** 2 / (2 * clip), mask)


def unclipped_surrogate(log_ratio: Tensor, advantage: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """``-E[r A]``, for use with a KL penalty. Schulman et al. 2017, eq. 6 (the conservative policy iteration loss)."""
    _same_shape(log_ratio=log_ratio, advantage=advantage)
    return -masked_mean(fill_masked(log_ratio, mask).exp() * fill_masked(advantage, mask), mask)


def kl_k1(log_ratio: Tensor, mask: Tensor | None = None) -> Tensor:
    """``E_old[-log r]``, an unbiased estimate of KL(old || new) that can be negative."""
    return masked_mean(-log_ratio, mask)


def kl_k2(log_ratio: Tensor, mask: Tensor | None = None) -> Tensor:
    """``E_old[(log r)^2 / 2]``, a biased estimate of KL(old || new) of low variance."""
    return masked_mean(fill_masked(log_ratio, mask) ** 2 / 2, mask)


def kl_k3(log_ratio: Tensor, mask: Tensor | None = None) -> Tensor:
    """``E_old[(r - 1) - log r]``, unbiased and never negative: Stable-Baselines3's ``approx_kl``.

    The three estimators: Schulman 2020, "Approximating KL divergence".
    """
    log_ratio = fill_masked(log_ratio, mask)
    return masked_mean((torch.exp(log_ratio) - 1) - log_ratio, mask)


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def value_loss(value: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the value, ``E[(V - target)^2]`` (no factor 1/2, as in Stable-Baselines3)."""
    _same_shape(value=value, target=target)
    if mask is None:
        return functional.mse_loss(target, value)
    return masked_mean((fill_masked(target, mask) - fill_masked(value, mask)) ** 2, mask)


def sb3_clipped_value_loss(
    value: Tensor, target: Tensor, old_value: Tensor, *, clip: Scalar, mask: Tensor | None = None
) -> Tensor:
    """``E[(V_old + clip(V - V_old, -clip, clip) - target)^2]``: only the clipped value, as in Stable-Baselines3."""
    return value_loss(_clipped_value(value, old_value, clip), target, mask=mask)


def max_clipped_value_loss(
    value: Tensor, target: Tensor, old_value: Tensor, *, clip: Scalar, mask: Tensor | None = None
) -> Tensor:
    """``E[max((V - target)^2, (V_clipped - target)^2)]``, as in the authors' code (openai/baselines ppo2/model.py)."""
    _same_shape(value=value, target=target, old_value=old_value)
    value, target, old_value = (fill_masked(tensor, mask) for tensor in (value, target, old_value))
    clipped = _clipped_value(value, old_value, clip)
    return masked_mean(torch.max((value - target) ** 2, (clipped - target) ** 2), mask)


def _clipped_value(value: Tensor, old_value: Tensor, clip: Scalar) -> Tensor:
    _same_shape(value=value, old_value=old_value)
    return old_value + _clamped(value - old_value, -clip, clip)


VALUE_CLIPS = {"sb3": sb3_clipped_value_loss, "max": max_clipped_value_loss}


def entropy_loss(entropy: Tensor | None, log_prob: Tensor, mask: Tensor | None = None) -> Tensor:
    """``-E[H]``; without an analytic entropy ``-E[-log_prob]``, as Stable-Baselines3 does for squashed actions."""
    if entropy is None:
        return -masked_mean(-log_prob, mask)
    return -masked_mean(entropy, mask)
