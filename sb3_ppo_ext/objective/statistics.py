"""The statistics of a minibatch, computed at once or for all minibatches of an epoch together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.distributions import split_kl
from sb3_ppo_ext.objective.losses import fill_masked, k3_of_slots, kl_k2, masked_mean
from sb3_ppo_ext.objective.registry import KL_ESTIMATORS
from sb3_ppo_ext.objective.terms import KnobValues, Objective, Terms, kl_divergence


class Statistics(NamedTuple):
    """The statistics of a minibatch as 0-d tensors, or of M minibatches as [M]: no gradient, on the loss's device.

    KLs are in nats per action, and NaN where the distributions they need are not at hand. The last five are those of
    tokens (under a mask), NaN for other actions.
    """

    loss: Tensor
    policy_gradient_loss: Tensor
    value_loss: Tensor
    entropy_loss: Tensor
    approx_kl: Tensor  # k3, under Stable-Baselines3's name
    kl_exact: Tensor
    kl: Tensor  # by kl_estimator
    clip_fraction_low: Tensor
    clip_fraction_high: Tensor
    ratio_max: Tensor
    kl_std: Tensor  # that of the deviation alone, where the penalty weighs it apart
    log_ratio_max: Tensor  # the greatest |log r|
    ratio_mean: Tensor
    kl_k2: Tensor
    policy_clipped: Tensor  # the fraction of tokens with the clipped policy loss
    value_clipped: Tensor  # the fraction of tokens with the clipped value loss

    def row(self) -> Tensor:
        """All of them in one tensor [..., K]."""
        return torch.stack(self, dim=-1)

    @classmethod
    def of_row(cls, row: Tensor) -> Statistics:
        """The statistics in a tensor that ``row`` made."""
        return cls(*row[..., : len(cls._fields)].unbind(dim=-1))


MAXIMA = [Statistics._fields.index(name) for name in ("ratio_max", "log_ratio_max")]  # the others are means
OF_TOKENS = Statistics._fields[Statistics._fields.index("log_ratio_max") :]


class Measurement(NamedTuple):
    """The tensors that the statistics of a minibatch are computed from, without gradient."""

    losses: tuple[Tensor, Tensor, Tensor, Tensor]  # the loss and its terms: policy, value, entropy
    log_ratio: Tensor  # [B], or [B, L] with a mask
    kl_exact: Tensor | None
    mask: Tensor | None
    kl_std: Tensor | None = None


def statistics(
    new: Evaluation, minibatch: Minibatch, terms: Terms, loss: Tensor, choices: Objective, knobs: KnobValues
) -> Statistics:
    """The statistics of one minibatch."""
    measurement = measurement_of(new, minibatch, terms, loss)
    found = statistics_of(measurement, choices, knobs)
    return found if new.mask is None else with_tokens(found, new, minibatch, measurement.log_ratio, knobs)


@torch.no_grad()
def measurement_of(new: Evaluation, minibatch: Minibatch, terms: Terms, loss: Tensor) -> Measurement:
    """The tensors of a minibatch to compute its statistics from, at once or later."""
    exact = None
    if new.distribution is not None and minibatch.distribution is not None:
        exact = kl_divergence(new, minibatch, "exact")
    losses = (loss.detach(), terms.policy.detach(), terms.value.detach(), terms.entropy.detach())
    log_ratio = fill_masked(new.log_prob - minibatch.action_log_prob, new.mask)
    return Measurement(losses, log_ratio, exact, new.mask, _kl_of_deviation(new, minibatch, terms))


def _kl_of_deviation(new: Evaluation, minibatch: Minibatch, terms: Terms) -> Tensor | None:
    if terms.kl_std is None:
        return None
    assert minibatch.distribution is not None and new.distribution is not None, "the term is made of them"
    return masked_mean(split_kl(minibatch.distribution, new.distribution)[1], new.mask)


@torch.no_grad()
def statistics_of(measurement: Measurement, choices: Objective, knobs: KnobValues) -> Statistics:
    """The statistics that follow from a measurement; those of tokens are NaN."""
    unknown = measurement.losses[0].new_full((), math.nan)
    exact = unknown if measurement.kl_exact is None else measurement.kl_exact
    of_ratio = _of_ratio(measurement.log_ratio, measurement.mask, exact, choices, knobs)
    kl_std = unknown if measurement.kl_std is None else measurement.kl_std
    return Statistics(*measurement.losses, *of_ratio, *(kl_std, *(unknown for _ in OF_TOKENS)))


@torch.no_grad()
def statistics_of_all(measurements: Sequence[Measurement], choices: Objective, knobs: KnobValues) -> Statistics:
    """The statistics of M minibatches under the same knobs, in as many operations as there are shapes of them."""
    tables = []
    for _, group in itertools.groupby(measurements, key=lambda measurement: measurement.log_ratio.shape):
        alike = list(group)
        losses = torch.stack([loss for measurement in alike for loss in measurement.losses]).view(len(alike), -1)
        unknown = losses.new_full((len(alike),), math.nan)
        exact, mask, kl_std = (_stacked(alike, name) for name in ("kl_exact", "mask", "kl_std"))
        log_ratio = torch.stack([measurement.log_ratio for measurement in alike])
        of_each = torch.vmap(_of_ratio, in_dims=(0, None if mask is None else 0, 0, None, None))
        of_ratio = of_each(log_ratio, mask, unknown if exact is None else exact, choices, knobs)
        kl_std = unknown if kl_std is None else kl_std
        tables.append(Statistics(*losses.unbind(dim=1), *of_ratio, *(kl_std, *(unknown for _ in OF_TOKENS))))
    return Statistics(*map(torch.cat, zip(*tables, strict=True)))


def mean_weights(share: Tensor) -> Tensor:
    """The weight [K] of each statistic of some rows in that of all rows: their ``share`` (0-d), and 1 for a maximum."""
    return torch.stack(
        [torch.ones_like(share) if index in MAXIMA else share for index in range(len(Statistics._fields))]
    )


def _stacked(measurements: list[Measurement], name: str) -> Tensor | None:
    found = [getattr(measurement, name) for measurement in measurements]
    return None if found[0] is None else torch.stack(found)


def _of_ratio(
    log_ratio: Tensor, mask: Tensor | None, exact: Tensor, choices: Objective, knobs: KnobValues
) -> tuple[Tensor, ...]:
    """The statistics from ``approx_kl`` to ``ratio_max``, in their order."""
    ratio = log_ratio.exp()
    k3 = masked_mean(k3_of_slots(log_ratio, ratio), mask)  # masked slots hold 0 already
    by_estimator = {"exact": exact, "k3": k3}.get(choices.kl_estimator)
    if by_estimator is None:
        by_estimator = KL_ESTIMATORS[choices.kl_estimator](log_ratio, mask=mask, reduce=masked_mean)
    low = masked_mean((ratio < 1 - knobs.low).float(), mask)
    high = masked_mean((ratio > 1 + knobs.high).float(), mask)
    return (k3, exact, by_estimator, low, high, ratio.max())


@torch.no_grad()
def with_tokens(
    found: Statistics, new: Evaluation, minibatch: Minibatch, log_ratio: Tensor, knobs: KnobValues
) -> Statistics:
    """``found`` with the statistics of tokens.

    A clipped loss is the larger one; ``clip_fraction`` counts ratios outside the range, on the harmless side too.
    """
    mask, ratio, advantage = new.mask, log_ratio.exp(), fill_masked(minibatch.advantage, new.mask)
    clipped = torch.clamp(ratio, 1 - knobs.low, 1 + knobs.high)  # type: ignore[arg-type]  # numbers or tensors
    worse = (-advantage * clipped > -advantage * ratio).to(ratio.dtype)
    measured = (
        log_ratio.abs().max(),
        masked_mean(ratio, mask),
        kl_k2(log_ratio, mask),
        masked_mean(worse, mask),
        value_clipped(new.value, mask, minibatch, knobs),
    )
    return found._replace(**{name: value.to(ratio.dtype) for name, value in zip(OF_TOKENS, measured, strict=True)})


def value_clipped(value: Tensor, mask: Tensor | None, minibatch: Minibatch, knobs: KnobValues) -> Tensor:
    """The fraction of the tokens under ``mask`` with a clipped value loss above the plain value loss."""
    clip = knobs.clip_range_vf
    if clip is None:
        return value.new_zeros(())
    columns = (value, minibatch.state_value, minibatch.value_target)
    value, old, target = (fill_masked(column, mask) for column in columns)
    clipped = old + torch.clamp(value - old, -clip, clip)  # type: ignore[arg-type]  # numbers or tensors
    return masked_mean(((clipped - target).square() > (value - target).square()).to(value.dtype), mask)


def of_micro_batches(results: Sequence[Statistics], weights: Sequence[Tensor]) -> Statistics:
    """The statistics of a minibatch from those of its micro-batches and their shares of its tokens.

    The shares of the loss are added up; a maximum is the greatest of them.
    """
    table = torch.stack([result.row() for result in results])
    found = Statistics.of_row((table * torch.stack(list(weights))[:, None]).sum(dim=0))
    columns = Statistics.of_row(table)
    return found._replace(
        loss=columns.loss.sum(), ratio_max=columns.ratio_max.max(), log_ratio_max=columns.log_ratio_max.max()
    )
