"""Parameters of the policy's action distribution, and the exact KL divergence between two of one kind.

Plain tensors with B rows, so that they can be kept from the rollout, gathered by row and traced; under TorchRL's
default names (``loc``, ``scale``, ``logits``). Every ``kl_to`` returns [B], in nats per action, **summed over the
action's dimensions**: the KL of the joint distribution, as in the PPO paper and rsl_rl. (Stable-Baselines3's
``kl_divergence`` leaves Gaussian and Bernoulli dimensions unsummed, which makes it smaller by their number.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from stable_baselines3.common import distributions as sb3
from torch import Tensor
from torch.nn.functional import logsigmoid


class Gaussian(NamedTuple):
    """Independent normal dimensions, ``loc`` and ``scale`` [B, A]. Squashing through tanh leaves the KL as it is."""

    loc: Tensor
    scale: Tensor

    def kl_to(self, other: Gaussian) -> Tensor:
        """KL(self || other) = sum_a log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2."""
        spread = (self.scale**2 + (self.loc - other.loc) ** 2) / (2 * other.scale**2)
        return ((other.scale / self.scale).log() + spread - 0.5).sum(dim=-1)

    def kl_of_mean(self, other: Gaussian) -> Tensor:
        """KL(self || self with the mean of other) = sum_a (m - m')^2 / (2 s^2)."""
        return ((self.loc - other.loc) ** 2 / (2 * self.scale**2)).sum(dim=-1)

    def kl_of_deviation(self, other: Gaussian) -> Tensor:
        """KL(self || self with the deviation of other) = sum_a log(s'/s) + s^2 / (2 s'^2) - 1/2."""
        return ((other.scale / self.scale).log() + self.scale**2 / (2 * other.scale**2) - 0.5).sum(dim=-1)


class Categorical(NamedTuple):
    """One or several choices; ``logits`` is [B, sum(sizes)], one block per choice."""

    logits: Tensor
    sizes: tuple[int, ...]

    def kl_to(self, other: Categorical) -> Tensor:
        """KL(self || other) = sum over the choices of sum_i p_i (log p_i - log p'_i)."""
        mine, theirs = (torch.split(logits, list(self.sizes), -1) for logits in (self.logits, other.logits))
        return torch.stack([_categorical_kl(p, q) for p, q in zip(mine, theirs, strict=True)]).sum(dim=0)


class Bernoulli(NamedTuple):
    """Independent bits; ``logits`` is [B, A]."""

    logits: Tensor

    def kl_to(self, other: Bernoulli) -> Tensor:
        """KL(self || other) = sum_a p log(p / p') + (1 - p) log((1 - p) / (1 - p'))."""
        p = torch.sigmoid(self.logits)
        on = logsigmoid(self.logits) - logsigmoid(other.logits)
        off = logsigmoid(-self.logits) - logsigmoid(-other.logits)
        return (p * on + (1 - p) * off).sum(dim=-1)


ActionDistribution = Gaussian | Categorical | Bernoulli

# What ``parameters_of`` reads; DiagGaussianDistribution includes the squashed one.
GAUSSIANS = (sb3.DiagGaussianDistribution, sb3.StateDependentNoiseDistribution)
KNOWN_DISTRIBUTIONS = (
    *GAUSSIANS,
    sb3.CategoricalDistribution,
    sb3.MultiCategoricalDistribution,
    sb3.BernoulliDistribution,
)


def _categorical_kl(mine: Tensor, theirs: Tensor) -> Tensor:
    log_p, log_q = mine.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
    p = log_p.exp()
    # An action masked out by a logit of -inf has p = 0 and contributes nothing; 0 * (-inf - -inf) would be NaN.
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(dim=-1)


def exact_kl(old: ActionDistribution, new: ActionDistribution) -> Tensor:
    """KL(old || new) [B] of two distributions of the same kind."""
    if type(old) is not type(new):
        raise ValueError(f"no exact KL between {type(old).__name__} and {type(new).__name__}")
    return old.kl_to(new)  # type: ignore[arg-type]  # same kind, checked just above


def split_kl(old: ActionDistribution, new: ActionDistribution) -> tuple[Tensor, Tensor]:
    """The KL [B] that the change of the mean alone makes, and that of the deviation alone; only of Gaussians.

    To the second order in the change they add up to ``exact_kl``. Neither has a gradient in the other's parameter, so
    the deviation can be held without holding the mean (Abdolmaleki et al. 2018, "Relative Entropy Regularized Policy
    Iteration"; V-MPO, Song et al. 2020).
    """
    if not (isinstance(old, Gaussian) and isinstance(new, Gaussian)):
        raise ValueError(f"kl_coef_std: a {type(new).__name__} has no mean and deviation to weigh apart; pass None")
    return old.kl_of_mean(new), old.kl_of_deviation(new)


def parameters_of(distribution: sb3.Distribution) -> ActionDistribution:
    """The current parameters of one of Stable-Baselines3's distributions; ``ValueError`` for an unknown kind."""
    if isinstance(distribution, GAUSSIANS):
        normal = distribution.distribution
        return Gaussian(normal.mean, normal.stddev)
    if isinstance(distribution, sb3.CategoricalDistribution):
        logits = distribution.distribution.logits
        return Categorical(logits, (logits.shape[-1],))
    if isinstance(distribution, sb3.MultiCategoricalDistribution):
        blocks = [categorical.logits for categorical in distribution.distribution]
        return Categorical(torch.cat(blocks, dim=-1), tuple(block.shape[-1] for block in blocks))
    if isinstance(distribution, sb3.BernoulliDistribution):
        return Bernoulli(distribution.distribution.logits)
    raise ValueError(f"{type(distribution).__name__} has no exact KL here; use kl_estimator='k3'")


def gathered(distribution: ActionDistribution, rows: Tensor) -> ActionDistribution:
    """The distribution at ``rows``."""
    if isinstance(distribution, Gaussian):
        return Gaussian(distribution.loc[rows], distribution.scale[rows])
    if isinstance(distribution, Categorical):
        return Categorical(distribution.logits[rows], distribution.sizes)
    return Bernoulli(distribution.logits[rows])


def concatenated(chunks: list[ActionDistribution]) -> ActionDistribution:
    """The rows of all ``chunks``, which are of the same kind, in their order."""
    first = chunks[0]
    if isinstance(first, Categorical):
        return Categorical(torch.cat([chunk[0] for chunk in chunks]), first.sizes)
    return type(first)(*(torch.cat(column) for column in zip(*chunks, strict=True)))
