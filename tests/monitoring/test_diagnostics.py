"""Warnings: one each, above their threshold and not below it, with the argument to change."""

from __future__ import annotations

import pickle
import warnings

import pytest

from sb3_ppo_ext.monitoring.diagnostics import Diagnostics, TrainingWarning

HEALTHY = {
    "train/approx_kl": 0.01,
    "train/kl_exact": 0.01,
    "train/clip_fraction": 0.1,
    "train/explained_variance": 0.8,
}


def said(diagnostics: Diagnostics, kl_target: float | None = 0.01, **changed: float) -> list[str]:
    values = {**HEALTHY, **{f"train/{name}": value for name, value in changed.items()}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagnostics.check(values, kl_target=kl_target)
    assert all(issubclass(warning.category, TrainingWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_healthy_run_is_silent() -> None:
    diagnostics = Diagnostics()
    assert [said(diagnostics) for _ in range(30)] == [[]] * 30


@pytest.mark.parametrize(
    ("below", "above", "knobs"),
    [
        ({"kl_exact": 0.0999}, {"kl_exact": 0.101}, ["learning_rate", "n_epochs", "AdaptiveKL", "target_kl"]),
        ({"clip_fraction": 0.5}, {"clip_fraction": 0.501}, ["learning_rate", "clip_range"]),
    ],
)
def test_each_warning_comes_once_and_only_above_its_threshold(
    below: dict[str, float], above: dict[str, float], knobs: list[str]
) -> None:
    diagnostics = Diagnostics()
    assert said(diagnostics, **below) == []
    (text,) = said(diagnostics, **above)
    assert all(knob in text for knob in knobs)
    assert said(diagnostics, **above) == []


def test_the_sampled_kl_is_judged_where_no_exact_one_is_known() -> None:
    with pytest.warns(TrainingWarning, match=r"KL .* is 0\.2 .* 20 times its target 0\.01"):
        Diagnostics().check({"train/approx_kl": 0.2}, kl_target=0.01)


def test_a_kl_without_a_target_is_not_judged() -> None:
    assert said(Diagnostics(), kl_target=None, kl_exact=5.0) == []


def test_a_useless_value_function_is_named_at_the_twentieth_rollout_in_a_row() -> None:
    diagnostics = Diagnostics()
    assert [said(diagnostics, explained_variance=-0.1) for _ in range(19)] == [[]] * 19
    (text,) = said(diagnostics, explained_variance=-0.1)
    assert "20 rollouts" in text and "normalize_value" in text
    assert said(diagnostics, explained_variance=-0.1) == []


@pytest.mark.parametrize("good", [0.0, 0.3, float("nan")])  # NaN: the returns are all the same
def test_one_better_rollout_starts_the_count_afresh(good: float) -> None:
    diagnostics = Diagnostics()
    for _ in range(19):
        said(diagnostics, explained_variance=-0.1)
    said(diagnostics, explained_variance=good)
    assert [said(diagnostics, explained_variance=-0.1) for _ in range(19)] == [[]] * 19


def test_what_was_said_is_remembered_in_a_copy() -> None:
    diagnostics = Diagnostics()
    assert len(said(diagnostics, clip_fraction=0.9)) == 1
    for _ in range(7):
        said(diagnostics, explained_variance=-1.0)
    copy = pickle.loads(pickle.dumps(diagnostics))
    assert copy == diagnostics and copy.negative_rollouts == 7
    assert said(copy, clip_fraction=0.9) == []
