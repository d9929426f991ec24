"""The log's records of a rollout of responses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sb3_ppo_ext.language.training.groups import Episodes, groups_of
from sb3_ppo_ext.language.training.importance import mismatch
from sb3_ppo_ext.language.training.refill import refill_records

if TYPE_CHECKING:
    from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
    from sb3_ppo_ext.language.training.token_rollout import TokenRollout


def response_records(rollout: TokenRollout) -> dict[str, float]:
    """Key -> value: lengths, endings, diversity, score, and the KL to the reference where there is one."""
    buffer = rollout.buffer
    lengths, cut_off = buffer.masks.sum(-1), buffer.cut_off()
    records = {
        "lm/score": buffer.rewards.mean(),
        "lm/score_std": buffer.rewards.std(),
        "lm/response_length": lengths.mean(),
        "lm/eos_rate": 1.0 - cut_off.mean(),
        "lm/cut_off_rate": cut_off.mean(),
        "lm/distinct_2": distinct_pairs(buffer.actions, buffer.masks),
        "lm/entropy_sampled": float(-buffer.log_probs.sum()) / max(int(lengths.sum()), 1),
    }
    if buffer.ref_log_probs is not None:
        k1, k3 = (buffer.token_kl(name).sum(-1) for name in ("k1", "k3"))
        records |= {
            "lm/kl_ref": k1.mean(),  # nats per response
            "lm/kl_ref_k3": k3.mean(),
            "lm/kl_ref_per_token": k1.sum() / max(int(lengths.sum()), 1),
            "lm/rlhf_reward": (buffer.rewards - rollout.ref_kl_coef * k1).mean(),
        }
    records |= {f"lm/reward/{name}": mean for name, mean in rollout.reward_means.items()}
    if buffer.settings.has_length_penalty:
        records["lm/length_penalty"] = buffer.length_penalties().mean()
    if buffer.settings.positive_nll_coef > 0:
        records["lm/right_fraction"] = buffer.right().mean()
    if buffer.sampler_log_probs is not None:
        masks, bound = buffer.masks, buffer.settings.importance_bound
        found = mismatch(buffer.log_probs[masks], buffer.sampler_log_probs[masks], bound)
        records |= {f"sampler/{name}": value for name, value in found.items()}
    records |= group_records(buffer) if buffer.draws is None else refill_records(buffer.draws)
    sampled = int(lengths.sum()) if buffer.draws is None else buffer.draws["tokens"]
    records |= speeds(sampled, rollout.seconds())
    return {key: float(value) for key, value in records.items()}


def group_records(buffer: SequenceRolloutBuffer) -> dict[str, float]:
    """Key -> value: how often the responses to a prompt differ in score; empty where a prompt has one response.

    Scores are the environment's, and so is the rule by which a response is right; else ``success_score`` is.
    """
    episodes = Episodes.of(buffer.episode_starts, buffer.ended)
    if (buffer.group_ids < 0).any() or (groups := groups_of(buffer.group_ids, episodes)).counts.max() < 2:
        return {}
    score = episodes.sum(buffer.rewards)
    right = np.bincount(groups.index, weights=episodes.at_first(buffer.right())) / groups.counts
    records = {
        "groups/informative_fraction": float((groups.spread(score) > 0).mean()),
        "groups/all_right": float((right == 1).mean()),
        "groups/all_wrong": float((right == 0).mean()),
        "groups/reward_std": float(groups.std(score).mean()) if groups.counts.min() > 1 else math.nan,
    }
    if (chosen := buffer.in_policy_loss()) is not None:
        records["groups/generated_per_kept"] = chosen.size / max(int(chosen.sum()), 1)
    return records


def speeds(tokens: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """Sampled tokens, also of responses that were left out, per second of each part of the work, and of all of it.

    The reciprocals add up.
    """
    records = {f"time/{work}_tokens_per_second": tokens / max(spent, 1e-9) for work, spent in seconds.items()}
    return records | {"time/tokens_per_second": tokens / max(sum(seconds.values()), 1e-9)}


def distinct_pairs(token: np.ndarray, mask: np.ndarray) -> float:
    """Distinct-2: the fraction of pairs of neighbouring tokens, over all responses, that are different from each other.

    Li et al. 2016. 1 where no pair occurs twice; 1 as well where no response has two tokens.
    """
    both = mask[..., 1:] & mask[..., :-1]
    pairs = np.stack((token[..., :-1][both], token[..., 1:][both]), axis=-1)
    return len(np.unique(pairs, axis=0)) / len(pairs) if len(pairs) else 1.0
