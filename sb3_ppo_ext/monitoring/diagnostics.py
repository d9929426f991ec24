"""Warnings about a training run: the symptom, its cause, and the argument of PPOX to change.

Each is given once per model. What stops the training (numbers that are not finite) is in
:mod:`sb3_ppo_ext.monitoring.divergence`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

KL_FACTOR = 10.0  # measured KL over its target
CLIP_FRACTION = 0.5
NEGATIVE_ROLLOUTS = 20  # in a row with a negative explained variance


class TrainingWarning(UserWarning):
    """Training runs, but will most likely not learn well."""


@dataclass
class Diagnostics:
    """Judges the recorded scalars; remembers its warnings, and for how long the value function has been useless."""

    warned: list[str] = field(default_factory=list)  # the subjects, each warned about once
    negative_rollouts: int = 0

    def check(self, values: Mapping[str, float], *, kl_target: float | None) -> None:
        """Warns about one rollout's update. ``values`` has the logger's keys; those that are missing are not judged."""
        kl = values.get("train/kl_exact", values.get("train/approx_kl"))
        if kl is not None and kl_target and kl > KL_FACTOR * kl_target:
            self._warn("kl", _kl_text(kl, kl_target))
        clipped = values.get("train/clip_fraction")
        if clipped is not None and clipped > CLIP_FRACTION:
            self._warn("clip_fraction", _clip_text(clipped))
        explained = values.get("train/explained_variance")
        if explained is not None:
            # NaN (constant returns) is not negative: there is nothing to explain.
            self.negative_rollouts = self.negative_rollouts + 1 if explained < 0 else 0
            if self.negative_rollouts >= NEGATIVE_ROLLOUTS:
                self._warn("explained_variance", _value_text(explained, self.negative_rollouts))

    def report(self, findings: Mapping[str, str]) -> None:
        """Warns about the findings of another part: subject -> text."""
        for subject, text in findings.items():
            self._warn(subject, text)

    def _warn(self, subject: str, text: str) -> None:
        if subject not in self.warned:
            self.warned.append(subject)
            warnings.warn(text, TrainingWarning, stacklevel=3)


def _kl_text(kl: float, target: float) -> str:
    return (
        f"KL between old and new policy is {kl:.3g} nats per action, {kl / target:.0f} times its target {target:.3g}: "
        "one update moves the policy so far that the advantages it learns from no longer hold. "
        "Lower learning_rate or n_epochs, raise batch_size, or let the learning rate follow the KL: "
        f'learning_rate=AdaptiveKL(start=3e-4, target={target:.3g}, every="minibatch"). '
        "target_kl ends such an update early."
    )


def _clip_text(clipped: float) -> str:
    return (
        f"{clipped:.0%} of the samples are outside the clip range: most of each minibatch gives the policy no "
        "gradient, and more epochs only move the rest. Lower learning_rate or n_epochs; if the KL is small all the "
        "same, widen clip_range (and clip_range_high)."
    )


def _value_text(explained: float, rollouts: int) -> str:
    return (
        f"Explained variance has been negative for {rollouts} rollouts in a row (now {explained:.2f}): the value "
        "function predicts the returns worse than their mean does, so it adds noise to the advantages. If returns are "
        "large, set normalize_value=True or wrap the environment in VecNormalize; if clip_range_vf is set, remove it "
        "or raise it to the scale of the returns; else raise vf_coef, n_steps or the value network's size."
    )
