"""Composing the terms: what a minibatch's loss is made of, and that scale and mask act where they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.objective.batch import Evaluation
from sb3_ppo_ext.objective.distributions import Gaussian
from sb3_ppo_ext.objective.losses import clipped_surrogate, kl_k1
from sb3_ppo_ext.objective.statistics import OF_TOKENS, Measurement, statistics, statistics_of, statistics_of_all
from sb3_ppo_ext.objective.terms import KnobValues, Objective, Terms, ppo_terms
from tests.objective.minibatches import evaluation, minibatch, numbers

PLAIN = Objective(normalize_advantage=False)


def test_the_loss_is_weighed_in_one_place() -> None:
    terms = Terms(numbers(1.0), numbers(10.0), numbers(100.0), numbers(1000.0))
    knobs = KnobValues(0.2, ent_coef=0.02, vf_coef=0.3, kl_coef=0.004)
    torch.testing.assert_close(terms.weighted(knobs).total(), numbers(1.0 + 2.0 + 3.0 + 4.0))
    torch.testing.assert_close(terms._replace(kl=None).weighted(knobs).total(), numbers(6.0))


def test_terms_are_those_of_the_pure_functions() -> None:
    new, batch = evaluation(), minibatch()
    terms = ppo_terms(new, batch, PLAIN, KnobValues(0.1, clip_range_high=0.4))
    log_ratio = new.log_prob - batch.action_log_prob
    torch.testing.assert_close(terms.policy, clipped_surrogate(log_ratio, batch.advantage, low=0.1, high=0.4))
    torch.testing.assert_close(terms.value, numbers((0.25 + 0.64 + 2.25) / 3).squeeze())
    torch.testing.assert_close(terms.entropy, numbers(-0.4).squeeze())
    assert terms.kl is None


@pytest.mark.parametrize("value_clip", ["sb3", "max"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_scale_is_the_unit_of_the_whole_value_term(clip: float | None, value_clip: str) -> None:
    choices = Objective(value_clip=value_clip)
    knobs = KnobValues(0.2, clip_range_vf=clip)
    plain = ppo_terms(evaluation(), minibatch(), choices, knobs)
    scaled = ppo_terms(evaluation(50.0), minibatch(50.0), choices, knobs, value_scale=50.0)
    torch.testing.assert_close(scaled.value, plain.value)


def test_the_penalty_is_by_the_estimator_that_was_chosen() -> None:
    new, batch = evaluation(), minibatch()
    exact = ppo_terms(new, batch, Objective(penalized=True), KnobValues(0.2)).kl
    # two Bernoullis with logits 0 and 1: log 2 ... 0.5 log(0.5 / s) + 0.5 log(0.5 / (1 - s)), s = 0.7310586
    torch.testing.assert_close(exact, torch.tensor(0.1201145))
    k1 = ppo_terms(new, batch, Objective(penalized=True, kl_estimator="k1"), KnobValues(0.2)).kl
    torch.testing.assert_close(k1, kl_k1(new.log_prob - batch.action_log_prob))


def test_mean_and_deviation_have_their_own_weights() -> None:
    # s = 1 and m = 0 become s' = 2 and m' = 1: KL of the mean 1 / 2, of the deviation
    # log 2 + 1 / 8 - 1 / 2 = 0.3181472.
    old, ones = Gaussian(torch.zeros(3, 1), torch.ones(3, 1)), torch.ones(3, 1)
    new, batch = evaluation()._replace(distribution=Gaussian(ones, 2 * ones)), minibatch()._replace(distribution=old)
    choices = Objective(penalized=True, splits_kl=True)
    knobs = KnobValues(0.2, kl_coef=10.0, kl_coef_std=100.0)
    terms = ppo_terms(new, batch, choices, knobs)
    plain = ppo_terms(new, batch, Objective(), knobs)
    assert terms.kl is not None and terms.kl_std is not None
    assert (terms.kl.item(), terms.kl_std.item()) == pytest.approx((0.5, 0.3181472))
    added = terms.weighted(knobs).total() - plain.weighted(knobs).total()
    assert added.item() == pytest.approx(10 * 0.5 + 100 * 0.3181472, rel=1e-5)
    found = statistics(new, batch, terms, added, choices, knobs)
    assert found.kl_std.item() == pytest.approx(0.3181472)
    # The whole KL, which kl_coef's controller answers to: log 2 + (1 + 1) / 8 - 1 / 2.
    assert found.kl.item() == pytest.approx(0.4431472)


def test_statistics_count_each_side_of_the_clip() -> None:
    new, batch = evaluation(), minibatch()
    knobs = KnobValues(0.2, clip_range_high=0.7)
    terms = ppo_terms(new, batch, PLAIN, knobs)
    values = statistics(new, batch, terms, terms.weighted(knobs).total(), PLAIN, knobs)._asdict()
    # ratios e^0.5 = 1.649, e^-0.5 = 0.607 and 1: none above 1.7, one below 0.8
    assert values["clip_fraction_low"] == pytest.approx(1 / 3)
    assert values["clip_fraction_high"] == 0.0
    assert values["ratio_max"] == pytest.approx(1.6487213)
    assert values["kl"] == values["kl_exact"] == pytest.approx(0.1201145)


def test_tokens_under_a_mask_weigh_what_they_weigh_without_padding() -> None:
    new, batch = evaluation(), minibatch()
    nan = float("nan")

    def padded(tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        return torch.stack((torch.stack((tensor[0], tensor[1])), torch.stack((tensor[2], torch.tensor(nan)))))

    mask = torch.tensor([[True, True], [True, False]])
    tokens = Evaluation(padded(new.log_prob), padded(new.entropy), padded(new.value), mask=mask)
    fields = ("action_log_prob", "state_value", "advantage", "value_target")
    given: dict[str, Any] = {name: padded(getattr(batch, name)) for name in fields}
    padded_batch = batch._replace(distribution=None, **given)
    choices = Objective(penalized=True, kl_estimator="k3")
    knobs = KnobValues(0.2, clip_range_vf=0.3, ent_coef=0.01, kl_coef=0.5)
    plain = ppo_terms(new, batch, choices, knobs)
    masked = ppo_terms(tokens, padded_batch, choices, knobs)
    for name in Terms._fields:
        torch.testing.assert_close(getattr(masked, name), getattr(plain, name), msg=name)
    rows = [
        statistics(one, other, terms, terms.weighted(knobs).total(), choices, knobs).row()[: -len(OF_TOKENS)]
        for one, other, terms in ((new, batch._replace(distribution=None), plain), (tokens, padded_batch, masked))
    ]
    torch.testing.assert_close(*rows, equal_nan=True)


@pytest.mark.parametrize("estimator", ["exact", "k1", "k2", "k3"])
@pytest.mark.parametrize("masked", [False, True])
def test_statistics_of_many_minibatches_are_those_of_each(estimator: str, masked: bool) -> None:
    shape = (5, 3) if masked else (5,)
    kept = [
        Measurement(
            (torch.randn(()), torch.randn(()), torch.randn(()), torch.randn(())),
            torch.randn(shape if index < 3 else (2, *shape[1:])),  # the last is smaller
            torch.rand(()) if masked else None,
            torch.rand(shape if index < 3 else (2, *shape[1:])) < 0.7 if masked else None,
        )
        for index in range(4)
    ]
    choices, knobs = Objective(kl_estimator=estimator), KnobValues(0.2, 0.3)
    expected = torch.stack([statistics_of(one, choices, knobs).row() for one in kept])
    torch.testing.assert_close(statistics_of_all(kept, choices, knobs).row(), expected, equal_nan=True)
