"""Action distributions of Stable-Baselines3 that TorchRL has no class for, and TorchRL's own as plain parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributions as torch_distributions
from torch.distributions import Distribution, Independent, Normal, constraints
from torchrl.modules import TanhNormal

from sb3_ppo_ext.objective.distributions import ActionDistribution, Bernoulli, Categorical, Gaussian


class MultiCategorical(Distribution):
    """Several independent choices; ``logits`` is [..., sum(sizes)], one block per choice, an action [..., choices]."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  # as torch declares it
    has_rsample = False

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self.logits = logits
        self.sizes = tuple(sizes)
        blocks = torch.split(logits, list(self.sizes), dim=-1)
        self.choices = [torch_distributions.Categorical(logits=block) for block in blocks]
        super().__init__(logits.shape[:-1], torch.Size([len(self.sizes)]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum over the choices [...]."""
        actions = torch.unbind(value, dim=-1)
        log_probs = [choice.log_prob(action) for choice, action in zip(self.choices, actions, strict=True)]
        return torch.stack(log_probs, dim=-1).sum(dim=-1)

    def entropy(self) -> Tensor:
        """The sum over the choices [...]."""
        return torch.stack([choice.entropy() for choice in self.choices], dim=-1).sum(dim=-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Indices [*sample_shape, ..., choices]."""
        return torch.stack([choice.sample(torch.Size(sample_shape)) for choice in self.choices], dim=-1)

    @property
    def mode(self) -> Tensor:
        """The likeliest of each choice."""
        return torch.stack([choice.probs.argmax(dim=-1) for choice in self.choices], dim=-1)

    deterministic_sample = mode


class IndependentBernoulli(Independent):  # type: ignore[type-arg]  # not generic in every torch
    """Independent bits; ``logits`` is [..., A], an action [..., A] of int8 as in the action space."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(torch_distributions.Bernoulli(logits=logits), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum over the bits [...]."""
        log_prob: Tensor = super().log_prob(value.to(self.base_dist.logits.dtype))  # type: ignore[no-untyped-call]
        return log_prob

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Bits [*sample_shape, ..., A]."""
        return super().sample(torch.Size(sample_shape)).to(torch.int8)

    @property
    def mode(self) -> Tensor:
        """Stable-Baselines3's: a probability of exactly one half rounds to 0."""
        return torch.round(self.base_dist.probs).to(torch.int8)

    deterministic_sample = mode


def torch_parameters(distribution: Distribution) -> ActionDistribution:
    """The parameters of a distribution of torch or TorchRL, event dimensions flattened to one; B is any batch shape.

    A tanh on top leaves the KL as it is, so ``TanhNormal`` counts as the normal below it. ``ValueError`` for a kind
    without an exact KL here.
    """
    if isinstance(distribution, TanhNormal):
        distribution = distribution.base_dist
    if isinstance(distribution, MultiCategorical):
        return Categorical(distribution.logits, distribution.sizes)
    if isinstance(distribution, (torch_distributions.Categorical, torch_distributions.OneHotCategorical)):
        return Categorical(distribution.logits, (distribution.logits.shape[-1],))
    if isinstance(distribution, Independent) and distribution.reinterpreted_batch_ndims > 0:
        base, events = distribution.base_dist, distribution.reinterpreted_batch_ndims
        if isinstance(base, Normal):
            return Gaussian(base.loc.flatten(-events), base.scale.flatten(-events))
        if isinstance(base, torch_distributions.Bernoulli):
            return Bernoulli(base.logits.flatten(-events))
    raise ValueError(f"{type(distribution).__name__} has no exact KL here; use kl_estimator='k3'")
