"""What is worth knowing of a minibatch besides its loss: one vector, taken at once or for all of an epoch together."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from sb3_ppo_ext.objective import losses as objective
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.losses import KL_ESTIMATORS, fill_masked, masked_mean
from sb3_ppo_ext.objective.terms import KnobValues, Objective, Terms, kl_divergence

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
APPROX_KL = STATISTICS.index("approx_kl")


class Measurement(NamedTuple):
    """What the statistics of a minibatch are made of, without gradient."""

    losses: tuple[Tensor, Tensor, Tensor, Tensor]  # the loss and its terms: policy, value, entropy
    log_ratio: Tensor  # [B], or [B, L] with a mask
    kl_exact: Tensor | None
    mask: Tensor | None


def statistics(
    new: Evaluation, minibatch: Minibatch, terms: Terms, loss: Tensor, choices: Objective, knobs: KnobValues
) -> Tensor:
    """What is worth knowing of a minibatch: one vector in the order of ``STATISTICS``, left on its device.

    A KL is NaN where the distributions it needs are not at hand.
    """
    return row_of(measurement_of(new, minibatch, terms, loss), choices, knobs)


@torch.no_grad()
def measurement_of(new: Evaluation, minibatch: Minibatch, terms: Terms, loss: Tensor) -> Measurement:
    """What to keep of a minibatch."""
    exact = None
    if new.distribution is not None and minibatch.distribution is not None:
        exact = kl_divergence(new, minibatch, "exact")
    losses = (loss.detach(), terms.policy.detach(), terms.value.detach(), terms.entropy.detach())
    return Measurement(losses, fill_masked(new.log_prob - minibatch.action_log_prob, new.mask), exact, new.mask)


@torch.no_grad()
def row_of(measurement: Measurement, choices: Objective, knobs: KnobValues) -> Tensor:
    """The statistics of a minibatch in the order of ``STATISTICS``."""
    losses = torch.stack(measurement.losses)
    exact = losses.new_full((), math.nan) if measurement.kl_exact is None else measurement.kl_exact
    return torch.cat((losses, _of_ratio(measurement.log_ratio, measurement.mask, exact, choices, knobs)))


@torch.no_grad()
def rows_of(kept: list[Measurement], choices: Objective, knobs: KnobValues) -> Tensor:
    """The statistics of many minibatches under the same knobs, one row each."""
    tables = []
    for _, group in itertools.groupby(kept, key=lambda one: one.log_ratio.shape):
        measurements = list(group)
        losses = torch.stack([loss for one in measurements for loss in one.losses]).view(len(measurements), -1)
        exact = _stacked(measurements, "kl_exact")
        log_ratio, mask = torch.stack([one.log_ratio for one in measurements]), _stacked(measurements, "mask")
        exact = losses.new_full((len(measurements),), math.nan) if exact is None else exact
        of_each = torch.vmap(_of_ratio, in_dims=(0, None if mask is None else 0, 0, None, None))
        tables.append(torch.cat((losses, of_each(log_ratio, mask, exact, choices, knobs)), dim=1))
    return torch.cat(tables)


def _stacked(measurements: list[Measurement], name: str) -> Tensor | None:
    found = [getattr(one, name) for one in measurements]
    return None if found[0] is None else torch.stack(found)


def _of_ratio(log_ratio: Tensor, mask: Tensor | None, exact: Tensor, choices: Objective, knobs: KnobValues) -> Tensor:
    """The statistics that follow from the ratio, and the exact KL among them."""
    ratio = log_ratio.exp()
    k3 = objective.kl_k3(log_ratio, mask)
    by_estimator = {"exact": exact, "k3": k3}.get(choices.kl_estimator)
    if by_estimator is None:
        by_estimator = KL_ESTIMATORS[choices.kl_estimator](log_ratio, mask)
    low = masked_mean((ratio < 1 - knobs.low).float(), mask)
    high = masked_mean((ratio > 1 + knobs.high).float(), mask)
    return torch.stack((k3, exact, by_estimator, low, high, ratio.max()))
