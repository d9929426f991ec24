"""Every knob of the objective on tokens: one step that moves, or does not move, the model, and would do the other
thing if the knob were ignored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, SequenceRolloutBuffer
from sb3_ppo_ext.language.training.ratio_check import RatioCheck
from tests.language import setups


def collected(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[PPOX, SequenceRolloutBuffer]:
    """A model with a rollout that is one minibatch; whoever shifts its log-probabilities is not told so."""
    monkeypatch.setattr(RatioCheck, "__call__", lambda *_: None)
    settings = {"batch_size": 16, "n_epochs": 1, "normalize_advantage": False, "vf_coef": 0.0, **options}
    model = setups.ppox(**settings)
    _, callback = model._setup_learn(16)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert isinstance(model.rollout_buffer, SequenceRolloutBuffer)
    # The advantages are to be those of the test: the reference's KL, whose weight is 0, would have them made anew.
    monkeypatch.setattr(SequenceRolloutBuffer, "penalize", lambda *_: None)
    return model, model.rollout_buffer


def shifted(buffer: SequenceRolloutBuffer, *, ratio: float, advantage: float) -> None:
    """As if every token's probability had changed by this ratio since it was sampled."""
    buffer.log_probs = np.where(buffer.masks, buffer.log_probs - math.log(ratio), 0.0).astype(np.float32)
    buffer.advantages = np.where(buffer.masks, advantage, 0.0).astype(np.float32)


def moves(model: PPOX) -> bool:
    """Whether ``train`` changes the language model. A gradient of exactly 0 does not, with a fresh Adam."""
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    before = [parameter.clone() for parameter in policy.model_parameters()]
    model.train()
    return any(not one.equal(other) for one, other in zip(before, policy.model_parameters(), strict=True))


# Arguments of PPOX, the ratio, the advantage, and whether min(r A, clip(r) A) has a gradient there.
CLIPS: dict[str, tuple[dict[str, Any], float, float, bool]] = {
    "above the range": ({"clip_range": 0.2}, 1.25, 1.0, False),
    "above the range, but to no advantage": ({"clip_range": 0.2}, 1.25, -1.0, True),
    "within the higher range": ({"clip_range": 0.2, "clip_range_high": 0.3}, 1.25, 1.0, True),
    "above the higher range": ({"clip_range": 0.2, "clip_range_high": 0.3}, 1.35, 1.0, False),
    "below the range, which is not the higher one": ({"clip_range": 0.2, "clip_range_high": 0.3}, 0.75, -1.0, False),
    "within the lower range": ({"clip_range": 0.3, "clip_range_high": 0.2}, 0.75, -1.0, True),
    "bad and far likelier": ({"dual_clip": None}, 4.0, -1.0, True),
    "bad and far likelier, clipped a second time": ({"dual_clip": 3.0}, 4.0, -1.0, False),
    "bad and likelier, within the second clip": ({"dual_clip": 5.0}, 4.0, -1.0, True),
    "good and far likelier, to which the second clip is nothing": ({"dual_clip": 5.0}, 4.0, 1.0, False),
}


@pytest.mark.filterwarnings("ignore:.*of the samples are outside the clip range")
@pytest.mark.parametrize("case", CLIPS)
def test_a_token_has_a_gradient_just_where_its_clip_says(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, ratio, advantage, expected = CLIPS[case]
    model, buffer = collected(monkeypatch, **options)
    shifted(buffer, ratio=ratio, advantage=advantage)
    assert moves(model) is expected


@pytest.mark.filterwarnings("ignore:.*of the samples are outside the clip range")
@pytest.mark.parametrize(("progress_remaining", "expected"), [(1.0, True), (0.5, False)])
@pytest.mark.parametrize("knob", ["clip_range", "clip_range_high"])
def test_a_clip_follows_its_schedule(
    knob: str, progress_remaining: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, buffer = collected(monkeypatch, **{knob: "linear:0.3:0.1"})
    shifted(buffer, ratio=1.25, advantage=1.0)  # within 0.3, outside of 0.2
    model._current_progress_remaining = progress_remaining
    assert moves(model) is expected


VALUES: dict[str, tuple[dict[str, Any], bool]] = {
    "no clip": ({}, True),
    "the clipped value only": ({"clip_range_vf": 0.2}, False),
    "the larger error": ({"clip_range_vf": 0.2, "value_clip": "max"}, True),
    "a wide clip": ({"clip_range_vf": 2.0}, True),
    "a schedule, at its beginning": ({"clip_range_vf": "linear:2:0.2"}, True),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_learns_just_where_its_clip_says(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, expected = VALUES[case]
    model, buffer = collected(monkeypatch, vf_coef=1.0, **options)
    shifted(buffer, ratio=1.0, advantage=0.0)
    # The value is 0, was 1 and should be 2: clipped to 0.8 it has no gradient, and its error, 1.44, is below 4.
    buffer.values = np.where(buffer.masks, 1.0, 0.0).astype(np.float32)
    buffer.returns = 2 * buffer.values
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    model.train()
    assert bool(setups.value_head(policy).weight.any()) is expected


@pytest.mark.parametrize(("ent_coef", "change"), [(0.0, 0), (0.1, 1), (-0.1, -1)])
def test_the_entropy_bonus_spreads_the_tokens(ent_coef: float, change: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, buffer = collected(monkeypatch, ent_coef=ent_coef)
    shifted(buffer, ratio=1.0, advantage=0.0)
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)

    def entropy() -> float:
        tokens = policy.tokens(
            {name: buffer.flat(array) for name, array in buffer.observations.items()},
            buffer.flat(buffer.actions),
            buffer.flat(buffer.masks),
        )
        with torch.no_grad():
            return policy.evaluate_tokens(tokens, entropy_grad=False)[1].sum().item()

    before = entropy()
    model.train()
    assert np.sign(round(entropy() - before, 4)) == change


@pytest.mark.filterwarnings("ignore:.*of the samples are outside the clip range")
@pytest.mark.filterwarnings("ignore:KL between old and new policy")
@pytest.mark.parametrize(("target_kl", "steps"), [(None, 6), (0.5, 6), (0.45, 0)])
def test_target_kl_stops_before_the_step(target_kl: float | None, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, buffer = collected(
        monkeypatch, target_kl=target_kl, n_epochs=3, batch_size=8, clip_range=9.0, learning_rate=1e-9
    )
    shifted(buffer, ratio=math.e, advantage=1.0)
    # k3 = (e - 1) - 1 = 0.718 in every token: below 1.5 * 0.5, above 1.5 * 0.45.
    model.train()
    taken = {int(state["step"]) for state in model.policy.optimizer.state.values()}
    assert (taken or {0}) == {steps}
    assert model._n_updates == (3 if steps else 1)
