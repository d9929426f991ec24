"""The settings of a training on tokens, which users give as ``rollout_buffer_kwargs``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from sb3_ppo_ext.language.inputs import at_least, number_of, one_of
from sb3_ppo_ext.language.training.groups import GROUP_ADVANTAGES
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.objective.registry import KL_ESTIMATORS

CHOICES = {
    "ref_kl": ("reward", "loss", "both"),
    "ref_kl_unit": ("response", "token"),
    "loss_mean": ("token", "response", "length"),
}


@dataclass(frozen=True)
class TokenSettings:
    """The arguments of ``SequenceRolloutBuffer`` of the same names; ``ValueError`` names one that cannot be."""

    ref_kl: str = "reward"
    ref_kl_estimator: str = "k1"
    ref_kl_unit: str = "response"
    missing_eos_penalty: float | None = None
    whiten_rewards: bool = False
    loss_mean: str = "token"
    micro_batch_tokens: int | None = None
    group_advantage: str | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            one_of(choices, name, getattr(self, name))
        if self.group_advantage is not None:
            one_of(tuple(GROUP_ADVANTAGES), "group_advantage", self.group_advantage)
        KL_ESTIMATORS.require(self.ref_kl_estimator, "ref_kl_estimator", besides=("full",))
        self._check_gradient()
        if self.missing_eos_penalty is not None:
            penalty = number_of(self.missing_eos_penalty)
            if penalty is None or not penalty >= 0:
                raise ValueError(f"missing_eos_penalty={self.missing_eos_penalty!r}: at least 0, or None, is needed")
            object.__setattr__(self, "missing_eos_penalty", penalty)
        if self.micro_batch_tokens is not None:
            limit = at_least(1, "micro_batch_tokens", self.micro_batch_tokens)
            object.__setattr__(self, "micro_batch_tokens", limit)

    def _check_gradient(self) -> None:
        """Refuses an estimator that has no gradient in the loss, and warns of one that has none in the reward."""
        estimator = self.ref_kl_estimator
        if self.ref_kl != "reward" and estimator == "k1":
            raise ValueError(
                f'ref_kl_estimator="k1" with ref_kl="{self.ref_kl}": as a loss its gradient is 0 on average; '
                'pass "k2", "k3" or "full"'
            )
        if self.ref_kl == "reward" and estimator in ("k2", "k3", "full"):
            remedy = "both" if estimator == "full" else "loss"
            warnings.warn(
                f'ref_kl_estimator="{estimator}" with ref_kl="reward" hardly holds the policy near its '
                f'reference: as a reward its gradient is about 0 there; pass "k1" (the default), or ref_kl="{remedy}"',
                TrainingWarning,
                stacklevel=5,
            )

    @property
    def without_critic(self) -> bool:
        """True where advantages come from the group's scores alone."""
        return self.group_advantage in GROUP_ADVANTAGES

    @property
    def exact_kl(self) -> bool:
        """True where the KL to the reference is that of the whole distributions."""
        return self.ref_kl_estimator == "full"
