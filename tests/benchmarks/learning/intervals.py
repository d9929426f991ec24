"""Interquartile mean, mean of ratios, and their intervals by a bootstrap that draws runs anew within each task.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". ``scores`` maps a task
to the [runs] of one arm. Percentile intervals of 95 %; the interval of a difference draws both sides anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, NDArray[np.float64]]
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # [draws, runs of all tasks] -> [draws]


class Interval(NamedTuple):
    """A statistic and the interval that holds it in 95 % of experiments like this."""

    value: float
    low: float
    high: float


def interquartile_mean(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the middle half of [..., n] values: int(n / 4) are left out at each end."""
    left_out = pooled.shape[-1] // 4
    middle: NDArray[np.float64] = np.sort(pooled, axis=-1)[..., left_out : pooled.shape[-1] - left_out]
    return np.asarray(middle.mean(axis=-1))


def mean(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the last axis; of normalised scores with equally many runs of each task, the mean ratio."""
    return np.asarray(pooled.mean(axis=-1))


def drawn(scores: Scores, draws: int, random: np.random.Generator) -> NDArray[np.float64]:
    """[draws, runs of all tasks]: each task's runs drawn with replacement from that task's own."""
    tasks = [np.asarray(runs, dtype=np.float64) for runs in scores.values()]
    return np.concatenate([runs[random.integers(len(runs), size=(draws, len(runs)))] for runs in tasks], axis=1)


def pooled(scores: Scores) -> NDArray[np.float64]:
    """[1, runs of all tasks]."""
    return np.concatenate([np.asarray(runs, dtype=np.float64) for runs in scores.values()])[None]


def interval(scores: Scores, statistic: Statistic, *, draws: int = 20_000, seed: int = 0) -> Interval:
    """The statistic of one arm."""
    random = np.random.default_rng(seed)
    low, high = np.quantile(statistic(drawn(scores, draws, random)), [0.025, 0.975])
    return Interval(float(statistic(pooled(scores))[0]), float(low), float(high))


def difference(ours: Scores, theirs: Scores, statistic: Statistic, *, draws: int = 20_000, seed: int = 0) -> Interval:
    """``statistic(ours) - statistic(theirs)``; beyond chance where the interval leaves out 0."""
    random = np.random.default_rng(seed)
    differences = statistic(drawn(ours, draws, random)) - statistic(drawn(theirs, draws, random))
    low, high = np.quantile(differences, [0.025, 0.975])
    return Interval(float(statistic(pooled(ours))[0] - statistic(pooled(theirs))[0]), float(low), float(high))


def probability_of_improvement(ours: Scores, theirs: Scores) -> float:
    """The chance that a run of ours beats a run of theirs on the same task, the mean over tasks; ties count half."""
    chances = []
    for task, runs in ours.items():
        ahead = np.asarray(runs)[:, None] - np.asarray(theirs[task])[None]
        chances.append(float((ahead > 0).mean() + (ahead == 0).mean() / 2))
    return float(np.mean(chances))


def normalised(runs: NDArray[np.float64], random: float, reference: float) -> NDArray[np.float64]:
    """Scores on the scale where a random policy is 0 and the reference (Stable-Baselines3's defaults) is 1."""
    return (np.asarray(runs, dtype=np.float64) - random) / (reference - random)
