"""Estimates from n samples, on numbers counted by hand and on every subset."""

from __future__ import annotations

from itertools import combinations
from math import isnan

import numpy as np
import pytest

from sb3_ppo_ext.language.evaluation.estimators import best_of_k, majority_of_k, pass_at_k, standard_error
from sb3_ppo_ext.language.policies.sampling import best_of_n_kl

SCORE = np.array([[0.5, 2.0, -1.0, 0.0], [1.0, 1.0, 0.0, 3.0]])


def test_pass_at_k_by_hand() -> None:
    """Of 4 samples with 1 success a pair holds it in 3 of 6 cases; with 3 successes always."""
    success = np.array([[0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]])
    assert pass_at_k(success, 1).tolist() == [0.25, 0.75, 0.0]
    assert pass_at_k(success, 2).tolist() == [0.5, 1.0, 0.0]
    assert pass_at_k(success, 4).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_best_and_pass_are_means_over_all_subsets(k: int) -> None:
    subsets = list(combinations(range(4), k))
    best = [np.mean([row[list(subset)].max() for subset in subsets]) for row in SCORE]
    passed = [np.mean([(row[list(subset)] > 0.7).any() for subset in subsets]) for row in SCORE]
    assert best_of_k(SCORE, k) == pytest.approx(best) and pass_at_k(SCORE > 0.7, k) == pytest.approx(passed)


def test_the_commonest_answer_counts_and_no_answer_has_no_vote() -> None:
    answers: list[list[str | None]] = [["7", "8", "8", "7"], [None, None, "3", "4"], [None, None, None, None]]
    success = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
    assert majority_of_k(answers, success, 4).tolist() == [1, 1, 0]  # of equals the first
    assert majority_of_k(answers, success, 3).tolist() == [0, 1, 0]
    assert majority_of_k(answers, success, 2).tolist() == [1, 0, 0]


def test_the_error_of_a_mean_is_that_over_prompts() -> None:
    """Means 0, 1, 0, 1: standard deviation 0.57735 with 3 degrees of freedom, over the root of 4 prompts."""
    assert standard_error(np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx(0.288675, abs=1e-6)
    assert isnan(standard_error(np.array([1.0])))


def test_the_kl_of_the_best_of_n() -> None:
    assert best_of_n_kl(1) == 0.0 and best_of_n_kl(4) == pytest.approx(0.636294, abs=1e-6)
