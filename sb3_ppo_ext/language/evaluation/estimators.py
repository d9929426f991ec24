"""Estimates from n samples per prompt: pass@k, the majority of k, the best of k; and the error of their means.

P prompts, n samples of each. Every estimate is one number per prompt [P]; the samples of a prompt are alike, so that
the prompts, not the samples, are the independent observations of a mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def pass_at_k(success: np.ndarray, k: int) -> np.ndarray:
    """The chance [P] that k of the n samples, ``success`` [P, n], hold a success: 1 - C(n - c, k) / C(n, k).

    c is the number of successes. Chen et al. 2021, eq. 1; without bias, and with less noise than drawing k again.
    """
    n = success.shape[1]
    by_count = np.array([1.0 - math.comb(n - count, k) / math.comb(n, k) for count in range(n + 1)])
    return np.asarray(by_count[success.astype(bool).sum(axis=1)])


def best_of_k(score: np.ndarray, k: int) -> np.ndarray:
    """The expected best score [P] of k of the n samples, ``score`` [P, n], drawn without replacement.

    With s_(1) <= ... <= s_(n) it is sum_i C(i - 1, k - 1) / C(n, k) s_(i): how often s_(i) is the best of k.
    """
    n = score.shape[1]
    weights = np.array([math.comb(i - 1, k - 1) / math.comb(n, k) for i in range(1, n + 1)])
    return np.asarray(np.sort(score, axis=1) @ weights)


def majority_of_k(answers: Sequence[Sequence[Hashable | None]], success: np.ndarray, k: int) -> np.ndarray:
    """1 [P] where the commonest answer among the first k samples is a success, else 0; of equals the first counts.

    None is no answer and has no vote; a prompt without any answer counts as 0.
    """
    chosen = np.zeros(len(answers))
    for row, each in enumerate(answers):
        votes = Counter(answer for answer in each[:k] if answer is not None)
        if votes:
            commonest = votes.most_common(1)[0][0]
            chosen[row] = float(success[row, list(each).index(commonest)])
    return chosen


def standard_error(per_prompt: np.ndarray) -> float:
    """The standard error of the mean of [P] numbers, one per prompt; NaN for a single prompt, which shows no spread."""
    count = len(per_prompt)
    return float(per_prompt.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
