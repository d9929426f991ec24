"""Surrogates that hold the policy by a divergence per state or token, where PPO's clip holds it by the ratio.

Tensors and letters as in ``losses``. A divergence D is in nats for a KL and a number from 0 to 1 for a total variation;
its limit is the knob ``divergence_limit``, or the default of the surrogate. A sample is held back where D exceeds the
limit and its step would lead further away: A > 0 and r > 1, or A < 0 and r < 1. With D = |r - 1| that would be the set
that PPO's clip holds back. "Divergence PPO", arXiv 2602.04879, eq. 11 - 14.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_ppo_ext.objective.losses import Reduce, Scalar, fill_masked, masked_mean
from sb3_ppo_ext.objective.registration import surrogate

LARGEST_PROBABILITY = 1 - 1e-7  # TRL (trl/experimental/dppo): keeps log(1 - p) finite in float32


def _held_back(
    log_ratio: Tensor, advantage: Tensor, divergence: Tensor, limit: Scalar, mask: Tensor | None, reduce: Reduce
) -> Tensor:
    """``-E[r A]`` without the samples that are held back, which have no gradient."""
    log_ratio, advantage = fill_masked(log_ratio, mask), fill_masked(advantage, mask)
    stopped = (divergence.detach() > limit) & (advantage * log_ratio > 0)
    ratio = log_ratio.masked_fill(stopped, 0.0).exp()  # a ratio of inf would have a gradient of NaN
    return -reduce((ratio * advantage).masked_fill(stopped, 0.0), mask)


def _probabilities(log_ratio: Tensor, action_log_prob: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Old and new probability of the action that was taken, without gradient."""
    old = fill_masked(action_log_prob, mask).detach()
    return old.exp(), (old + fill_masked(log_ratio, mask).detach()).exp()


@surrogate("dppo_kl")
def kl_masked_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    kl: Tensor,
    divergence_limit: Scalar | None = None,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """``-E[M r A]``, held back by the exact KL(old || new) of the state: for Gaussian and discrete actions alike.

    Default limit 0.03 nats, within the range that TR-PPO uses (Wang et al. 2019, "Truly Proximal Policy Optimization").
    """
    limit = 0.03 if divergence_limit is None else divergence_limit
    return _held_back(log_ratio, advantage, fill_masked(kl, mask), limit, mask, reduce)


@surrogate("dppo_binary_tv", needs_probabilities=True)
def tv_masked_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    action_log_prob: Tensor,
    divergence_limit: Scalar | None = None,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """``-E[M r A]``, held back by D = |p' - p|, the total variation of taking this action or another.

    p and p' are the old and the new probability, so actions must be discrete: tokens, above all. Default limit 0.15.
    """
    old, new = _probabilities(log_ratio, action_log_prob, mask)
    limit = 0.15 if divergence_limit is None else divergence_limit
    return _held_back(log_ratio, advantage, (new - old).abs(), limit, mask, reduce)


@surrogate("dppo_binary_kl", needs_probabilities=True)
def binary_kl_masked_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    action_log_prob: Tensor,
    divergence_limit: Scalar | None = None,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """``-E[M r A]``, held back by D = p log(p / p') + (1 - p) log((1 - p) / (1 - p')), the KL of taking this action or
    another. Discrete actions only. Default limit 0.05 nats.
    """
    old, new = (
        probability.clamp(max=LARGEST_PROBABILITY) for probability in _probabilities(log_ratio, action_log_prob, mask)
    )
    others = (1 - old) * (torch.log1p(-old) - torch.log1p(-new))
    divergence = others - old * fill_masked(log_ratio, mask).detach()
    limit = 0.05 if divergence_limit is None else divergence_limit
    return _held_back(log_ratio, advantage, divergence, limit, mask, reduce)


@surrogate("kl_bound", weighs_kl=True)
def kl_bounded_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    kl: Tensor,
    kl_coef: Scalar,
    divergence_limit: Scalar | None = None,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """``E[-r A where KL < limit, else kl_coef KL]``: beyond the limit a state has no policy term, and is drawn back.

    The bound of Voelcker et al. 2025 (REPPO); its limit is 0.1 nats, ours 0.03 by default. ``kl_coef`` is the
    multiplier, best steered: ``AdaptiveKL(1.0, 0.03, Lagrangian())``. The penalty is part of this surrogate; no other
    is added.
    """
    limit = 0.03 if divergence_limit is None else divergence_limit
    kl = fill_masked(kl, mask)
    inside = kl.detach() < limit
    ratio = fill_masked(log_ratio, mask).masked_fill(~inside, 0.0).exp()
    return reduce(torch.where(inside, -ratio * fill_masked(advantage, mask), kl_coef * kl), mask)
