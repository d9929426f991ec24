"""Composing the objective: from an evaluation and a minibatch to terms, and the one place where they are weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sb3_ppo_ext import objective
from sb3_ppo_ext.distributions import exact_kl
from sb3_ppo_ext.minibatches import Minibatch
from sb3_ppo_ext.objective import KL_ESTIMATORS, VALUE_CLIPS, Scalar, fill_masked, masked_mean
from sb3_ppo_ext.policies import Evaluation


class KnobValues(NamedTuple):
    """The numbers in force for one minibatch. A 0-d tensor does for any of them."""

    clip_range: Scalar
    clip_range_high: Scalar | None = None
    clip_range_vf: Scalar | None = None
    ent_coef: Scalar = 0.0
    vf_coef: Scalar = 0.5
    kl_coef: Scalar = 0.0
    ref_kl_coef: Scalar = 0.0
    learning_rate: Scalar = 3e-4  # for the optimizer; no term depends on it

    @property
    def low(self) -> Scalar:
        """The ratio is clipped below at ``1 - low``."""
        return self.clip_range

    @property
    def high(self) -> Scalar:
        """The ratio is clipped above at ``1 + high``."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high


@dataclass(frozen=True)
class Objective:
    """Which of the alternatives is minimised; the arguments of PPOX of the same names."""

    surrogate: str = "clip"
    dual_clip: float | None = None
    penalized: bool = False  # whether a KL penalty is part of the loss
    kl_estimator: str = "exact"
    value_clip: str = "sb3"
    normalize_advantage: bool = True  # over each minibatch
    ref_kl_estimator: str | None = None  # of the KL to the reference in the loss; None: none there


class Terms(NamedTuple):
    """Unweighted scalars, to be minimised."""

    policy: Tensor
    value: Tensor
    entropy: Tensor  # -E[H]
    kl: Tensor | None  # None: no penalty in the loss
    ref_kl: Tensor | None = None  # likewise, to the frozen reference

    def weigh(self, knobs: KnobValues) -> Tensor:
        """The loss. The only place where weights meet terms, in Stable-Baselines3's order of summation."""
        loss = self.policy + knobs.ent_coef * self.entropy + knobs.vf_coef * self.value
        loss = loss if self.kl is None else loss + knobs.kl_coef * self.kl
        return loss if self.ref_kl is None else loss + knobs.ref_kl_coef * self.ref_kl


def ppo_terms(
    new: Evaluation,
    minibatch: Minibatch,
    choices: Objective,
    knobs: KnobValues,
    *,
    value_scale: Scalar | None = None,
) -> Terms:
    """The terms of PPO's loss for one minibatch.

    ``value_scale`` (reward units) makes the value term, and the range of its clip, count in that unit.
    """
    mask = new.mask
    advantage = minibatch.advantage
    if choices.normalize_advantage:
        advantage = objective.normalized(advantage, mask)
    log_ratio = new.log_prob - minibatch.action_log_prob
    return Terms(
        _policy_term(log_ratio, advantage, choices, knobs, mask),
        _value_term(new.value, minibatch, choices, knobs, mask, value_scale),
        objective.entropy_loss(new.entropy, new.log_prob, mask),
        kl_divergence(new, minibatch, choices.kl_estimator) if choices.penalized else None,
        _ref_kl_term(new, minibatch, choices, mask),
    )


def _policy_term(
    log_ratio: Tensor, advantage: Tensor, choices: Objective, knobs: KnobValues, mask: Tensor | None
) -> Tensor:
    if choices.surrogate == "spo":
        return objective.spo_surrogate(log_ratio, advantage, clip=knobs.clip_range, mask=mask)
    if choices.surrogate == "none":
        return objective.unclipped_surrogate(log_ratio, advantage, mask=mask)
    if choices.dual_clip is not None:
        return objective.dual_clipped_surrogate(
            log_ratio, advantage, low=knobs.low, high=knobs.high, dual_clip=choices.dual_clip, mask=mask
        )
    return objective.clipped_surrogate(log_ratio, advantage, low=knobs.low, high=knobs.high, mask=mask)


def _ref_kl_term(new: Evaluation, minibatch: Minibatch, choices: Objective, mask: Tensor | None) -> Tensor | None:
    """KL(new || reference) in nats per action; the actions are taken for samples of the new policy."""
    if choices.ref_kl_estimator is None:
        return None
    assert minibatch.ref_log_prob is not None, "kept wherever it is asked for"
    return KL_ESTIMATORS[choices.ref_kl_estimator](minibatch.ref_log_prob - new.log_prob, mask)


def _value_term(
    value: Tensor,
    minibatch: Minibatch,
    choices: Objective,
    knobs: KnobValues,
    mask: Tensor | None,
    scale: Scalar | None,
) -> Tensor:
    target, old_value = minibatch.value_target, minibatch.state_value
    if scale is not None:
        value, target, old_value = value / scale, target / scale, old_value / scale
    if knobs.clip_range_vf is None:
        return objective.value_loss(value, target, mask=mask)
    clipped_loss = VALUE_CLIPS[choices.value_clip]
    return clipped_loss(value, target, old_value, clip=knobs.clip_range_vf, mask=mask)


def kl_divergence(new: Evaluation, minibatch: Minibatch, estimator: str) -> Tensor:
    """KL(old || new) in nats per action: exact, or by a sampled estimator."""
    if estimator != "exact":
        return KL_ESTIMATORS[estimator](new.log_prob - minibatch.action_log_prob, new.mask)
    assert minibatch.distribution is not None and new.distribution is not None, "kept wherever it is asked for"
    return masked_mean(exact_kl(minibatch.distribution, new.distribution), new.mask)


STATISTICS = (
    "loss",
    "policy_gradient_loss",
    "value_loss",
    "entropy_loss",
    "approx_kl",  # k3, under Stable-Baselines3's name
    "kl_exact",
    "kl",  # by kl_estimator
    "clip_fraction_low",
    "clip_fraction_high",
    "ratio_max",
)


@torch.no_grad()
def statistics(
    new: Evaluation, minibatch: Minibatch, terms: Terms, loss: Tensor, choices: Objective, knobs: KnobValues
) -> Tensor:
    """What is worth knowing of a minibatch: one vector in the order of ``STATISTICS``, left on its device.

    A KL is NaN where the distributions it needs are not at hand.
    """
    mask = new.mask
    log_ratio = fill_masked(new.log_prob - minibatch.action_log_prob, mask)
    ratio = log_ratio.exp()
    k3 = objective.kl_k3(log_ratio, mask)
    exact = loss.new_full((), float("nan"))
    if new.distribution is not None and minibatch.distribution is not None:
        exact = kl_divergence(new, minibatch, "exact")
    by_estimator = {"exact": exact, "k3": k3}.get(choices.kl_estimator)
    if by_estimator is None:
        by_estimator = kl_divergence(new, minibatch, choices.kl_estimator)
    return torch.stack(
        (
            loss,
            terms.policy,
            terms.value,
            terms.entropy,
            k3,
            exact,
            by_estimator,
            masked_mean((ratio < 1 - knobs.low).float(), mask),
            masked_mean((ratio > 1 + knobs.high).float(), mask),
            ratio.max(),
        )
    )
