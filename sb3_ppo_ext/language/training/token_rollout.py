"""A collected rollout of responses as minibatches, and its KL to the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from sb3_ppo_ext.language.envs.prompt_vec_env import take_reward_means, take_scoring_seconds
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK
from sb3_ppo_ext.language.training.baselines import check_baseline
from sb3_ppo_ext.language.training.micro_batches import on_device, rescaled, row_groups, rows_of
from sb3_ppo_ext.language.training.refill import rescore_carried
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.monitoring.divergence import DivergedError, first_bad
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.losses import normalized
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class ResponseSummary(NamedTuple):
    """Score and KL of every response of a rollout, in the order in which they were collected."""

    score: np.ndarray  # [T * N], as the reward function gave it
    kl: np.ndarray | None  # [T * N], k1 to the reference in nats, where there is one
    place: np.ndarray  # [T * N], which of the responses that were drawn for the rollout; -1: drawn for the last one


class TokenRollout(Rollout):
    """A collected rollout whose rows are responses: tensors [B, L] under a mask."""

    def __init__(self, run: Run, buffer: SequenceRolloutBuffer, policy: LanguageModelPolicy) -> None:
        self.buffer: SequenceRolloutBuffer = buffer
        self.settings = buffer.settings
        self.action_space = run.action_space
        self.size = buffer.buffer_size * buffer.n_envs
        self.indexable = False  # only ``minibatches`` gathers rows
        self.normalize_advantage = run.settings.normalizes_over("rollout")
        # Those of groups are relative to the group already, and 0 in groups without a difference.
        self.normalize_minibatch = run.settings.normalizes_over("minibatch") and not self.settings.without_critic
        check_baseline(policy.options["value"], self.settings.group_advantage)
        self.policy = policy
        self.ref_kl_coef = float(run.knobs.values.ref_kl_coef)
        started = time.perf_counter()
        rescore_carried(buffer, policy, self.settings.micro_batch_tokens)
        if policy.has_reference:
            log_probs, exact_kl = under_reference(buffer, policy, run.settings.batch_size)
            buffer.penalize(log_probs, self.ref_kl_coef, exact_kl)
        self.began = time.perf_counter()
        self._seconds = {"generation": run.seconds.pop("generation", 0.0), "reference": self.began - started}
        if (rescoring := run.seconds.pop("rescoring", None)) is not None:
            self._seconds["rescoring"] = rescoring
        if (scoring := take_scoring_seconds(run.env)) is not None:
            self._seconds["scoring"] = scoring
        self.reward_means = take_reward_means(run.env)
        self._make_rows()

    def _make_rows(self) -> None:
        buffer = self.buffer
        self.rows = collected_responses(buffer)
        mask = self.rows.mask
        assert mask is not None
        chosen = buffer.in_policy_loss()
        self.in_policy_loss = None if chosen is None else buffer.flat(chosen)
        weights = buffer.importance_weights()
        self.importance = None if weights is None else buffer.flat(weights)
        if self.normalize_advantage:
            self.rows = self.rows._replace(advantage=normalized(self.rows.advantage, self._chosen(mask)))
        if self.settings.positive_nll_coef > 0:
            self.right = buffer.flat(buffer.right())
            self.rows = self.rows._replace(nll_weight=self._nll_weight(mask, self.right))
        masks = buffer.observations[ATTENTION_MASK] > 0, buffer.masks
        self.lengths = np.stack([mask.sum(-1).reshape(-1) for mask in masks], axis=-1)
        self.advantage, self.value_target = self.rows.advantage, self.rows.value_target
        self.state_value = self.rows.state_value

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """One epoch: every response once, in a fresh random order, the last minibatch possibly smaller."""
        order = np.random.permutation(self.size)
        on_buffer_device = on_device(order, self.buffer.device)
        for start in range(0, self.size, batch_size):
            rows = slice(start, start + batch_size)
            index = on_buffer_device[rows]
            minibatch = rows_of(self.rows, index)._replace(lengths=self.lengths[order[rows]])
            if minibatch.nll_weight is not None and minibatch.mask is not None:
                nll_weight = self._nll_weight(minibatch.mask, self.right[index])
                if self.importance is not None:
                    nll_weight = nll_weight * self.importance[index]
                minibatch = minibatch._replace(nll_weight=nll_weight)
            yield minibatch._replace(advantage=self._advantage(minibatch, index))

    def _advantage(self, minibatch: Minibatch, index: Tensor) -> Tensor:
        """The advantages [B, L] of the rows ``index`` as the loss takes them: normalised, 0 for what is left out."""
        advantage, mask = minibatch.advantage, minibatch.mask
        assert mask is not None
        if self.normalize_minibatch:
            advantage = normalized(advantage, self._chosen(mask, index))
        if self.in_policy_loss is not None:
            factor = rescaled(self.in_policy_loss[index], mask, self.settings.loss_mean)
            advantage = advantage * factor.to(advantage.dtype)[:, None]
        # Every surrogate is proportional to the advantage, so that the weight of the loss is that of the advantage.
        return advantage if self.importance is None else advantage * self.importance[index]

    def _nll_weight(self, mask: Tensor, right: Tensor) -> Tensor:
        """The weights [B, L] of an optimizer step under which the loss has the mean over its right responses."""
        return self.settings.positive_nll_coef * rescaled(right, mask, self.settings.loss_mean)[:, None] * mask

    def _chosen(self, mask: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """The mask [B, L] without the responses that are left out of the policy's loss."""
        return mask if self.in_policy_loss is None else mask & self.in_policy_loss[index, None]

    @property
    def controller_inputs(self) -> dict[str, float]:
        """The KL of the sampling policy to the reference, in the unit of ``ref_kl_unit``."""
        buffer = self.buffer
        if buffer.ref_log_probs is None:
            return {}
        count = self.size if self.settings.ref_kl_unit == "response" else max(int(buffer.masks.sum()), 1)
        return {"ref_kl": float(buffer.token_kl().sum()) / count}

    def summary(self) -> ResponseSummary:
        """Score and KL of every response."""
        buffer = self.buffer
        kl = None if buffer.ref_log_probs is None else buffer.token_kl("k1").sum(-1).flatten()
        place = np.arange(self.size) if buffer.draws is None else buffer.places.flatten()
        return ResponseSummary(buffer.rewards.flatten(), kl, place)

    def seconds(self) -> dict[str, float]:
        """The seconds that each part of the work on this rollout took; of the training those so far."""
        return {**self._seconds, "training": time.perf_counter() - self.began}

    def explained_variance(self) -> float:
        """``1 - Var(returns - values) / Var(returns)`` over the tokens."""
        mask = self.buffer.masks
        return float(explained_variance(self.buffer.values[mask], self.buffer.returns[mask]))


