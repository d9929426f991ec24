"""Controllers: each remembers a number, which a pure law moves so that a measurement approaches its target.

A controller is a callable of ``progress_remaining`` that returns its current value, so it fits wherever a schedule
does. It never moves by being read: the training loop calls ``update`` at the moment ``every`` names.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TypeVar

from sb3_ppo_ext.knobs.laws import Law, Number, Threshold, bounded
from sb3_ppo_ext.knobs.schedules import finite_number
from sb3_ppo_ext.knobs.table import entry_of

MOMENTS = ("rollout", "epoch", "minibatch")

AnyController = TypeVar("AnyController", bound="Controller")


@dataclass
class Controller(ABC):
    """The fields and the rule of both controllers, which document the meaning of the fields."""

    start: float
    target: float
    law: Law = field(default_factory=Threshold)
    bounds: tuple[float, float] | None = None
    every: str = "rollout"
    value: float = field(init=False)
    knob: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        name = type(self).__name__
        for attribute in ("start", "target"):
            number = finite_number(name, attribute, getattr(self, attribute))
            if number <= 0:  # from 0 no factor leads away
                raise ValueError(f"{name}: {attribute} is {number}; it must be above 0")
            setattr(self, attribute, number)
        if not callable(self.law):
            raise ValueError(f"{name}: law is {self.law!r}; Threshold(...), Proportional(...) or Lagrangian(...)")
        if self.every not in MOMENTS:
            raise ValueError(f"{name}: every is {self.every!r}; one of {', '.join(MOMENTS)}")
        if self.bounds is not None:
            low, high = (finite_number(name, "bounds", bound) for bound in self.bounds)
            if not 0 < low < high:
                raise ValueError(f"{name}: bounds are ({low}, {high}); 0 < low < high is needed")
            if not low <= self.start <= high:
                raise ValueError(f"{name}: start {self.start} lies outside its bounds ({low}, {high})")
            self.bounds = (low, high)
        self.value = self.start

    @property
    @abstractmethod
    def measures(self) -> str:
        """The name of the statistic that this controller responds to."""

    def grows(self, knob: str) -> bool:
        """True where ``knob`` must grow when the measurement is above its target."""
        return self.measures in entry_of(knob).grows_with

    def __call__(self, progress_remaining: float) -> float:
        """The current value, at any progress."""
        return self.value

    def bind(self: AnyController, knob: str) -> AnyController:
        """A copy that drives ``knob``, with that knob's bounds where none were given.

        A copy, because the number it remembers belongs to one knob of one model.
        """
        bound = copy.copy(self)
        bound.knob = knob
        if bound.bounds is None:
            low, high = entry_of(knob).bounds or (self.start / 1000, self.start * 1000)
            bound.bounds = (min(low, self.start), max(high, self.start))
        return bound

    def update(self, measured: float, samples: int) -> float:
        """Moves the value against ``measured``, an average over ``samples`` actions, and returns it."""
        name = type(self).__name__
        if self.knob is None or self.bounds is None:
            raise ValueError(f'{name}: call bind("learning_rate") or another knob first; it decides the direction')
        if not math.isfinite(measured):
            raise ValueError(f"{name} of {self.knob}: {self.measures} is {measured}: the policy has diverged")
        self.value = self.moved(self.value, measured, samples)
        return self.value

    def moved(self, value: Number, measured: Number, samples: int) -> Number:
        """The number that ``value`` moves to against ``measured``, floats or 0-d tensors of float64; pure."""
        assert self.knob is not None and self.bounds is not None  # since bind()
        pressure: Number = self.law(self.excess(measured), samples)
        return bounded(value * pressure if self.grows(self.knob) else value / pressure, *self.bounds)

    def excess(self, measured: Number) -> Number:
        """``measured`` over the target, as the law sees it."""
        return bounded(measured, 0.0, math.inf) / self.target

    def settings(self) -> str:
        """The user's choices as text: a saved state fits controllers with the same settings."""
        return (
            f"{type(self).__name__}(start={self.start}, target={self.target}, law={self.law}, "
            f"bounds={self.bounds}, every={self.every!r})"
        )

    def state_dict(self) -> dict[str, float]:
        """The remembered number, as a plain float."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float], strict: bool = True) -> None:
        """Takes the number back; ``strict`` is there for the call Stable-Baselines3 makes on its own objects."""
        self.value = finite_number(type(self).__name__, "value", state["value"])


@dataclass
class AdaptiveKL(Controller):
    """Moves a knob so that the KL divergence between consecutive policies approaches ``target``.

    ``start`` is the first value; ``target`` is in nats per action, summed over the action's dimensions. ``every``
    names when it moves: after a "rollout"'s update, by the mean over its last epoch; after an "epoch", by that
    epoch's mean; or at each "minibatch". A KL penalty grows when the KL is too high; every other knob shrinks. Without
    ``bounds`` a learning rate stays in 1e-5..1e-2, a clip range in 0.01..0.5, any other within a factor 1000 of
    ``start``.

    Schulman et al. 2017 (penalty): ``AdaptiveKL(1.0, 0.01)``. rsl_rl (learning rate):
    ``AdaptiveKL(1e-3, 0.01, Threshold(2.0, 1.5), every="minibatch")``. Ziegler et al. 2019 (penalty on the KL to a
    reference, per response): ``AdaptiveKL(0.15, 6.0, Proportional(10_000))``.
    """

    @property
    def measures(self) -> str:
        """The KL divergence by ``kl_estimator``; for ``ref_kl_coef`` that to the reference."""
        return "kl" if self.knob is None else entry_of(self.knob).kl


@dataclass
class AdaptiveClipFraction(Controller):
    """Moves a knob so that the fraction of ratios outside the clip range approaches ``target`` (0 to 1).

    The fields are those of ``AdaptiveKL``. A clip range grows when too many ratios are clipped, for widening it is what
    lets fewer of them out; so does a KL penalty. A learning rate shrinks.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target >= 1:
            raise ValueError(f"AdaptiveClipFraction: target is {self.target}; a fraction below 1 is needed")

    @property
    def measures(self) -> str:
        """The fraction of clipped ratios."""
        return "clip_fraction"

    def excess(self, measured: Number) -> Number:
        """Unlike a KL of 0, a whole rollout without a clipped ratio is a finding: far below the target."""
        least = 0.0 if self.every == "minibatch" else 1e-9
        return super().excess(bounded(measured, least, math.inf))
