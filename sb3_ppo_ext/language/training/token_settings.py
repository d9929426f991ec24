"""The settings of a training on tokens, which users give as ``rollout_buffer_kwargs``."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from sb3_ppo_ext.language.inputs import at_least, number_of, one_of
from sb3_ppo_ext.language.training.credit import length_lambdas, overlong_penalties, turn_lambdas
from sb3_ppo_ext.language.training.groups import GROUP_ADVANTAGES, WITH_CRITIC
from sb3_ppo_ext.language.training.loss_means import LOSS_MEANS
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.objective.registry import KL_ESTIMATORS

CHOICES = {
    "ref_kl": ("reward", "loss", "both"),
    "ref_kl_unit": ("response", "token"),
    "loss_mean": tuple(LOSS_MEANS),
}

LAMBDAS = {"value_lambda": 1.0, "lambda_alpha": math.inf, "lambda_share": 1.0, "turn_lambda": 1.0}  # name -> highest


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
    share_prompts: bool = False
    group_advantage: str | None = None
    dynamic_sampling: str | None = None
    refill_limit: int = 4
    overlong_penalty: float | None = None
    overlong_buffer: int | None = None
    overlong_filter: bool = False
    success_score: float = 1.0
    value_lambda: float | None = None
    lambda_alpha: float | None = None
    lambda_share: float | None = None
    turn_lambda: float | None = None
    positive_nll_coef: float = 0.0
    critic_epochs: int | None = None
    importance_bound: float | None = 2.0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            one_of(choices, name, getattr(self, name))
        if self.group_advantage is not None:
            one_of((*GROUP_ADVANTAGES, WITH_CRITIC), "group_advantage", self.group_advantage)
        if self.dynamic_sampling is not None:
            one_of(("mask", "refill"), "dynamic_sampling", self.dynamic_sampling)
        if self.dynamic_sampling == "refill" and not self.without_critic:
            raise ValueError(
                f'dynamic_sampling="refill" with group_advantage={self.group_advantage!r}: a critic learns from groups '
                'without a difference too; pass "mask", which leaves them out of the policy\'s loss alone'
            )
        KL_ESTIMATORS.require(self.ref_kl_estimator, "ref_kl_estimator", besides=("full",))
        self._check_gradient()
        for name in ("missing_eos_penalty", "overlong_penalty"):
            if (value := getattr(self, name)) is not None:
                penalty = number_of(value)
                if penalty is None or not penalty >= 0:
                    raise ValueError(f"{name}={value!r}: at least 0, or None, is needed")
                object.__setattr__(self, name, penalty)
        if (coefficient := number_of(self.positive_nll_coef)) is None or not 0 <= coefficient < math.inf:
            raise ValueError(f"positive_nll_coef={self.positive_nll_coef!r}: a number of at least 0 is needed")
        for name in ("micro_batch_tokens", "overlong_buffer", "critic_epochs", "refill_limit"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, at_least(1, name, value))
        if (score := number_of(self.success_score)) is None or not math.isfinite(score):
            raise ValueError(f"success_score={self.success_score!r}: a finite number is needed")
        if self.importance_bound is not None:
            bound = number_of(self.importance_bound)
            if bound is None or not bound >= 1:
                raise ValueError(f"importance_bound={self.importance_bound!r}: at least 1, or None, is needed")
            object.__setattr__(self, "importance_bound", bound)
        self._check_length_rules()
        self._check_lambdas()

    def _check_lambdas(self) -> None:
        """Makes the settings of lambda numbers; refuses those outside their range, and several rules at once."""
        if self.without_critic and self.critic_epochs is not None:
            raise ValueError(f"critic_epochs={self.critic_epochs} with group_advantage={self.group_advantage!r}: none")
        for name, highest in LAMBDAS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if self.without_critic:
                raise ValueError(f"{name}={value!r} with group_advantage={self.group_advantage!r}: it is for a critic")
            number = number_of(value)
            if number is None or not 0 <= number <= highest or (number == 0 and name == "lambda_alpha"):
                limits = "above 0" if name == "lambda_alpha" else "from 0 to 1"
                raise ValueError(f"{name}={value!r}: a number {limits}, or None, is needed")
            object.__setattr__(self, name, number)
        rules = [name for name in LAMBDAS if name != "value_lambda" and getattr(self, name) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} are rules for the same lambda; keep one of them")

    def _check_length_rules(self) -> None:
        """Warns of two rules on length at once, and refuses a buffer without its penalty."""
        if self.overlong_buffer is not None and self.overlong_penalty is None:
            raise ValueError(f"overlong_buffer={self.overlong_buffer}: only with overlong_penalty; pass that too")
        rules = ("missing_eos_penalty", "overlong_penalty", "overlong_filter")
        active = [name for name in rules if getattr(self, name)]
        if len(active) > 1:
            warnings.warn(
                f"{' and '.join(active)} are rules for the same: a response that is too long pays twice, or pays and "
                "is left out; keep one of them",
                TrainingWarning,
                stacklevel=5,
            )

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

    def length_penalties(self, length: np.ndarray, cut_off: np.ndarray, longest: int) -> np.ndarray:
        """The amount that each response of ``length`` tokens loses, in units of the score; the most are ``longest``."""
        penalties = np.zeros(length.shape, np.float32)
        if self.missing_eos_penalty is not None:
            penalties += np.float32(self.missing_eos_penalty) * cut_off
        if self.overlong_penalty is not None:
            buffer = self.overlong_buffer or max(longest // 5, 1)
            penalties += overlong_penalties(length, longest=longest, buffer=buffer, factor=self.overlong_penalty)
        return penalties

    def policy_lambda(self, mask: np.ndarray, gae_lambda: float) -> float | np.ndarray:
        """lambda of the policy's advantages, for all tokens or for each of them [T, N, L]."""
        if self.turn_lambda is not None:
            return turn_lambdas(mask, self.turn_lambda)
        if self.lambda_alpha is None and self.lambda_share is None:
            return gae_lambda
        lambdas = length_lambdas(mask.sum(-1), alpha=self.lambda_alpha, share=self.lambda_share)
        return np.broadcast_to(lambdas[..., None], mask.shape)

    @property
    def has_length_penalty(self) -> bool:
        """True where a response may lose something for its length."""
        return self.missing_eos_penalty is not None or self.overlong_penalty is not None

    @property
    def without_critic(self) -> bool:
        """True where advantages come from the group's scores alone."""
        return self.group_advantage in GROUP_ADVANTAGES

    @property
    def exact_kl(self) -> bool:
        """True where the KL to the reference is that of the whole distributions."""
        return self.ref_kl_estimator == "full"