def collected_responses(buffer: SequenceRolloutBuffer) -> Minibatch:
    """The responses of a full buffer, step after step; advantages as they were computed."""
    flat = buffer.flat
    return Minibatch(
        {name: flat(array) for name, array in buffer.observations.items()},
        flat(buffer.actions),
        flat(buffer.log_probs),
        flat(buffer.values),
        flat(buffer.advantages),
        flat(buffer.returns),
        mask=flat(buffer.masks),
        ref_log_prob=None if buffer.ref_log_probs is None else flat(buffer.ref_log_probs),
    )


@torch.no_grad()
def under_reference(
    buffer: SequenceRolloutBuffer, policy: LanguageModelPolicy, rows_at_once: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """log p of every sampled token under the frozen reference [T, N, L], 0 where there is none; and the exact KL to it.

    The latter is None unless the settings have ``ref_kl_estimator="full"``.
    """
    log_probs = np.zeros(buffer.masks.shape, np.float32).reshape(-1, buffer.action_dim)
    exact_kl = np.zeros_like(log_probs) if buffer.settings.exact_kl else None
    tokens = policy.tokens(
        {name: buffer.flat(array) for name, array in buffer.observations.items()},
        buffer.flat(buffer.actions),
        buffer.flat(buffer.masks),
    )
    lengths = (tokens.prompt_mask.sum(-1) + tokens.mask.sum(-1)).tolist()
    for rows in row_groups(lengths, buffer.settings.micro_batch_tokens or rows_at_once * max(lengths)):
        group = type(tokens)(*(tensor[rows] for tensor in tokens)).trimmed()
        hidden, width = policy.reference_states(group), group.response.shape[1]
        log_probs[rows, :width] = policy.reference_log_prob(group, hidden).cpu().numpy()
        if exact_kl is not None:
            exact_kl[rows, :width] = policy.reference_kl(group, policy.states(group)[0], hidden).cpu().numpy()
    for what, array in (("the reference's log-probability", log_probs), ("the KL to the reference", exact_kl)):
        if array is not None and (bad := first_bad(array)) is not None:
            raise DivergedError(f"{what} of response {bad.index[0]}, token {bad.index[1]}, is {bad}.")
    shape = buffer.masks.shape
    return log_probs.reshape(shape), None if exact_kl is None else exact_kl.reshape(shape)
