"""The rollout buffer of responses: every token with its log-probability, value and advantage."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor

from sb3_ppo_ext.language.envs.spaces import require_spaces
from sb3_ppo_ext.language.inputs import at_least, number_of
from sb3_ppo_ext.language.training.credit import token_advantages, token_kl, token_rewards, whitened
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.objective.registry import KL_ESTIMATORS
from sb3_ppo_ext.rollout.token_buffer import TokenRolloutBuffer
from sb3_ppo_ext.unknown_arguments import named_arguments, refuse_unknown

CHOICES = {
    "ref_kl": ("reward", "loss", "both"),
    "ref_kl_unit": ("response", "token"),
    "loss_mean": ("token", "response", "length"),
}


class SequenceRolloutBuffer(TokenRolloutBuffer):
    """T steps of N environments, each step a response of up to L tokens.

    ``rewards`` [T, N] stay the raw scores; ``log_probs``, ``values``, ``advantages`` and ``returns`` are [T, N, L],
    with 0 outside of ``masks``. Settings, given as ``rollout_buffer_kwargs``:

    :param ref_kl: where the penalty ``ref_kl_coef`` on the KL to the reference goes: into the "reward" of every token
        (Ziegler et al. 2019), the "loss" (as in GRPO), or "both"
    :param ref_kl_estimator: per token: "k1", "k2", "k3", or one that you registered, from the log-probability of the
        sampled token; or "full", the exact KL of the two distributions over the vocabulary, which has no noise and
        takes a second pass: over the rollout for the reward, in every minibatch for the loss. As a reward it is k1 that
        pulls the policy back, with the gradient of the KL on average; k2 and k3 have none near the reference, and full
        only where a token leads, so that it belongs into "both". As a loss it is the others, and k1 has no gradient on
        average
    :param ref_kl_unit: the KL a controller of ``ref_kl_coef`` is to steer: in nats per "response" or per "token"
    :param missing_eos_penalty: taken off the score of a response that was cut off before it ended, or None
    :param whiten_rewards: brings the tokens' rewards to unit variance over the rollout (their mean stays)
    :param loss_mean: over each optimizer step's "token"s; its "response"s, each the mean over its tokens; or its
        responses with the sum over their tokens divided by the greatest "length" (Liu et al. 2025, Dr. GRPO)
    :param micro_batch_tokens: how many tokens, padding included, go through the model at once; None: a whole minibatch.
        Memory only: the gradient does not depend on it
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *args: Any,
        ref_kl: str = "reward",
        ref_kl_estimator: str = "k1",
        ref_kl_unit: str = "response",
        missing_eos_penalty: float | None = None,
        whiten_rewards: bool = False,
        loss_mean: str = "token",
        micro_batch_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        _, self.response_space = require_spaces(observation_space, action_space)
        self.ref_kl = ref_kl
        self.ref_kl_estimator = ref_kl_estimator
        self.ref_kl_unit = ref_kl_unit
        self.missing_eos_penalty = missing_eos_penalty
        self.whiten_rewards = whiten_rewards
        self.loss_mean = loss_mean
        self.micro_batch_tokens = micro_batch_tokens
        known = named_arguments(SequenceRolloutBuffer.__init__, TokenRolloutBuffer.__init__)
        refuse_unknown(type(self).__name__, kwargs, known)
        self._check()
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)

    def _check(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise ValueError(f"{name}={getattr(self, name)!r}: one of {choices} is needed")
        KL_ESTIMATORS.require(self.ref_kl_estimator, "ref_kl_estimator", besides=("full",))
        if self.ref_kl != "reward" and self.ref_kl_estimator == "k1":
            raise ValueError(
                f'ref_kl_estimator="k1" with ref_kl="{self.ref_kl}": as a loss its gradient is 0 on average; '
                'pass "k2", "k3" or "full"'
            )
        if self.ref_kl == "reward" and self.ref_kl_estimator in ("k2", "k3", "full"):
            other = "both" if self.ref_kl_estimator == "full" else "loss"
            warnings.warn(
                f'ref_kl_estimator="{self.ref_kl_estimator}" with ref_kl="reward" hardly holds the policy near its '
                f'reference: as a reward its gradient is about 0 there; pass "k1" (the default), or ref_kl="{other}"',
                TrainingWarning,
                stacklevel=3,
            )
        if self.missing_eos_penalty is not None:
            penalty = number_of(self.missing_eos_penalty)
            if penalty is None or not penalty >= 0:
                raise ValueError(f"missing_eos_penalty={self.missing_eos_penalty!r}: at least 0, or None, is needed")
            self.missing_eos_penalty = penalty
        if self.micro_batch_tokens is not None:
            self.micro_batch_tokens = at_least(1, "micro_batch_tokens", self.micro_batch_tokens)

    def reset(self) -> None:
        """Empties the buffer; the arrays of the last rollout are left to whoever holds them."""
        super().reset()
        shape = (self.buffer_size, self.n_envs, self.action_dim)
        for name in ("values", "log_probs", "advantages", "returns"):
            setattr(self, name, np.zeros(shape, np.float32))
        self.masks = np.zeros(shape, bool)
        self.ended = np.zeros(shape[:2], bool)
        self.ref_log_probs = None
        self.full_kl: np.ndarray | None = None

    def add(  # type: ignore[override]  # observations are a dict
        self,
        obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """One response per environment: ``action``, ``value`` and ``log_prob`` are [N, L]."""
        if tuple(log_prob.shape) != (self.n_envs, self.action_dim):
            raise ValueError(
                f"log_prob is {tuple(log_prob.shape)}; [N, L] = {(self.n_envs, self.action_dim)} is needed, as "
                "LanguageModelPolicy gives it"
            )
        mask = self.response_space.mask_of(np.asarray(action))
        for key, array in self.observations.items():
            array[self.pos] = obs[key]
        self.actions[self.pos] = action
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.masks[self.pos] = mask
        self.values[self.pos] = np.where(mask, value.cpu().numpy(), 0.0)
        self.log_probs[self.pos] = np.where(mask, log_prob.cpu().numpy(), 0.0)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Advantages from the scores alone; ``penalize`` computes them again with the KL to the reference."""
        self.last_values = last_values.cpu().numpy().flatten()
        self.ended = np.concatenate((self.episode_starts[1:], np.asarray(dones, np.float32)[None])).astype(bool)
        self._compute_advantages(None, 0.0)

    def penalize(self, ref_log_probs: np.ndarray, ref_kl_coef: float, full_kl: np.ndarray | None = None) -> None:
        """Advantages anew, with the penalty in the reward where it is to be there.

        ``ref_log_probs`` is [T, N, L], and so is ``full_kl``, the exact KL, which ``ref_kl_estimator="full"`` needs.
        """
        self.ref_log_probs, self.full_kl = ref_log_probs, full_kl
        in_reward = ref_kl_coef != 0 and self.ref_kl != "loss"
        self._compute_advantages(self.token_kl() if in_reward else None, ref_kl_coef)

    def token_kl(self, estimator: str | None = None) -> np.ndarray:
        """KL(policy || reference) of every token [T, N, L], in nats."""
        assert self.ref_log_probs is not None, "penalize() comes first"
        estimator = estimator or self.ref_kl_estimator
        if estimator == "full":
            assert self.full_kl is not None
            return np.where(self.masks, self.full_kl, 0.0)
        return token_kl(self.log_probs, self.ref_log_probs, self.masks, estimator)

    def cut_off(self) -> np.ndarray:
        """Which responses [T, N] reached the last slot without ending."""
        return self.response_space.cut_off(self.actions, self.masks)

    def _compute_advantages(self, kl: np.ndarray | None, ref_kl_coef: float) -> None:
        score = self.rewards
        if self.missing_eos_penalty is not None:
            score = score - self.missing_eos_penalty * self.cut_off()
        reward = token_rewards(score, self.masks, kl=kl, ref_kl_coef=ref_kl_coef)
        if self.whiten_rewards:
            reward = whitened(reward, self.masks, shift_mean=False)
        self.token_rewards = reward
        self.advantages = token_advantages(
            reward,
            self.values,
            self.masks,
            last_value=self.last_values,
            ended=self.ended,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        self.returns = self.advantages + self.values

    def get(self, batch_size: int | None = None) -> Generator[DictRolloutBufferSamples, None, None]:  # type: ignore[override]  # as DictRolloutBuffer
        """Not for algorithms that train on one log-probability per action."""
        raise TypeError("SequenceRolloutBuffer holds tokens: PPOX trains on it with LanguageModelPolicy, PPO cannot")

    def flat(self, array: np.ndarray) -> Tensor:
        """[T, N, ...] as [T * N, ...] on the buffer's device."""
        return torch.from_numpy(array.reshape(-1, *array.shape[2:])).to(self.device)
