"""The objective without its mean: sums, one number per slot, other value errors, the reference policy, and weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.objective import losses as objective
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.distributions import Gaussian
from sb3_ppo_ext.objective.losses import effective_sample_size, fill_masked, masked_sum, normalized, value_loss
from sb3_ppo_ext.objective.terms import KnobValues, Objective, Terms, ppo_terms

MASK = torch.tensor([True, False, True, True])
KNOBS = KnobValues(0.2, clip_range_vf=0.3, ent_coef=0.1, kl_coef=0.5, ref_kl_coef=0.25, kl_coef_std=0.7)


def evaluated(mask: Tensor | None) -> tuple[Evaluation, Minibatch]:
    torch.manual_seed(0)
    one, two, three, four, five, six = torch.randn(6, 4)
    old, later = (Gaussian(torch.randn(4, 2), torch.rand(4, 2) + 0.5) for _ in range(2))
    rows = Minibatch(torch.zeros(4, 1), torch.zeros(4), one, two, three, four, old)
    rows = rows._replace(nll_weight=three.abs())
    return Evaluation(one + 0.3 * five, six.abs(), two + five, later, mask, six), rows


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("error", ["l2", "l1", "smooth_l1"])
@pytest.mark.parametrize("value_clip", ["sb3", "max"])
@pytest.mark.parametrize("surrogate", ["clip", "dual", "spo", "none"])
def test_the_mean_is_that_of_the_slots_and_so_is_the_sum(
    surrogate: str, value_clip: str, error: str, mask: Tensor | None
) -> None:
    dual = surrogate == "dual"
    choices = Objective(
        *("clip" if dual else surrogate, 3.0 if dual else None, True, "exact", value_clip, False, error), splits_kl=True
    )
    new, rows = evaluated(mask)
    count = 4 if mask is None else 3
    mean = ppo_terms(new, rows, choices, KNOBS)
    total = ppo_terms(new, rows, choices, KNOBS, reduce=masked_sum)
    slots = ppo_terms(new, rows, choices, KNOBS, reduce=fill_masked)
    for name in Terms._fields:
        assert getattr(slots, name).shape == (4,)
        assert mask is None or getattr(slots, name)[1] == 0
        torch.testing.assert_close(getattr(slots, name).sum() / count, getattr(mean, name))
        torch.testing.assert_close(getattr(total, name) / count, getattr(mean, name))


def test_value_errors_by_hand() -> None:
    value, target = torch.tensor([0.0, 0.0]), torch.tensor([0.5, -3.0])
    assert value_loss(value, target).item() == (0.25 + 9) / 2
    assert value_loss(value, target, error="l1").item() == (0.5 + 3) / 2
    assert value_loss(value, target, error="smooth_l1").item() == (0.5**2 / 2 + 3 - 0.5) / 2  # Huber with delta 1


def test_reference_kl_grows_with_the_distance_and_is_zero_at_it() -> None:
    new, rows = evaluated(None)
    at = new._replace(ref_log_prob=new.log_prob)
    assert ppo_terms(at, rows, Objective(), KNOBS).ref_kl == 0
    # log-ratio reference / new = -1 everywhere: k3 = e^-1 - 1 + 1, k1 = 1
    away = new._replace(ref_log_prob=new.log_prob - 1)
    for estimator, expected in (("exact", 0.36787944), ("k3", 0.36787944), ("k1", 1.0), ("k2", 0.5)):
        choices = Objective(kl_estimator=estimator)
        torch.testing.assert_close(ppo_terms(away, rows, choices, KNOBS).ref_kl, torch.tensor(expected))


def test_every_weight_meets_its_own_term() -> None:
    terms = Terms(*(torch.tensor(float(10**power)) for power in range(7)))
    knobs = KnobValues(0.2, vf_coef=2, ent_coef=3, kl_coef=4, ref_kl_coef=5, kl_coef_std=6)
    weighted = [float(term) for term in terms.weighted(knobs) if term is not None]
    assert weighted == [1, 20, 300, 4000, 50000, 600000, 1000000]
    assert terms.weighted(knobs).total() == 1654321


def test_effective_sample_size() -> None:
    log_ratio = torch.tensor([1.0, 3.0]).log()
    torch.testing.assert_close(effective_sample_size(log_ratio), torch.tensor(16 / 10 / 2))  # (1 + 3)^2 / (1 + 9) / 2
    padded, mask = torch.cat((log_ratio, torch.tensor([float("nan")]))), torch.tensor([True, True, False])
    torch.testing.assert_close(effective_sample_size(padded, mask), torch.tensor(0.8))
    assert effective_sample_size(padded, torch.zeros(3, dtype=torch.bool)) == 0


def test_normalised_under_a_mask_is_normalised_without_the_rest() -> None:
    advantage = torch.tensor([1.0, float("nan"), 4.0, -2.0])
    torch.testing.assert_close(normalized(advantage, MASK)[MASK], normalized(advantage[MASK]))
    alone = torch.tensor([True, False, False, False])
    assert normalized(advantage, alone)[0] == 1.0
    traced = torch.compile(objective.normalized, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(advantage, MASK)[MASK], normalized(advantage[MASK]))
