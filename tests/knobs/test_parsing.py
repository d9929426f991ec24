from collections.abc import Callable

import numpy as np
import pytest
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_ppo_ext import AdaptiveClipFraction, AdaptiveKL, Cosine, Exponential, Linear, Piecewise, Threshold, Warmup
from sb3_ppo_ext.knobs.laws import Proportional
from sb3_ppo_ext.knobs.parsing import KNOBS, parse_knob

RSL_RL = {"start": "1e-3", "target": 0.01, "law": {"threshold": {"margin": 2, "factor": 1.5}}, "every": "minibatch"}


@pytest.mark.parametrize("value", [0.25, "0.25", "2.5e-1", np.float32(0.25), np.float64(0.25)])
def test_numbers_in_any_form(value: object) -> None:
    assert parse_knob("ent_coef", value) == 0.25


@pytest.mark.parametrize(
    ("form", "schedule"),
    [
        ("linear:3e-4:0", Linear(3e-4, 0.0)),
        ("linear:3e-4", Linear(3e-4, 0.0)),
        ("lin_3e-4", Linear(3e-4, 0.0)),
        ("cosine:0.2:0.05:horizon=1e6", Cosine(0.2, 0.05, horizon=1_000_000)),
        ("exponential:1e-3:1e-5", Exponential(1e-3, 1e-5)),
        ("piecewise:0=0.2:0.5=0.1:horizon=100", Piecewise(((0.0, 0.2), (0.5, 0.1)), horizon=100)),
        ("warmup:0.1:cosine:3e-4:0", Warmup(0.1, Cosine(3e-4, 0.0))),
        ("warmup:0.1:1e-3:start=1e-5", Warmup(0.1, Linear(1e-3, 1e-3), start=1e-5)),
        ({"cosine": {"start": 0.2, "end": "5e-2"}}, Cosine(0.2, 0.05)),
        ({"piecewise": {"points": [[0, 0.2], [0.5, 0.1]]}}, Piecewise(((0.0, 0.2), (0.5, 0.1)))),
        ({"warmup": {"fraction": 0.1, "after": {"linear": {"start": 1}}}}, Warmup(0.1, Linear(1.0))),
    ],
)
def test_text_and_dict_forms_of_schedules(form: object, schedule: Callable[[float], float]) -> None:
    assert parse_knob("clip_range", form) == schedule


def test_text_and_dict_forms_of_controllers() -> None:
    expected = AdaptiveKL(1e-3, 0.01, Threshold(2.0, 1.5), every="minibatch").bind("learning_rate")
    assert parse_knob("learning_rate", {"adaptive_kl": RSL_RL}) == expected
    text = "adaptive_kl:1e-3:0.01:law=threshold"
    assert parse_knob("learning_rate", text) == AdaptiveKL(1e-3, 0.01).bind("learning_rate")
    fraction = {
        "adaptive_clip_fraction": {"start": 0.2, "target": 0.1, "bounds": [0.05, 0.4], "law": "proportional:2000"}
    }
    assert parse_knob("clip_range", fraction) == AdaptiveClipFraction(
        0.2, 0.1, Proportional(2000), bounds=(0.05, 0.4)
    ).bind("clip_range")


def test_sb3_schedules_and_lambdas_pass_unwrapped() -> None:
    linear = LinearSchedule(1.0, 0.0, 1.0)
    assert parse_knob("clip_range", FloatSchedule(FloatSchedule(linear))) is linear
    assert parse_knob("kl_coef", ConstantSchedule(0.5))(0.3) == 0.5  # type: ignore[operator,misc]

    def schedule(progress_remaining: float) -> float:
        return progress_remaining

    assert parse_knob("ent_coef", schedule) is schedule


def test_none_only_where_a_knob_may_be_absent() -> None:
    assert parse_knob("clip_range_high", None) is None
    assert parse_knob("clip_range_vf", None) is None
    with pytest.raises(ValueError, match="kl_coef=None"):
        parse_knob("kl_coef", None)


@pytest.mark.parametrize("name", [name for name in KNOBS if name not in ("ent_coef", "clip_range_vf")])
def test_negative_values_are_refused_by_name(name: str) -> None:
    for value in (-0.1, "linear:-1:0", "linear:1:-1", "warmup:0.1:linear:1:-1", "piecewise:0=1:1=-1"):
        with pytest.raises(ValueError, match=f"{name}=.*at least 0"):
            parse_knob(name, value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("cos:0.2:0.1", "linear, cosine"),
        ("cosine", "missing: start"),
        ("cosine:1:2:3:4", "start, end, horizon"),
        ("cosine:a:b", "start"),
        ("lin_a", "lin_0.2"),
        ("warmup:0.1", "warmup:fraction:schedule"),
        ("warmup:0.1:adaptive_kl:1:0.01", "not by a controller"),
        ("", "known"),
        (True, "a number"),
        ([0.1], "a number"),
        ({}, "exactly one key"),
        ({"cosine": {"start": 1}, "linear": {"start": 1}}, "exactly one key"),
        ({"cosine": 0.2}, "dict of its fields"),
        ({"cosine": {"strt": 1}}, "strt"),
        ({"sine": {"start": 1}}, "sine"),
        ({"adaptive_kl": {"start": 1, "target": -1}}, "target"),
        ({"adaptive_kl": {"start": 1, "target": 1, "bounds": [2, 1]}}, "bounds"),
        ({"adaptive_kl": {"start": 1, "target": 1, "bounds": 2}}, "bounds"),
        ({"adaptive_kl": {"start": 1, "target": 1, "law": "pid"}}, "threshold, proportional"),
        ({"adaptive_kl": {"start": 1, "target": 1, "law": 3}}, "law"),
        (float("nan"), "a number"),
        ("nan", "known"),
    ],
)
def test_bad_values_name_the_argument_the_value_and_what_is_allowed(value: object, named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        parse_knob("kl_coef", value)
    assert str(error.value).startswith(f"kl_coef={value!r}: ")
