import copy
import pickle

import pytest
import torch

from sb3_ppo_ext import AdaptiveClipFraction, AdaptiveKL, Proportional, Threshold
from sb3_ppo_ext.knobs.controllers import Controller
from sb3_ppo_ext.update.step import controller_inputs


@pytest.mark.parametrize(("kl", "factor"), [(0.02, 2.0), (0.01, 1.0), (0.004, 0.5), (0.0151, 2.0), (0.0149, 1.0)])
def test_the_papers_rule(kl: float, factor: float) -> None:
    # Schulman et al. 2017, section 4: double above 1.5 targets, halve below target / 1.5.
    assert AdaptiveKL(3.0, 0.01).bind("kl_coef").update(kl, 1) == 3.0 * factor


@pytest.mark.parametrize(("kl", "expected"), [(3.0, 0.148464), (6.0, 0.15), (60.0, 0.151536)])
def test_the_proportional_rule(kl: float, expected: float) -> None:
    # Ziegler et al. 2019: 512 samples of a horizon of 10000 move 0.0512 of an error limited to 0.2, so 0.01024.
    controller = AdaptiveKL(0.15, 6.0, Proportional(10_000, 0.2)).bind("ref_kl_coef")
    assert controller.update(kl, 512) == pytest.approx(expected, rel=1e-12)


def test_rsl_rls_learning_rate_rule() -> None:
    # rsl_rl algorithms/ppo.py: / 1.5 above 2 targets, * 1.5 below half of it unless 0, within 1e-5 .. 1e-2.
    law = Threshold(2.0, 1.5)
    rates = [AdaptiveKL(1e-3, 0.01, law).bind("learning_rate").update(kl, 64) for kl in (0.021, 0.01, 0.004, 0.0)]
    assert rates == pytest.approx([1e-3 / 1.5, 1e-3, 1.5e-3, 1e-3])


@pytest.mark.parametrize(
    ("controller", "knob", "grows"),
    [
        (AdaptiveKL(0.1, 0.01), "kl_coef", True),
        (AdaptiveKL(0.1, 0.01), "ref_kl_coef", True),
        (AdaptiveKL(1e-3, 0.01), "learning_rate", False),
        (AdaptiveKL(0.2, 0.01), "clip_range", False),
        (AdaptiveKL(0.2, 0.01), "clip_range_high", False),
        (AdaptiveKL(0.2, 0.01), "clip_range_vf", False),
        (AdaptiveClipFraction(0.2, 0.01), "clip_range", True),
        (AdaptiveClipFraction(1e-3, 0.01), "learning_rate", False),
        (AdaptiveClipFraction(0.1, 0.01), "kl_coef", True),
    ],
)
def test_the_knob_decides_the_direction(controller: Controller, knob: str, grows: bool) -> None:
    bound = controller.bind(knob)
    assert (bound.update(0.5, 1) > controller.start) is grows


def test_no_clipped_ratio_in_a_rollout_is_a_finding_but_not_in_the_first_minibatch() -> None:
    assert AdaptiveClipFraction(0.2, 0.1).bind("clip_range").update(0.0, 1) == 0.1
    assert AdaptiveClipFraction(0.2, 0.1, every="minibatch").bind("clip_range").update(0.0, 1) == 0.2


def test_bounds_hold_in_both_directions() -> None:
    controller = AdaptiveKL(1.0, 0.01, bounds=(0.5, 4.0)).bind("kl_coef")
    assert [controller.update(1.0, 1) for _ in range(4)] == [2.0, 4.0, 4.0, 4.0]
    assert [controller.update(1e-4, 1) for _ in range(5)] == [2.0, 1.0, 0.5, 0.5, 0.5]


def test_default_bounds_belong_to_the_knob_and_admit_the_start() -> None:
    assert AdaptiveKL(1e-3, 0.01).bind("learning_rate").bounds == (1e-5, 1e-2)
    assert AdaptiveKL(0.1, 0.01).bind("learning_rate").bounds == (1e-5, 0.1)
    assert AdaptiveKL(2.0, 0.01).bind("kl_coef").bounds == (0.002, 2000.0)


def test_a_controller_is_a_schedule_of_its_value() -> None:
    controller = AdaptiveKL(1.0, 0.01).bind("kl_coef")
    controller.update(1.0, 1)
    assert controller(1.0) == controller(0.3) == 2.0


def test_reading_never_moves_and_binding_copies() -> None:
    unbound = AdaptiveKL(1.0, 0.01)
    bound = unbound.bind("kl_coef")
    bound.update(1.0, 1)
    assert (unbound.value, bound.value) == (1.0, 2.0)
    with pytest.raises(ValueError, match="bind"):
        unbound.update(1.0, 1)


def test_state_round_trips() -> None:
    controller = AdaptiveKL(1.0, 0.01, Proportional(100)).bind("kl_coef")
    controller.update(0.3, 64)
    fresh = AdaptiveKL(1.0, 0.01, Proportional(100)).bind("kl_coef")
    fresh.load_state_dict(controller.state_dict())
    assert fresh == controller == pickle.loads(pickle.dumps(controller)) == copy.deepcopy(controller)
    assert controller.state_dict() == {"value": controller.value}


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_a_diverged_kl_raises(kl: float) -> None:
    with pytest.raises(ValueError, match=r"kl_coef.*diverged"):
        AdaptiveKL(1.0, 0.01).bind("kl_coef").update(kl, 1)


def test_the_loop_closes_on_a_plant_whose_kl_is_quadratic_in_the_rate() -> None:
    # kl = 4e4 lr^2 equals the target 0.01 at lr = 5e-4; the dead band is a factor 1.5 in KL, so 1.22 in lr.
    controller = AdaptiveKL(1e-2, 0.01, Threshold(1.5, 1.1), bounds=(1e-6, 1.0)).bind("learning_rate")
    for _ in range(100):
        controller.update(4e4 * controller.value**2, 1)
    assert 0.01 / 1.5 <= 4e4 * controller.value**2 <= 0.01 * 1.5


def test_rounding_is_not_a_kl() -> None:
    assert controller_inputs(-6e-8, 0.3) == {"kl": 0.0, "clip_fraction": 0.3}
    assert controller_inputs(1e-5, 0.3)["kl"] == 1e-5
    assert controller_inputs(torch.tensor(-6e-8), torch.tensor(0.3))["kl"] == 0.0


def test_a_long_rollout_cannot_turn_the_pressure_around() -> None:
    assert Proportional(100, 0.5)(0.0, 1_000_000) == 0.5  # 1 - limit, not 1 - 5000


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: AdaptiveKL(1.0, 0.0), "target"),
        (lambda: AdaptiveKL(0.0, 0.01), "start"),
        (lambda: AdaptiveKL(1.0, 0.01, bounds=(2.0, 1.0)), "bounds"),
        (lambda: AdaptiveKL(1.0, 0.01, bounds=(2.0, 3.0)), "outside"),
        (lambda: AdaptiveKL(1.0, 0.01, every="step"), "every"),
        (lambda: AdaptiveClipFraction(1.0, 1.0), "target"),
        (lambda: Threshold(1.0, 2.0), "margin"),
        (lambda: Proportional(-1.0), "horizon"),
        (lambda: Proportional(10.0, 1.0), "limit"),
    ],
)
def test_a_wrong_controller_says_what_is_wrong(build: object, named: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=named):
        build()
