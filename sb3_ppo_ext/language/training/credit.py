"""The reward and the advantage of each token: pure functions over arrays [T, N, L] of a rollout.

T steps of N environments, L response slots; ``mask`` is True where there is a token. A response's score is earned by
its last token; the tokens of prompts and observations are the environment's, not actions.
"""

from __future__ import annotations

import numpy as np
import torch

from sb3_ppo_ext.objective.losses import fill_masked
from sb3_ppo_ext.objective.registry import KL_ESTIMATORS

Array = np.ndarray


def token_kl(log_prob: Array, ref_log_prob: Array, mask: Array, estimator: str) -> Array:
    """KL(policy || reference) of every token, in nats, estimated from the sampled token; 0 where there is none.

    By an estimator of the registry: with d = log p - log p_ref, "k1" is d, "k2" is d^2 / 2, "k3" is exp(-d) - 1 + d.
    """
    log_ratio = torch.from_numpy(np.where(mask, ref_log_prob - log_prob, 0.0))
    kl: Array = KL_ESTIMATORS[estimator](log_ratio, mask=torch.from_numpy(mask), reduce=fill_masked).numpy()
    return kl


def token_rewards(score: Array, mask: Array, *, kl: Array | None = None, ref_kl_coef: float = 0.0) -> Array:
    """``score`` [T, N] at each response's last token, and ``-ref_kl_coef * kl`` at every token, [T, N, L].

    Ziegler et al. 2019, eq. 2, token by token as in its code.
    """
    reward = np.zeros(mask.shape, np.float32) if kl is None else (-ref_kl_coef * kl).astype(np.float32)
    last = np.maximum(mask.sum(-1) - 1, 0)[..., None]
    np.put_along_axis(reward, last, np.take_along_axis(reward, last, -1) + score[..., None].astype(np.float32), -1)
    return np.where(mask, reward, 0.0).astype(np.float32)


def overlong_penalties(length: Array, *, longest: int, buffer: int, factor: float) -> Array:
    """The amount that a response of ``length`` tokens loses: it rises from 0 to ``factor`` over the last ``buffer``.

    Yu et al. 2025 (DAPO), eq. 13, where ``longest`` tokens lose the whole ``factor``.
    """
    into_buffer: Array = (length - (longest - buffer)) / buffer
    return factor * into_buffer.clip(0.0, 1.0)


def whitened(values: Array, mask: Array, *, shift_mean: bool) -> Array:
    """Values of unit standard deviation over the mask, with their mean or (``shift_mean``) without; 0 elsewhere.

    Rewards keep their mean, as in Ziegler et al.'s code. The variance is unbiased, with 1e-8 added, as in TRL.
    """
    chosen = values[mask].astype(np.float64)
    if chosen.size <= 1:
        return np.where(mask, values, 0.0)
    scaled = (values - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    return np.where(mask, scaled if shift_mean else scaled + chosen.mean(), 0.0).astype(values.dtype)


def length_lambdas(length: Array, *, alpha: float | None = None, share: float | None = None) -> Array:
    """lambda of the tokens of a response of ``length`` tokens, so that long ones are not cut off from their score.

    With ``alpha`` 1 - 1 / (alpha * length), at least 0 (Yue et al. 2025, VAPO, where alpha = 0.05 is for thousands of
    tokens). With ``share`` share^(1 / (length - 1)): this share of the last token's error reaches the first one.
    """
    if alpha is not None:
        lambdas: Array = 1.0 - 1.0 / (alpha * np.maximum(length, 1))
        return lambdas.clip(0.0, 1.0)
    assert share is not None
    lambdas = share ** (1.0 / np.maximum(length - 1, 1))
    return lambdas


def turn_lambdas(mask: Array, turn_lambda: float) -> Array:
    """lambda of each token [..., L]: 1, and ``turn_lambda`` from a response's last token to the next response.

    Credit fades from turn to turn then, however many tokens they have.
    """
    slots = np.arange(mask.shape[-1])
    return np.where(slots == mask.sum(-1)[..., None] - 1, turn_lambda, 1.0)


def token_advantages(
    reward: Array,
    value: Array,
    mask: Array,
    *,
    last_value: Array,
    ended: Array,
    gamma: float,
    gae_lambda: float | Array,
) -> Array:
    """GAE over tokens [T, N, L], in which the next token of a response's last one is the next response's first.

    ``ended`` [T, N] is True where the episode ended with the response: nothing follows then. ``last_value`` [N] is that
    of the observation after the last step. gamma and lambda are per token; lambda may be of each token [T, N, L], from
    it to the next one. Observations in between take no time. Schulman et al. 2016, eq. 16.
    """
    decay = np.broadcast_to((gamma * np.asarray(gae_lambda, np.float64)).astype(np.float32), reward.shape)
    advantage = np.zeros(reward.shape, np.float32)
    next_value, next_advantage = last_value.astype(np.float32), np.zeros(reward.shape[1], np.float32)
    for step in range(len(reward) - 1, -1, -1):
        going = 1.0 - ended[step].astype(np.float32)
        next_value, next_advantage = next_value * going, next_advantage * going
        for slot in range(reward.shape[2] - 1, -1, -1):
            token = mask[step, :, slot]
            delta = reward[step, :, slot] + gamma * next_value - value[step, :, slot]
            current = delta + decay[step, :, slot] * next_advantage
            advantage[step, :, slot] = np.where(token, current, 0.0)
            next_advantage = np.where(token, current, next_advantage)
            next_value = np.where(token, value[step, :, slot], next_value)
    return advantage
