"""Training of the value function alone: the model's own parameters stay, and so do its optimizer's moments of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.utils import explained_variance
from torch import nn

from sb3_ppo_ext.distributed.processes import ALONE, Processes
from sb3_ppo_ext.distributed.reduction import reduce_gradients
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.language.training.micro_batches import lengths_of, micro_batches, row_groups, rows_of
from sb3_ppo_ext.language.training.token_settings import TokenSettings
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.terms import KnobValues, Objective, value_term
from sb3_ppo_ext.update.optimizer_step import OptimizerStep

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The parameters need no gradient until the end of the block, and have none left."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class CriticTraining:
    """Steps against the error of the values, eager, under the same micro-batches and means as the whole loss."""

    policy: LanguageModelPolicy
    objective: Objective
    settings: TokenSettings
    max_grad_norm: float
    processes: Processes = ALONE

    def epoch(self, minibatches: Iterable[Minibatch], knobs: KnobValues, step: OptimizerStep) -> None:
        """One step for each of the minibatches, whose gradient is that of the value's term."""
        with frozen(self.policy.model_parameters()):
            for minibatch in minibatches:
                self._backward(minibatch, knobs)
                if not step.clip(self.max_grad_norm).isfinite():
                    raise DivergedError(
                        "the gradient of the value function is not finite: its targets are too large for its learning "
                        "rate; lower learning_rate or value_lr_ratio, or scale the score"
                    )
                step.step()

    def _backward(self, minibatch: Minibatch, knobs: KnobValues) -> None:
        policy = self.policy
        for parameter in policy.value_parameters():
            parameter.grad = None
        for micro_batch in micro_batches(minibatch, self.settings):
            rows = micro_batch.minibatch
            value = policy.values(tokens_of(policy, rows))
            term = value_term(value, rows, self.objective, knobs, mask=rows.mask)
            (knobs.vf_coef * term * micro_batch.share).backward()
        # The shares of micro-batches are those in the minibatch of all processes.
        reduce_gradients(policy.value_parameters(), share=1.0, processes=self.processes)


def tokens_of(policy: LanguageModelPolicy, rows: Minibatch) -> Tokens:
    """Prompts and responses of a minibatch."""
    assert rows.mask is not None
    return policy.tokens(rows.observation, rows.action, rows.mask > 0)


@torch.no_grad()
def values_of(policy: LanguageModelPolicy, rows: Minibatch, max_tokens: int) -> np.ndarray:
    """The values [B, L] of the responses' tokens, of at most ``max_tokens`` at once."""
    values = np.zeros(tuple(rows.action.shape), np.float32)
    for group in row_groups(lengths_of(rows).sum(-1).tolist(), max_tokens):
        index = torch.as_tensor(group, device=rows.action.device)
        tokens = tokens_of(policy, rows_of(rows, index)).trimmed()
        values[group, : tokens.mask.shape[1]] = policy.values(tokens).cpu().numpy()
    return values


def explained_by_position(value: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The explained variance of ``target`` [..., L] over all tokens, and over responses at three of their tokens.

    At the first token it says whether the difficulty of a prompt is predicted, at the last one whether the answer is.
    NaN where all targets are equal.
    """
    length = mask.sum(-1)
    found = {"explained_variance": float(explained_variance(value[mask], target[mask]))}
    for name, slot in (("first", 0 * length), ("middle", length // 2), ("last", np.maximum(length - 1, 0))):
        at = [np.take_along_axis(array, slot[..., None], -1).reshape(-1) for array in (value, target)]
        found[f"explained_variance_{name}"] = float(explained_variance(*at))
    return found
