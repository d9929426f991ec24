from __future__ import annotations

import pytest

from sb3_ppo_ext import AdaptiveClipFraction, AdaptiveKL, Linear
from sb3_ppo_ext.knobs.knob_set import KnobSet

MEASURED = {"kl": 1.0, "clip_fraction": 0.4}


def knob_set() -> KnobSet:
    return KnobSet(
        {
            "clip_range": AdaptiveClipFraction(0.1, 0.1, every="minibatch").bind("clip_range"),
            "clip_range_high": None,
            "learning_rate": AdaptiveKL(1e-3, 0.01, every="epoch").bind("learning_rate"),
            "kl_coef": AdaptiveKL(1.0, 0.01).bind("kl_coef"),
            "ent_coef": Linear(0.2, 0.0),
            "vf_coef": Linear(1.0, 0.0, horizon=100),
        }
    )


@pytest.mark.parametrize(
    ("moment", "moved"), [("rollout", "kl_coef"), ("epoch", "learning_rate"), ("minibatch", "clip_range")]
)
def test_only_the_controllers_of_the_moment_move(moment: str, moved: str) -> None:
    knobs = knob_set()
    before = knobs.numbers()
    after = knobs.step(moment, MEASURED, 64)._asdict()
    assert {name for name in before if before[name] != after[name]} == {moved}
    assert knobs.values._asdict() == after
    assert knobs.any_at(moment)


def test_each_controller_answers_to_what_it_measures() -> None:
    knobs = knob_set()
    knobs.step("minibatch", {"kl": 1e-9, "clip_fraction": 0.4}, 64)
    assert knobs.values.clip_range == 0.2  # widened: too many were clipped, whatever the KL


def test_schedules_read_progress_or_their_own_horizon() -> None:
    knobs = knob_set()
    values = knobs.at(progress_remaining=0.5, timesteps=75)
    assert (values.ent_coef, values.vf_coef, values.clip_range_high) == (0.1, 0.25, None)
    assert "clip_range_high" not in knobs.numbers()


def test_controllers_keep_their_value_when_knobs_are_read_again() -> None:
    knobs = knob_set()
    knobs.step("rollout", MEASURED, 64)
    assert knobs.at(0.1, 1000).kl_coef == 2.0


def test_state_goes_to_controllers_of_the_same_settings_only() -> None:
    knobs, fresh = knob_set(), knob_set()
    knobs.step("rollout", MEASURED, 64)
    knobs.step("epoch", MEASURED, 64)
    saved = knobs.state_dict()
    saved["learning_rate"]["settings"] = "of another run"
    fresh.load_state_dict(saved)
    assert (fresh.values.kl_coef, fresh.values.learning_rate) == (2.0, 1e-3)
