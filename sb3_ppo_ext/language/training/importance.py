"""Responses drawn from another distribution than the one that is trained: their weights, and how far apart both are.

A sampler in half precision, or a program of its own, has rounded otherwise. The log-probabilities of PPO's ratio are
the trained model's, and the weight of a token is what brings the sampler's expectation to the model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.language.training.micro_batches import row_groups

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

LARGEST_LOG = 20.0  # nats; exp() of more is of no use as a weight
NEAR = (0.9, 1.1)  # ratios outside of it are counted


def importance_weights(log_prob: np.ndarray, sampler_log_prob: np.ndarray, bound: float | None) -> np.ndarray:
    """w = min(pi(a) / mu(a), bound) of every token, with pi the trained model and mu the sampler; shapes are any.

    Truncated importance sampling (Ionides 2008; per token as in Yao et al. 2025). A token without a log-probability of
    the sampler has the weight 1, as all have with ``bound=None``.
    """
    if bound is None:
        return np.ones_like(log_prob)
    log_ratio = np.nan_to_num(log_prob - sampler_log_prob, nan=0.0)
    weights: np.ndarray = np.minimum(np.exp(np.clip(log_ratio, -LARGEST_LOG, LARGEST_LOG)), bound).astype(np.float32)
    return weights


def with_all_rows(rows: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """The first rows of an array of this shape, which may be all or none, with NaN in the others."""
    if rows is not None and rows.shape == shape:
        return rows
    whole = np.full(shape, np.nan, np.float32)
    if rows is not None:
        whole[: len(rows)] = rows
    return whole


def mismatch(log_prob: np.ndarray, sampler_log_prob: np.ndarray, bound: float | None) -> dict[str, float]:
    """How far a sampler mu is from the trained model pi, over the tokens [n] that mu has drawn.

    With d = log pi - log mu: ``kl`` is the mean of -d and ``kl_k3`` that of e^d - 1 - d, both KL(mu || pi) in nats per
    token; ``log_ratio_max`` the greatest |d|; ``ratio_outside`` the fraction with e^d outside [0.9, 1.1];
    ``probability_difference`` the mean |pi - mu|; ``effective_fraction`` (sum w)^2 / (n sum w^2) of the weights w, and
    ``weights_clipped`` the fraction at the bound.
    """
    known = np.isfinite(sampler_log_prob)
    if not known.any():
        return {}
    log_prob, sampler = log_prob[known].astype(np.float64), sampler_log_prob[known].astype(np.float64)
    log_ratio = log_prob - sampler
    ratio = np.exp(np.clip(log_ratio, -LARGEST_LOG, LARGEST_LOG))
    weight = ratio if bound is None else np.minimum(ratio, bound)
    found = {
        "kl": -log_ratio.mean(),
        "kl_k3": (ratio - 1 - log_ratio).mean(),
        "log_ratio_max": np.abs(log_ratio).max(),
        "ratio_outside": ((ratio < NEAR[0]) | (ratio > NEAR[1])).mean(),
        "probability_difference": np.abs(np.exp(log_prob) - np.exp(sampler)).mean(),
        "effective_fraction": weight.sum() ** 2 / (len(weight) * np.square(weight).sum()),
    }
    if bound is not None:
        found["weights_clipped"] = (ratio > bound).mean()
    return {name: float(value) for name, value in found.items()}


@torch.no_grad()
def scored_again(
    policy: LanguageModelPolicy, tokens: Tokens, micro_batch_tokens: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (nats) and values [B, L] of sampled tokens by the policy itself; 0 where there is none."""
    shape, device = tokens.mask.shape, tokens.mask.device
    log_prob, value = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    for prompts in row_groups(tokens.slots(), micro_batch_tokens):
        group, rows = tokens.of_prompts(prompts)
        found, _, values = policy.evaluate_tokens(group.trimmed(), entropy_grad=False)
        width = found.shape[1]
        log_prob[rows, :width], value[rows, :width] = found, values
    return log_prob, value
