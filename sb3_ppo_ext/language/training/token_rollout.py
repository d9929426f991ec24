"""A collected rollout of responses as minibatches, and its KL to the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from sb3_ppo_ext.distributed.processes import together
from sb3_ppo_ext.language.envs.prompt_vec_env import reward_means, take_reward_sums, take_scoring_seconds
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK
from sb3_ppo_ext.language.training.baselines import check_baseline
from sb3_ppo_ext.language.training.joined_buffer import joined, take_back
from sb3_ppo_ext.language.training.micro_batches import (
    on_device,
    rescaled,
    rows_of,
    token_weights,
    totals_of,
)
from sb3_ppo_ext.language.training.reference_scores import under_reference
from sb3_ppo_ext.language.training.refill import rescore_carried
from sb3_ppo_ext.language.training.row_orders import row_orders
from sb3_ppo_ext.language.training.shared_prompts import branches_in, require_equal_prompts, sharing_prompts
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.objective.batch import Minibatch, Totals
from sb3_ppo_ext.objective.losses import normalized
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class ResponseSummary(NamedTuple):
    """Score and KL of every response of a process's rollout, in the order in which they were collected."""

    score: np.ndarray  # [T * N], as the reward function gave it
    kl: np.ndarray | None  # [T * N], k1 to the reference in nats, where there is one
    place: np.ndarray  # [T * N], which of the responses that were drawn for the rollout; -1: drawn for the last one


