from __future__ import annotations

import math

import numpy as np
import pytest

from sb3_ppo_ext.language.training.importance import importance_weights, mismatch
from sb3_ppo_ext.language.training.token_settings import TokenSettings

POLICY = np.log(np.array([0.5, 0.2, 0.6], np.float32))
SAMPLER = np.log(np.array([0.4, 0.4, 0.1], np.float32))
RATIOS = [1.25, 0.5, 6.0]


def test_a_token_weighs_policy_over_sampler_up_to_the_bound() -> None:
    np.testing.assert_allclose(importance_weights(POLICY, SAMPLER, 2.0), [1.25, 0.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(importance_weights(POLICY, SAMPLER, 10.0), RATIOS, rtol=1e-6)
    assert importance_weights(POLICY, SAMPLER, None).tolist() == [1.0, 1.0, 1.0]


def test_unknown_and_extreme_log_probabilities_have_finite_weights() -> None:
    sampler = np.array([math.nan, -1e9, 0.0], np.float32)
    weights = importance_weights(np.array([-1.0, -1.0, -1e9], np.float32), sampler, 2.0)
    assert weights[:2].tolist() == [1.0, 2.0] and 0 < weights[2] < 1e-8


def test_the_weighted_mean_of_what_the_sampler_draws_is_that_of_the_policy() -> None:
    """E_mu[w f] = E_pi[f] where no weight is bounded."""
    policy, sampler, values = np.array([0.5, 0.2, 0.3]), np.array([0.4, 0.4, 0.2]), np.array([1.0, -2.0, 5.0])
    weights = importance_weights(np.log(policy), np.log(sampler), 2.0)
    assert (sampler * weights * values).sum() == pytest.approx((policy * values).sum(), rel=1e-6)


def test_the_distance_between_sampler_and_policy() -> None:
    d = [math.log(ratio) for ratio in RATIOS]
    found = mismatch(POLICY, SAMPLER, 2.0)
    assert found["kl"] == pytest.approx(-sum(d) / 3, rel=1e-5)
    # k3 = r - 1 - log r: 1.25 - 1 - .2231, .5 - 1 + .6931, 6 - 1 - 1.7918: the mean is 1.1428.
    assert found["kl_k3"] == pytest.approx((0.02686 + 0.19315 + 3.20824) / 3, rel=1e-4)
    assert found["log_ratio_max"] == pytest.approx(math.log(6), rel=1e-5)
    assert found["ratio_outside"] == 1.0
    assert found["probability_difference"] == pytest.approx((0.1 + 0.2 + 0.5) / 3, rel=1e-5)
    # w = 1.25, .5, 2: 3.75^2 / (3 * (1.5625 + .25 + 4)) = 14.0625 / 17.4375.
    assert found["effective_fraction"] == pytest.approx(14.0625 / 17.4375, rel=1e-5)
    assert found["weights_clipped"] == pytest.approx(1 / 3)


def test_equal_distributions_have_no_distance_and_unknown_tokens_do_not_count() -> None:
    found = mismatch(np.append(POLICY, -1.0), np.append(POLICY, math.nan), 2.0)
    zeros = ("kl", "kl_k3", "log_ratio_max", "ratio_outside", "probability_difference", "weights_clipped")
    assert [found[name] for name in zeros] == [0.0] * 6 and found["effective_fraction"] == 1.0
    assert mismatch(POLICY, np.full(3, math.nan), 2.0) == {}


@pytest.mark.parametrize("bound", [0.5, -1, "2", math.nan])
def test_a_bound_below_one_is_refused(bound: object) -> None:
    with pytest.raises(ValueError, match="importance_bound="):
        TokenSettings(importance_bound=bound)  # type: ignore[arg-type]  # what a user may pass
