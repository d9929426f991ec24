"""A minibatch of random responses and the update of a language model on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.language.training.token_settings import TokenSettings
from sb3_ppo_ext.language.training.token_update import EagerGradients, TokenAdapter, TokenGradients, TokenUpdate
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from tests.language import tiny

KNOBS = KnobValues(clip_range=0.2, clip_range_high=0.3, ent_coef=0.01, ref_kl_coef=0.1)


def minibatch(policy: LanguageModelPolicy, *, drift: float = 0.3, rows: int = 6) -> Minibatch:
    """Random responses with random advantages; ``drift`` is how far the old log-probabilities lie off."""
    tokens, generator = tiny.ragged_tokens(rows), torch.Generator().manual_seed(3)
    with torch.no_grad():
        log_prob, _, value = policy.evaluate_tokens(tokens, entropy_grad=False)

    def noise() -> Tensor:
        return torch.randn(log_prob.shape, generator=generator, dtype=log_prob.dtype)

    return Minibatch(
        {INPUT_IDS: tokens.prompt, ATTENTION_MASK: tokens.prompt_mask.to(torch.int8)},
        tokens.response,
        log_prob + drift * noise(),
        value + noise(),
        noise(),
        noise(),
        mask=tokens.mask,
        ref_log_prob=log_prob + noise(),
    )


def updater(policy: LanguageModelPolicy, objective: Objective | None = None, **settings: Any) -> TokenUpdate:
    return TokenUpdate(
        adapter=TokenAdapter(policy, entropy_grad=True, with_reference=True),
        objective=objective or Objective(kl_estimator="k3", normalize_advantage=False, ref_kl_estimator="k3"),
        optimizer=policy.optimizer,
        parameters=policy.model_parameters() + policy.value_parameters(),
        settings=TokenSettings(**settings),
    )


def gradients_of(update: TokenUpdate, ratio_check: Callable[[Minibatch, float], None] | None = None) -> TokenGradients:
    return TokenGradients(update, EagerGradients(update), ratio_check)


def outcome(gradients: TokenGradients, batch: Minibatch) -> Tensor:
    """Statistics and all gradients in one vector."""
    found, _ = gradients.evaluate(batch, KNOBS)
    tensors = [parameter.grad for parameter in gradients.update.parameters]
    return torch.cat((found.row().nan_to_num(), *(tensor.flatten() for tensor in tensors if tensor is not None)))