class TokenRollout(Rollout):
    """A collected rollout whose rows are responses: tensors [B, L] under a mask.

    ``buffer`` has the responses of all processes, over which everything is averaged; ``collected`` and ``rows`` those
    that this process trains.
    """

    def __init__(self, run: Run, buffer: SequenceRolloutBuffer, policy: LanguageModelPolicy) -> None:
        self.collected = buffer
        self.settings = buffer.settings
        self.action_space = run.action_space
        self.size = buffer.buffer_size * buffer.n_envs
        self.indexable = False  # only ``minibatches`` gathers rows
        self.normalize_advantage = run.settings.normalizes_over("rollout")
        # Those of groups are relative to the group already, and 0 in groups without a difference.
        self.normalize_minibatch = run.settings.normalizes_over("minibatch") and not self.settings.without_critic
        check_baseline(policy.options["value"], self.settings.group_advantage)
        self.policy, self.processes = policy, run.processes
        self.ref_kl_coef = float(run.knobs.values.ref_kl_coef)
        self.branches = branches_in(buffer)
        if self.branches > 1:
            require_equal_prompts(buffer, self.branches)
        self.row_orders = row_orders(run, buffer.buffer_size, buffer.n_envs, self.branches)
        first = 0 if run.shards is None else run.shards.first_of(buffer.n_envs)
        self.environments = slice(first, first + buffer.n_envs)  # those of this process among all
        started = time.perf_counter()
        with together(self.processes, DivergedError):
            rescore_carried(buffer, policy, self.settings.micro_batch_tokens)
            if policy.has_reference:
                buffer.ref_log_probs, buffer.full_kl = under_reference(buffer, policy, run.batch_size, self.branches)
        self.began = time.perf_counter()
        self._measure(run, self.began - started)
        self._compute_advantages()
        self._make_rows()

    def _measure(self, run: Run, of_reference: float) -> None:
        """Takes the seconds that each part of the work took, in the slowest process, and the means of the rewards."""
        seconds = {"generation": run.seconds.pop("generation", 0.0), "reference": of_reference}
        if (rescoring := run.seconds.pop("rescoring", None)) is not None:
            seconds["rescoring"] = rescoring
        if (scoring := take_scoring_seconds(run.env)) is not None:
            seconds["scoring"] = scoring
        everywhere = self.processes.objects((seconds, take_reward_sums(run.env)))
        self._seconds = {name: max(spent.get(name, 0.0) for spent, _ in everywhere) for name in seconds}
        self.reward_means = reward_means([sums for _, sums in everywhere])

    def _compute_advantages(self) -> None:
        """Computes those of all processes, where the KL to the reference or the responses of others matter."""
        self.buffer: SequenceRolloutBuffer = joined(self.collected, self.processes)
        if self.buffer.ref_log_probs is not None:
            self.buffer.penalize(self.buffer.ref_log_probs, self.ref_kl_coef, self.buffer.full_kl)
        elif self.buffer is not self.collected:
            self.buffer.compute_advantages()
        take_back(self.collected, self.buffer, self.environments)

    def _make_rows(self) -> None:
        buffer, collected = self.buffer, self.collected
        self.rows = sharing_prompts(collected_responses(collected), self.branches)
        self.mask = buffer.flat(buffer.masks)
        chosen = buffer.in_policy_loss()
        self.in_policy_loss = None if chosen is None else buffer.flat(chosen)
        weights = collected.importance_weights()
        self.importance = None if weights is None else collected.flat(weights)
        self.advantage = buffer.flat(buffer.advantages)
        if self.normalize_advantage:
            self.advantage = normalized(self.advantage, self._chosen(self.mask))
        self.rows = self.rows._replace(advantage=self._of_this_process(self.advantage))
        if self.settings.positive_nll_coef > 0:
            self.right = buffer.flat(buffer.right())
            nll_weight = self._of_this_process(self._nll_weight(self.mask, self.right))
            self.rows = self.rows._replace(nll_weight=nll_weight)
        masks = collected.observations[ATTENTION_MASK] > 0, collected.masks
        self.lengths = np.stack([mask.sum(-1).reshape(-1) for mask in masks], axis=-1)
        self.value_target, self.state_value = self.rows.value_target, self.rows.state_value

    def _of_this_process(self, rows: Tensor) -> Tensor:
        """Those of this process among the rows [B, ...] of all."""
        steps = rows.view(self.buffer.buffer_size, -1, *rows.shape[1:])
        return steps[:, self.environments].flatten(0, 1)

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """One epoch: every response once, in a fresh random order, the last minibatch possibly smaller."""
        for rows in self.row_orders.minibatches(batch_size):
            prompts = rows.collected[:: self.branches] // self.branches
            index, collected, of_prompts = (
                on_device(numbers, self.buffer.device) for numbers in (rows.of_all, rows.collected, prompts)
            )
            minibatch = rows_of(self.rows, collected, of_prompts)._replace(lengths=self.lengths[rows.collected])
            mask, advantage = self.mask[index], self._advantage(index)[rows.share]
            if minibatch.nll_weight is not None:
                nll_weight = self._nll_weight(mask, self.right[index])[rows.share]
                if self.importance is not None:
                    nll_weight = nll_weight * self.importance[collected]
                minibatch = minibatch._replace(nll_weight=nll_weight)
            if self.importance is not None:
                # Every surrogate is proportional to the advantage: the weight of the loss is that of the advantage.
                advantage = advantage * self.importance[collected]
            yield minibatch._replace(advantage=advantage, totals=self._totals(mask))

    def _totals(self, mask: Tensor) -> Totals | None:
        """Those of a minibatch of all processes by its ``mask`` [B, L]; None where this process has all of it."""
        if self.processes.count == 1:
            return None
        mean = self.settings.loss_mean
        return totals_of(token_weights(mask, mean, self.advantage.dtype), mean)

    def _advantage(self, index: Tensor) -> Tensor:
        """The advantages [B, L] of the rows ``index`` as the loss takes them: normalised, 0 for what is left out."""
        advantage, mask = self.advantage[index], self.mask[index]
        if self.normalize_minibatch:
            advantage = normalized(advantage, self._chosen(mask, index))
        if self.in_policy_loss is not None:
            factor = rescaled(self.in_policy_loss[index], mask, self.settings.loss_mean)
            advantage = advantage * factor.to(advantage.dtype)[:, None]
        return advantage

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
        count = buffer.rewards.size if self.settings.ref_kl_unit == "response" else max(int(buffer.masks.sum()), 1)
        return {"ref_kl": float(buffer.token_kl().sum()) / count}

    def summary(self) -> ResponseSummary:
        """Score and KL of every response of this process."""
        buffer = self.collected
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
