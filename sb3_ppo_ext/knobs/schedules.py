"""Schedules: frozen values that map ``progress_remaining`` (1 at the start, 0 at the end) to a number.

They stand wherever Stable-Baselines3 takes a schedule. They are top-level dataclasses without closures, so a
saved model refers to them by name instead of carrying byte code. Reading them from text is in ``knobs``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from stable_baselines3.common.utils import ConstantSchedule


def finite_number(owner: str, field: str, value: object) -> float:
    """``value`` as a float; ``ValueError`` naming ``owner`` and ``field`` unless it is a finite real number."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ValueError(f"{owner}: {field} is {value!r}; a number is needed")
    number = float(value)  # numpy scalars and 0-d tensors included
    if not math.isfinite(number):
        raise ValueError(f"{owner}: {field} is {number}; a finite number is needed")
    return number


class ProgressSchedule(ABC):
    """A schedule of progress, which is clamped to [0, 1], with an optional horizon of its own.

    Stable-Baselines3 measures progress against one ``learn()`` call, and passes a value below 0 when the last
    rollout overshoots. ``horizon``, in timesteps over all ``learn()`` calls of the model, makes PPOX measure
    progress against that instead, so that repeated calls continue one schedule.
    """

    horizon: int | None

    @abstractmethod
    def value_at(self, done: float) -> float:
        """The value when the fraction ``done`` (0 to 1) of training has passed."""

    def __call__(self, progress_remaining: float) -> float:
        """The value at ``progress_remaining``, clamped to [0, 1]."""
        return self.value_at(1.0 - min(max(float(progress_remaining), 0.0), 1.0))

    def progress_remaining_at(self, timesteps: int, progress_remaining: float) -> float:
        """Progress by the schedule's own horizon after ``timesteps``, or ``progress_remaining`` without one."""
        return progress_remaining if self.horizon is None else 1.0 - timesteps / self.horizon

    def _check(self, *fields: str) -> None:
        name = type(self).__name__
        for field in fields:
            object.__setattr__(self, field, finite_number(name, field, getattr(self, field)))
        if self.horizon is not None:
            horizon = finite_number(name, "horizon", self.horizon)
            if horizon < 1 or horizon != int(horizon):
                raise ValueError(f"{name}: horizon is {self.horizon!r}; a positive count of timesteps is needed")
            object.__setattr__(self, "horizon", int(horizon))


@dataclass(frozen=True)
class Linear(ProgressSchedule):
    """A straight line from ``start`` to ``end``."""

    start: float
    end: float = 0.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        self._check("start", "end")

    def value_at(self, done: float) -> float:
        """``start + done (end - start)``."""
        return self.start + done * (self.end - self.start)


@dataclass(frozen=True)
class Cosine(ProgressSchedule):
    """Half a cosine from ``start`` to ``end`` (Loshchilov & Hutter 2017, eq. 5, one period)."""

    start: float
    end: float = 0.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        self._check("start", "end")

    def value_at(self, done: float) -> float:
        """``end + (start - end) (1 + cos(pi done)) / 2``."""
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0


@dataclass(frozen=True)
class Exponential(ProgressSchedule):
    """Decay (or growth) by a constant factor per step from ``start`` to ``end``; both must be above 0."""

    start: float
    end: float
    horizon: int | None = None

    def __post_init__(self) -> None:
        self._check("start", "end")
        if self.start <= 0 or self.end <= 0:
            raise ValueError(f"Exponential: start {self.start} and end {self.end} must both be above 0")

    def value_at(self, done: float) -> float:
        """``start (end / start) ** done``."""
        return float(self.start * (self.end / self.start) ** done)


@dataclass(frozen=True)
class Piecewise(ProgressSchedule):
    """Straight lines through ``points`` of (fraction done, value), level before the first and after the last.

    Two points at the same fraction make a jump, with the later one valid from there on.
    """

    points: tuple[tuple[float, float], ...]
    horizon: int | None = None

    def __post_init__(self) -> None:
        self._check()
        try:
            points = tuple((done, value) for done, value in self.points)
        except (TypeError, ValueError):
            raise ValueError(f"Piecewise: points is {self.points!r}; pairs (fraction done, value)") from None
        points = tuple(
            (finite_number("Piecewise", "fraction", done), finite_number("Piecewise", "value", value))
            for done, value in points
        )
        fractions = [done for done, _ in points]
        if not points or fractions != sorted(fractions) or fractions[0] < 0 or fractions[-1] > 1:
            raise ValueError(f"Piecewise: fractions {fractions} must rise from 0 towards 1, at least one of them")
        object.__setattr__(self, "points", points)

    def value_at(self, done: float) -> float:
        """Linear interpolation between the two points around ``done``."""
        before = [point for point in self.points if point[0] <= done]
        after = [point for point in self.points if point[0] > done]
        if not before:
            return after[0][1]
        if not after:
            return before[-1][1]
        (left, low), (right, high) = before[-1], after[0]
        return low + (high - low) * (done - left) / (right - left)


@dataclass(frozen=True)
class Warmup(ProgressSchedule):
    """A straight line from ``start`` to the first value of ``after`` over the first ``fraction``, then ``after``.

    ``after`` (a number or any schedule) is played over the time that is left, from its beginning to its end.
    """

    fraction: float
    after: Callable[[float], float]
    start: float = 0.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        self._check("fraction", "start")
        if not 0 < self.fraction < 1:
            raise ValueError(f"Warmup: fraction is {self.fraction}; it must lie between 0 and 1")
        if not callable(self.after):
            object.__setattr__(self, "after", Linear(*(2 * [finite_number("Warmup", "after", self.after)])))
        if isinstance(self.after, ProgressSchedule) and self.after.horizon is not None:
            raise ValueError(f"Warmup: give the horizon to the Warmup, not to {self.after!r} inside it")

    def value_at(self, done: float) -> float:
        """The ramp, or ``after`` at its own share of progress."""
        if done >= self.fraction:
            return float(self.after((1.0 - done) / (1.0 - self.fraction)))
        return self.start + (float(self.after(1.0)) - self.start) * done / self.fraction


def endpoints(schedule: object) -> tuple[float, ...]:
    """The extreme values of a schedule of this file, or of a constant; empty for any other callable."""
    if isinstance(schedule, ConstantSchedule):
        return (schedule.val,)
    if isinstance(schedule, Piecewise):
        return tuple(value for _, value in schedule.points)
    if isinstance(schedule, Warmup):
        return (schedule.start, *endpoints(schedule.after))
    if isinstance(schedule, (Linear, Cosine, Exponential)):
        return (schedule.start, schedule.end)
    return ()
