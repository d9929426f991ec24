"""What the table says of every knob, as its readers see it: pinned, for each was a table of its own."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss
from sb3_ppo_ext_torchrl.coefficients import ADDED_COEFFICIENTS, KNOB_OF

from sb3_ppo_ext import PPOX, AdaptiveClipFraction, AdaptiveKL
from sb3_ppo_ext.engines.update_inputs import knob_tensors
from sb3_ppo_ext.knobs.table import KNOBS, KnobEntry, is_on
from sb3_ppo_ext.monitoring import charts
from sb3_ppo_ext.objective.terms import KnobValues

ALL = {name: 0.1 for name in KNOBS}


def test_the_names_are_those_of_the_values_a_minibatch_is_trained_with() -> None:
    assert list(KNOBS) == [
        *("learning_rate", "clip_range", "clip_range_high", "clip_range_vf"),
        *("ent_coef", "vf_coef", "kl_coef", "ref_kl_coef", "divergence_limit", "kl_coef_std"),
    ]
    assert set(KnobValues._fields) == set(KNOBS)


def test_smallest_values_and_which_may_be_none() -> None:
    unbounded = {"clip_range_vf", "ent_coef"}
    assert {name: knob.smallest for name, knob in KNOBS.items()} == {
        name: -math.inf if name in unbounded else 0.0 for name in KNOBS
    }
    assert {name for name, knob in KNOBS.items() if knob.optional} == {
        *("clip_range_high", "clip_range_vf", "divergence_limit", "kl_coef_std")
    }


def test_controllers_move_every_knob_as_the_table_says() -> None:
    penalties, ranges = {"kl_coef", "ref_kl_coef", "kl_coef_std"}, {"clip_range", "clip_range_high", "divergence_limit"}
    by_kl = {name: AdaptiveKL(0.1, 0.01).bind(name) for name in KNOBS}
    by_fraction = {name: AdaptiveClipFraction(0.1, 0.01).bind(name) for name in KNOBS}
    assert {name for name, one in by_kl.items() if one.grows(name)} == penalties
    assert {name for name, one in by_fraction.items() if one.grows(name)} == penalties | ranges
    assert {name: one.measures for name, one in by_kl.items()} == {
        **dict.fromkeys(KNOBS, "kl"),
        "ref_kl_coef": "ref_kl",
        "kl_coef_std": "kl_std",
    }
    assert {one.measures for one in by_fraction.values()} == {"clip_fraction"}
    bounds = {"learning_rate": (1e-5, 0.1), "clip_range": (0.01, 0.5), "clip_range_high": (0.01, 0.5)}
    assert {name: one.bounds for name, one in by_kl.items()} == {**dict.fromkeys(KNOBS, (1e-4, 100.0)), **bounds}


def test_an_unknown_knob_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'clip_coef' is no knob; there are learning_rate, clip_range"):
        AdaptiveKL(0.1, 0.01).bind("clip_coef")


def test_what_is_added_or_clamped_counts_in_double_precision() -> None:
    tensors = knob_tensors(KnobValues(**ALL), torch.device("cpu"))
    double = {name for name, tensor in tensors.items() if tensor.dtype == torch.float64}
    assert double == {"learning_rate", "clip_range", "clip_range_high", "clip_range_vf", "divergence_limit"}


def test_every_knob_is_drawn_in_its_chart() -> None:
    titles = {
        tag.removeprefix("train/"): title
        for title, tags in (charts.CHARTS | charts.OPTIONAL_CHARTS).items()
        for tag in tags
        if tag.removeprefix("train/") in KNOBS
    }
    assert titles == {
        "learning_rate": "Learning rate",
        "clip_range": "Clip range, and samples outside it",
        "clip_range_high": "Clip range, and samples outside it",
        "clip_range_vf": "Clip range of the value",
        "ent_coef": "Weight of the entropy",
        "vf_coef": "Weight of the value loss",
        "kl_coef": "Weight of the KL penalty",
        "ref_kl_coef": "Weight of the KL penalty",
        "divergence_limit": "Limit of the divergence",
        "kl_coef_std": "Weight of the deviation's KL",
    }
    assert charts.CHARTS["Clip range, and samples outside it"] == (
        *("train/clip_range", "train/clip_range_high"),
        *("train/clip_fraction_low", "train/clip_fraction_high"),
    )
    # Three to a row, each row a subject: the order is part of the picture.
    assert list(charts.CHARTS)[3:9] == [
        *("KL and its target (nats per action)", "Clip range, and samples outside it"),
        *("Largest ratio, new / old probability", "Learning rate"),
        *("Gradient norm (before clipping)", "Weight of the KL penalty"),
    ]
    assert list(charts.OPTIONAL_CHARTS)[2] == "Clip range of the value"


@pytest.mark.parametrize("optional", [False, True])
def test_a_knob_with_a_chart_of_its_own_comes_after_the_others(monkeypatch: pytest.MonkeyPatch, optional: bool) -> None:
    new = KnobEntry("warmth", "Warmth", ("warmth",), optional=optional)
    monkeypatch.setitem(KNOBS, "warmth", new)
    known: dict[str, tuple[str, ...]] = {"Learning rate": ("train/x",)}
    of_all = charts._with_knobs(known, {"Learning rate": ()} if optional else {}, optional=optional)
    assert list(of_all)[-1] == "Warmth" and of_all["Warmth"] == ("train/warmth",)
    assert of_all["Learning rate"] == ("train/learning_rate", "train/x")


def test_names_in_torchrl() -> None:
    assert list(KNOB_OF.items()) == [
        ("lr", "learning_rate"),
        ("clip_epsilon", "clip_range"),
        ("clip_epsilon_low", "clip_range"),
        ("clip_epsilon_high", "clip_range_high"),
        ("clip_value", "clip_range_vf"),
        ("entropy_coeff", "ent_coef"),
        ("critic_coeff", "vf_coef"),
        ("kl_coef", "kl_coef"),
        ("ref_kl_coef", "ref_kl_coef"),
        ("divergence_limit", "divergence_limit"),
        ("kl_coef_std", "kl_coef_std"),
    ]
    assert ADDED_COEFFICIENTS == ("kl_coef", "ref_kl_coef", "divergence_limit", "kl_coef_std")
    parameters = inspect.signature(PPOXLoss.__init__).parameters
    assert {name: parameters[name].default for name in ADDED_COEFFICIENTS} == dict.fromkeys(ADDED_COEFFICIENTS)


def test_what_ppox_adds_has_its_default_and_a_line_in_the_documentation() -> None:
    parameters = inspect.signature(PPOX.__init__).parameters
    defaults = {
        "clip_range_high": None,
        "kl_coef": 0.0,
        "ref_kl_coef": 0.0,
        "divergence_limit": None,
        "kl_coef_std": None,
    }
    assert {name: parameters[name].default for name, knob in KNOBS.items() if knob.added} == defaults
    assert PPOX.__doc__ is not None
    for name in KNOBS:
        assert (f"\n:param {name}: {KNOBS[name].meaning}\n" in PPOX.__doc__) is KNOBS[name].added
    assert "\n:param surrogate: " in PPOX.__doc__


@pytest.mark.parametrize(
    ("knob", "on"),
    [(None, False), (0.0, False), (0, False), (1e-9, True), (-0.1, True), (lambda _: 0.0, True)],
)
def test_a_knob_is_on_where_it_is_or_may_become_another_number_than_zero(knob: Any, on: bool) -> None:
    assert is_on(knob) is on
