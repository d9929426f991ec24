"""The rollout buffer of responses: every token with its log-probability, value and advantage."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor

from sb3_ppo_ext.language.envs.spaces import require_spaces
from sb3_ppo_ext.language.training.credit import token_advantages, token_kl, token_rewards, whitened
from sb3_ppo_ext.language.training.groups import Episodes, critic_corrections, episode_advantages, informative
from sb3_ppo_ext.language.training.importance import importance_weights, with_all_rows
from sb3_ppo_ext.language.training.refill import Draws, no_draws, rows_completed
from sb3_ppo_ext.language.training.token_settings import TokenSettings
from sb3_ppo_ext.rollout.token_buffer import TokenRolloutBuffer
from sb3_ppo_ext.unknown_arguments import named_arguments, refuse_unknown


class SequenceRolloutBuffer(TokenRolloutBuffer):
    """T steps of N environments, each step a response of up to L tokens.

    ``rewards`` [T, N] stay the raw scores; ``log_probs``, ``values``, ``advantages`` and ``returns`` are [T, N, L],
    with 0 outside of ``masks``. Settings, given as ``rollout_buffer_kwargs``:

    :param ref_kl: the place of the penalty ``ref_kl_coef`` on the KL to the reference: the "reward" of every token
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
    :param share_prompts: a prompt and the group of responses to it are one row, in which the model computes it once;
        minibatches have whole groups then
    :param group_advantage: with ``value="none"``, the baseline among the responses to one prompt: "rloo", "grpo",
        "dr_grpo", "batch", or your own (``training.groups.GROUP_ADVANTAGES``). A response's score, a KL in the reward
        included, is then credited to all of its tokens; ``gamma``, ``gae_lambda`` and the normalisation of minibatches
        do not apply. ``advantage_scope="rollout"`` does, and makes of "dr_grpo" REINFORCE++'s baseline. With a critic,
        "leave_one_out" takes off GAE the mean error of the values at the prompt, over the group's other responses
    :param dynamic_sampling: "mask" leaves groups whose scores are all equal out of the policy's loss, and its mean; the
        value function learns from them all the same. "refill", without a critic, draws others in their place. Scores
        are the environment's, without penalties (DAPO)
    :param refill_limit: at most so many times as many responses as a rollout has are drawn for it
    :param overlong_penalty: what the longest response loses; in the last ``overlong_buffer`` tokens before that (None:
        a fifth of the longest response) the loss rises to it from 0 (DAPO)
    :param overlong_filter: leaves responses that were cut off out of the policy's loss, and its mean (DAPO). One of the
        rules on length is enough
    :param value_lambda: lambda of the value function's targets, 1 in VC-PPO and VAPO; None: that of the advantages
    :param lambda_alpha: lambda of the advantages by the response's length l, 1 - 1 / (alpha * l): 0.05 in VAPO, for
        thousands of tokens; 1 to 5 for short responses. It takes the place of ``gae_lambda``, as the next two do
    :param lambda_share: the same as share^(1 / (l - 1)): this share of the score's error reaches the first token
    :param turn_lambda: lambda from the end of a response to the next one of its episode; within a response it is 1
    :param positive_nll_coef: weight of the negative log-likelihood of right responses in the loss (0.1 in VAPO); its
        mean, by ``loss_mean``, is over those of the whole optimizer step
    :param critic_epochs: epochs of the value function, which goes on alone after ``n_epochs``; None: as many as these
    :param importance_bound: where a sampler mu draws from another distribution than the policy pi, tokens have the
        weight min(pi / mu, bound) in the policy's loss; at least 1, and None leaves the weights off
    :param success_score: from this score on, as the environment gives it, a response is right; an environment's own
        rule (``PromptVecEnv(..., success=...)``) comes first
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        n_envs: int = 1,
        **settings: Any,
    ) -> None:
        self.last_successes: Callable[[], np.ndarray | None] | None = None  # of the environments' last step
        refuse_unknown(type(self).__name__, settings, named_arguments(SequenceRolloutBuffer.__init__, TokenSettings))
        self.settings = TokenSettings(**settings)
        self.draws: Draws | None = no_draws([]) if self.settings.dynamic_sampling == "refill" else None
        _, self.response_space = require_spaces(observation_space, action_space)
        longest, room = self.response_space.max_new_tokens, self.settings.overlong_buffer
        if room is not None and room > longest:
            raise ValueError(f"overlong_buffer={room}: the longest response has {longest} tokens; pass fewer")
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Empties the buffer; its arrays are new ones, so that those of the last rollout stay as they are."""
        super().reset()
        shape = (self.buffer_size, self.n_envs, self.action_dim)
        for name in ("values", "log_probs", "advantages", "returns"):
            setattr(self, name, np.zeros(shape, np.float32))
        self.masks = np.zeros(shape, bool)
        self.ended = np.zeros(shape[:2], bool)
        self.successes = np.full(shape[:2], -1, np.int8)  # 1 or 0 where the environments have a rule of success
        self.group_ids = np.full(shape[:2], -1, np.int64)  # written by the actor where the environments have groups
        self.places = np.zeros(shape[:2], np.int64)  # with refill: which of the rollout's draws; -1: of the last one's
        if self.draws is not None:
            self.draws = no_draws(self.draws["waiting"])
        self.sampler_log_probs: np.ndarray | None = None  # [T, N, L] where a sampler has others than the policy
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
        """Takes in one response per environment: ``action``, ``value`` and ``log_prob`` are [N, L]."""
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
        if self.last_successes is not None and (successes := self.last_successes()) is not None:
            self.successes[self.pos] = successes
        self.pos += 1 if self.draws is None else rows_completed(self)
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Computes advantages from the scores alone; ``penalize`` computes them again with the KL to the reference."""
        self.last_values = last_values.cpu().numpy().flatten()
        self.ended = np.concatenate((self.episode_starts[1:], np.asarray(dones, np.float32)[None])).astype(bool)
        self.compute_advantages()

    def penalize(self, ref_log_probs: np.ndarray, ref_kl_coef: float, full_kl: np.ndarray | None = None) -> None:
        """Computes advantages anew, with the penalty in the reward where ``ref_kl`` puts it there.

        ``ref_log_probs`` and ``full_kl`` are [T, N, L]; the latter is the exact KL of ``ref_kl_estimator="full"``.
        """
        self.ref_log_probs, self.full_kl = ref_log_probs, full_kl
        in_reward = ref_kl_coef != 0 and self.settings.ref_kl != "loss"
        self.compute_advantages(self.token_kl() if in_reward else None, ref_kl_coef)

    def token_kl(self, estimator: str | None = None) -> np.ndarray:
        """KL(policy || reference) of every token [T, N, L], in nats."""
        assert self.ref_log_probs is not None, "penalize() comes first"
        estimator = estimator or self.settings.ref_kl_estimator
        if estimator == "full":
            assert self.full_kl is not None
            return np.where(self.masks, self.full_kl, 0.0)
        return token_kl(self.log_probs, self.ref_log_probs, self.masks, estimator)

    def cut_off(self) -> np.ndarray:
        """True for the responses [T, N] that reached the last slot without ending."""
        return self.response_space.cut_off(self.actions, self.masks)

    def add_sampler_log_probs(self, log_prob: Tensor, first: int = 0) -> None:
        """Takes in the sampler's log-probabilities [n, L] of the responses from ``first`` on that ``add`` gets next."""
        self.sampler_log_probs = with_all_rows(self.sampler_log_probs, self.masks.shape)  # a resumed rollout has some
        self.sampler_log_probs[self.pos, first : first + len(log_prob)] = log_prob.cpu().numpy()

    def importance_weights(self) -> np.ndarray | None:
        """The weights [T, N, L] of tokens in the policy's loss, 1 outside of ``masks``; None where all are 1."""
        if self.sampler_log_probs is None or self.settings.importance_bound is None:
            return None
        weights = importance_weights(self.log_probs, self.sampler_log_probs, self.settings.importance_bound)
        return np.where(self.masks, weights, np.float32(1))

    def length_penalties(self) -> np.ndarray:
        """The amount that each response [T, N] loses by the rules on length, in units of the score."""
        longest = self.response_space.max_new_tokens
        return self.settings.length_penalties(self.masks.sum(-1), self.cut_off(), longest)

    def informative(self) -> np.ndarray:
        """True for the responses [T, N] whose group has scores that differ."""
        return informative(self.rewards, self.group_ids, self.episode_starts, self.ended)

    def right(self) -> np.ndarray:
        """True for the responses [T, N] that are a success by the environments' rule, or else by ``success_score``."""
        episodes = Episodes.of(self.episode_starts, self.ended)
        by_score = (episodes.sum(self.rewards) >= self.settings.success_score)[episodes.number]
        right: np.ndarray = np.where(self.successes < 0, by_score, self.successes == 1)
        return right

    def in_policy_loss(self) -> np.ndarray | None:
        """True for the responses [T, N] that count in the policy's loss; None where all of them do."""
        settings, chosen = self.settings, None
        if settings.dynamic_sampling is not None:
            chosen = self.informative()
        if settings.overlong_filter:
            chosen = ~self.cut_off() if chosen is None else chosen & ~self.cut_off()
        return chosen

    def compute_advantages(self, kl: np.ndarray | None = None, ref_kl_coef: float = 0.0) -> None:
        """Computes advantages and returns; ``kl`` [T, N, L] is that of the penalty in the reward, if any."""
        reward = token_rewards(self.rewards - self.length_penalties(), self.masks, kl=kl, ref_kl_coef=ref_kl_coef)
        if self.settings.whiten_rewards:
            reward = whitened(reward, self.masks, shift_mean=False)
        self.token_rewards = reward
        if self.settings.without_critic:
            self.advantages = self._relative_to_groups(reward)
            return
        self.advantages = self._gae(self.settings.policy_lambda(self.masks, self.gae_lambda))
        value_lambda = self.settings.value_lambda
        self.returns = (self.advantages if value_lambda is None else self._gae(value_lambda)) + self.values
        if self.settings.group_advantage is not None:
            errors = self._gae(1.0)[..., 0]  # every response has a first token
            corrections = critic_corrections(errors, self.group_ids, self.episode_starts, self.ended)
            self.advantages -= np.where(self.masks, corrections[..., None], 0.0).astype(np.float32)

    def monte_carlo_returns(self) -> np.ndarray:
        """The sum of the rewards to come [T, N, L] of every token, and of the last value where the episode goes on."""
        returns: np.ndarray = self._gae(1.0) + self.values
        return returns

    def _gae(self, gae_lambda: float | np.ndarray) -> np.ndarray:
        return token_advantages(
            self.token_rewards,
            self.values,
            self.masks,
            last_value=self.last_values,
            ended=self.ended,
            gamma=self.gamma,
            gae_lambda=gae_lambda,
        )

    def _relative_to_groups(self, reward: np.ndarray) -> np.ndarray:
        name = self.settings.group_advantage
        assert name is not None
        return episode_advantages(name, reward, self.masks, self.group_ids, self.episode_starts, self.ended)

    def get(self, batch_size: int | None = None) -> Generator[DictRolloutBufferSamples, None, None]:  # type: ignore[override]  # as DictRolloutBuffer
        """Raises ``TypeError``: an algorithm that calls this trains on one log-probability per action."""
        raise TypeError("SequenceRolloutBuffer holds tokens: PPOX trains on it with LanguageModelPolicy, PPO cannot")

    def flat(self, array: np.ndarray) -> Tensor:
        """The array [T, N, ...] as a tensor [T * N, ...] on the buffer's device."""
        return torch.from_numpy(array.reshape(-1, *array.shape[2:])).to(self.device)
