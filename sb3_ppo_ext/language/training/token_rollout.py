"""A collected rollout of responses as minibatches, and its KL to the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import explained_variance

from sb3_ppo_ext.language.envs.prompt_vec_env import take_scoring_seconds
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK
from sb3_ppo_ext.language.model.causal_lm import scattered
from sb3_ppo_ext.language.model.full_kl import full_kl
from sb3_ppo_ext.language.training.micro_batches import on_device, row_groups, rows_of
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.monitoring.divergence import DivergedError, first_bad
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.losses import normalized
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class ResponseSummary(NamedTuple):
    """What is remembered of every response of a rollout, in the order in which they were collected."""

    score: np.ndarray  # [T * N], as the reward function gave it
    kl: np.ndarray | None  # [T * N], k1 to the reference in nats, where there is one


class SequenceRollout(Rollout):
    """Rows are responses: tensors [B, L] under a mask."""

    def __init__(self, run: Run, buffer: SequenceRolloutBuffer, policy: LanguageModelPolicy) -> None:
        self.buffer: SequenceRolloutBuffer = buffer
        self.action_space = run.action_space
        self.size = buffer.buffer_size * buffer.n_envs
        self.indexable = False  # nothing outside of here gathers them
        self.normalize_advantage = run.settings.normalizes_over("rollout")
        self.normalize_minibatch = run.settings.normalizes_over("minibatch")
        self.policy = policy
        self.ref_kl_coef = float(run.knobs.values.ref_kl_coef)
        started = time.perf_counter()
        if policy.has_reference:
            under_reference, full = by_reference(buffer, policy, run.settings.batch_size)
            buffer.penalize(under_reference, self.ref_kl_coef, full)
        self.began = time.perf_counter()
        self._seconds = {"generation": run.seconds.pop("generation", 0.0), "reference": self.began - started}
        if (scoring := take_scoring_seconds(run.env)) is not None:
            self._seconds["scoring"] = scoring
        self._make_rows()

    def _make_rows(self) -> None:
        buffer = self.buffer
        flat = buffer.flat
        advantage, mask = flat(buffer.advantages), flat(buffer.masks)
        self.rows = Minibatch(
            {name: flat(array) for name, array in buffer.observations.items()},
            flat(buffer.actions),
            flat(buffer.log_probs),
            flat(buffer.values),
            normalized(advantage, mask) if self.normalize_advantage else advantage,
            flat(buffer.returns),
            mask=mask,
            ref_log_prob=None if buffer.ref_log_probs is None else flat(buffer.ref_log_probs),
        )
        masks = buffer.observations[ATTENTION_MASK] > 0, buffer.masks
        self.lengths = np.stack([mask.sum(-1).reshape(-1) for mask in masks], axis=-1)
        self.advantage, self.value_target = self.rows.advantage, self.rows.value_target
        self.state_value = self.rows.state_value

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """One epoch: every response once, in a fresh random order, the last minibatch possibly smaller."""
        order = np.random.permutation(self.size)
        there = on_device(order, self.buffer.device)
        for start in range(0, self.size, batch_size):
            rows = slice(start, start + batch_size)
            minibatch = rows_of(self.rows, there[rows])._replace(lengths=self.lengths[order[rows]])
            if self.normalize_minibatch:
                minibatch = minibatch._replace(advantage=normalized(minibatch.advantage, minibatch.mask))
            yield minibatch

    @property
    def controller_inputs(self) -> dict[str, float]:
        """The KL of the sampling policy to the reference, in the unit of ``ref_kl_unit``."""
        buffer = self.buffer
        if buffer.ref_log_probs is None:
            return {}
        over = self.size if buffer.ref_kl_unit == "response" else max(int(buffer.masks.sum()), 1)
        return {"ref_kl": float(buffer.token_kl().sum()) / over}

    def summary(self) -> ResponseSummary:
        """See ``ResponseSummary``."""
        buffer = self.buffer
        kl = None if buffer.ref_log_probs is None else buffer.token_kl("k1").sum(-1).flatten()
        return ResponseSummary(buffer.rewards.flatten(), kl)

    def seconds(self) -> dict[str, float]:
        """How long each part of the work on this rollout took; the training up to now."""
        return {**self._seconds, "training": time.perf_counter() - self.began}

    def explained_variance(self) -> float:
        """Over the tokens, as of any rollout."""
        mask = self.buffer.masks
        return float(explained_variance(self.buffer.values[mask], self.buffer.returns[mask]))


@torch.no_grad()
def by_reference(
    buffer: SequenceRolloutBuffer, policy: LanguageModelPolicy, rows_at_once: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """log p of every sampled token under the frozen reference [T, N, L], 0 where there is none; and the full KL to it.

    The latter only where the buffer is to have it.
    """
    result = np.zeros(buffer.masks.shape, np.float32).reshape(-1, buffer.action_dim)
    full = np.zeros_like(result) if buffer.ref_kl_estimator == "full" else None
    tokens = policy.tokens(
        {name: buffer.flat(array) for name, array in buffer.observations.items()},
        buffer.flat(buffer.actions),
        buffer.flat(buffer.masks),
    )
    lengths = (tokens.prompt_mask.sum(-1) + tokens.mask.sum(-1)).tolist()
    limit = buffer.micro_batch_tokens or rows_at_once * max(lengths)
    for rows in row_groups(lengths, limit):
        part = type(tokens)(*(tensor[rows] for tensor in tokens)).trimmed()
        hidden = policy.reference_states(part)
        result[rows, : part.response.shape[1]] = policy.reference_log_prob(part, hidden).cpu().numpy()
        if full is not None:
            kl = full_kl(policy.lm, policy.states(part)[0], policy.as_reference, hidden)
            full[rows, : part.response.shape[1]] = scattered(kl, part.mask).cpu().numpy()
    for what, array in (("the reference's log-probability", result), ("the KL to the reference", full)):
        if array is not None and (bad := first_bad(array)) is not None:
            raise DivergedError(f"{what} of response {bad.index[0]}, token {bad.index[1]}, is {bad}.")
    return result.reshape(buffer.masks.shape), None if full is None else full.reshape(buffer.masks.shape)
