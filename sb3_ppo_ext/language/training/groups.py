"""Advantages of responses relative to the other responses to their prompt: pure functions over M scores and groups.

A member of a group is an episode: one response, or the responses of several turns. ``GROUP_ADVANTAGES`` holds the
baselines by name; a function put there under another name works in ``group_advantage`` too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray

EPSILON = 1e-6  # added to standard deviations, as in verl


class Groups:
    """The members of each group, for means and deviations over them; ``ids`` [M] names each member's group."""

    def __init__(self, ids: Array) -> None:
        self.ids, self.index, counts = np.unique(ids, return_inverse=True, return_counts=True)
        self.counts: Array = counts
        self.count: Array = counts[self.index]  # [M], the size of each member's group

    def mean(self, values: Array) -> Array:
        """The mean of ``values`` [M] over each member's group, [M]."""
        means: Array = np.bincount(self.index, weights=values) / self.counts
        return means[self.index]

    def std(self, values: Array) -> Array:
        """The unbiased standard deviation of ``values`` [M] over each member's group, [M]."""
        squares: Array = np.bincount(self.index, weights=(values - self.mean(values)) ** 2)
        return np.asarray(np.sqrt(squares / (self.counts - 1)))[self.index]

    def spread(self, values: Array) -> Array:
        """The greatest value minus the least of each group [G]; exactly 0 where all members have the same."""
        highest, lowest = np.full(len(self.ids), -np.inf), np.full(len(self.ids), np.inf)
        np.maximum.at(highest, self.index, values)
        np.minimum.at(lowest, self.index, values)
        spread: Array = highest - lowest
        return spread


def mean_of_others(values: Array, groups: Groups) -> Array:
    """The mean of ``values`` [M] over the other members of each member's group, [M]."""
    others: Array = (groups.count * groups.mean(values) - values) / (groups.count - 1)
    return others


def leave_one_out(score: Array, groups: Groups) -> Array:
    """RLOO: the score minus the mean of the group's other scores (Kool et al. 2019; Ahmadian et al. 2024)."""
    advantage: Array = score - mean_of_others(score, groups)
    return advantage


def group_normalized(score: Array, groups: Groups) -> Array:
    """GRPO: the score minus the group's mean, over its unbiased standard deviation (Shao et al. 2024, 4.1.2)."""
    advantage: Array = (score - groups.mean(score)) / (groups.std(score) + EPSILON)
    return advantage


def group_centred(score: Array, groups: Groups) -> Array:
    """Dr. GRPO: the score minus the group's mean (Liu et al. 2025); its loss has ``loss_mean="length"``."""
    advantage: Array = score - groups.mean(score)
    return advantage


def batch_scaled(score: Array, groups: Groups) -> Array:
    """The score minus the group's mean, over the standard deviation of all scores (TRL's ``scale_rewards="batch"``)."""
    advantage: Array = (score - groups.mean(score)) / (score.std(ddof=1) + EPSILON)
    return advantage


GroupAdvantage = Callable[[Array, Groups], Array]  # scores [M] and groups, in float64, to advantages [M]

GROUP_ADVANTAGES: dict[str, GroupAdvantage] = {
    "rloo": leave_one_out,
    "grpo": group_normalized,
    "dr_grpo": group_centred,
    "batch": batch_scaled,
}
WITH_CRITIC = "leave_one_out"  # the name of GAE with ``critic_corrections``


def group_advantage(name: str, score: Array, groups: Groups) -> Array:
    """The advantages [M] by the baseline of that name; exactly 0 in a group whose scores are all equal.

    Rounding leaves a constant group a standard deviation of 1e-8, by which a difference of 1e-8 must not be divided.
    """
    score = score.astype(np.float64)
    advantage = GROUP_ADVANTAGES[name](score, groups)
    return np.where((groups.spread(score) == 0)[groups.index], 0.0, advantage)


def require_comparable(score: Array, groups: Groups) -> None:
    """``ValueError`` for a score that is not finite, and for a group of one member."""
    if not np.isfinite(score).all():
        member = int(np.flatnonzero(~np.isfinite(score))[0])
        raise ValueError(
            f"the score of response {member} in group {groups.ids[groups.index[member]]} is {score[member]}, and would "
            "make the advantages of its whole group so; the reward function must return finite numbers"
        )
    if (groups.counts < 2).any():
        group = groups.ids[np.flatnonzero(groups.counts < 2)[0]]
        raise ValueError(
            f"group {group} has one response, which leaves nothing to compare it with; pass "
            "PromptVecEnv(..., group_size=n) with n of at least 2"
        )


class Episodes(NamedTuple):
    """The episodes of a rollout of T steps of N environments; a rollout may cut the first and the last of a column."""

    first: Array  # [T, N], bool: the step is the first of its episode within the rollout
    number: Array  # [T, N], which of the M episodes the step belongs to
    unfinished: Array  # [M], bool: the episode goes on after the rollout, or began before it

    @classmethod
    def of(cls, starts: Array, ended: Array) -> Episodes:
        """The episodes by the steps that begin one and those that end one, [T, N] each."""
        first = starts.astype(bool).copy()
        first[0] = True
        number = (np.cumsum(first.T.reshape(-1)) - 1).reshape(first.T.shape).T  # environment after environment
        unfinished = np.zeros(int(first.sum()), bool)
        unfinished[number[-1][~ended[-1]]] = True
        unfinished[number[0][~starts[0].astype(bool)]] = True
        return cls(first, number, unfinished)

    def sum(self, values: Array) -> Array:
        """The sums [M] of ``values`` [T, N] over the steps of each episode, in float64."""
        return np.bincount(self.number.reshape(-1), weights=values.astype(np.float64).reshape(-1))

    def at_first(self, values: Array) -> Array:
        """The values [M] of ``values`` [T, N] at the first step of each episode."""
        chosen: Array = values.T[self.first.T]
        return chosen


def episode_advantages(name: str, reward: Array, mask: Array, ids: Array, starts: Array, ended: Array) -> Array:
    """The advantage of each token [T, N, L]: that of its episode, whose score is the sum of its tokens' rewards.

    ``ids`` [T, N] are the groups; ``starts`` and ``ended`` [T, N] where an episode begins and ends. ``ValueError``
    for an episode that the rollout cuts: it has no score yet.
    """
    episodes = Episodes.of(starts, ended)
    if episodes.unfinished.any():
        raise ValueError(
            f"{int(episodes.unfinished.sum())} of {len(episodes.unfinished)} episodes do not lie within the rollout, "
            'and without a critic they have no score; pass an n_steps that ends with them, or value="shared"'
        )
    groups = groups_of(ids, episodes)
    score = episodes.sum(reward.sum(axis=-1, dtype=np.float64))
    require_comparable(score, groups)
    advantage = group_advantage(name, score, groups)[episodes.number]
    return np.where(mask, advantage[..., None], 0.0).astype(np.float32)


def critic_corrections(residual: Array, ids: Array, starts: Array, ended: Array) -> Array:
    """The critic's mean error at the group's other episodes [T, N], to be taken off the advantages of a step's tokens.

    ``residual`` [T, N] is each response's return minus the value before its first token. Of an episode that of its
    first step counts: R - V(prompt). The mean over the others does not depend on the actions of the episode itself, so
    the policy gradient stays unbiased.
    """
    episodes = Episodes.of(starts, ended)
    groups = groups_of(ids, episodes)
    errors = episodes.at_first(residual).astype(np.float64)
    require_comparable(errors, groups)
    corrections: Array = mean_of_others(errors, groups)[episodes.number]
    return corrections


def informative(score: Array, ids: Array, starts: Array, ended: Array) -> Array:
    """True for the steps [T, N] whose group has scores that differ; ``score`` [T, N] is as the environment gave it."""
    episodes = Episodes.of(starts, ended)
    groups = groups_of(ids, episodes)
    differs: Array = (groups.spread(episodes.sum(score)) > 0)[groups.index][episodes.number]
    return differs


def groups_of(ids: Array, episodes: Episodes) -> Groups:
    """The groups of the episodes by the ids [T, N] of their steps; ``ValueError`` where ids are missing (-1)."""
    if (ids < 0).any():
        raise ValueError(
            "the environments name no groups; pass PromptVecEnv(..., group_size=n), or give environments of your own "
            "an attribute group_id (a vector environment: group_ids), a number of at least 0"
        )
    return Groups(episodes.at_first(ids))
