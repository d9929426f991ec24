"""Laws of controllers: pure functions from measured / target to a pressure, above 1 when too much was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sb3_ppo_ext.knobs.schedules import finite_number


class Law(Protocol):
    """Maps measured / target to a pressure: above 1 when too much was measured, 1 when nothing should move."""

    def __call__(self, excess: float, samples: int) -> float:
        """``excess`` is measured / target, ``samples`` the number of actions behind the measurement."""
        ...


@dataclass(frozen=True)
class Threshold:
    """Pressure ``factor`` above ``margin`` times the target, ``1 / factor`` below target / ``margin``, else 1.

    Three published rules differ only in these constants: the PPO paper moves its penalty with margin 1.5, factor 2
    (Schulman et al. 2017, section 4); rsl_rl (algorithms/ppo.py) moves the learning rate with margin 2, factor 1.5.
    A measurement of exactly 0 exerts no pressure (rsl_rl's guard): it is what the first minibatch of a rollout shows,
    where no step has been taken yet, not a policy that moves too little.
    """

    margin: float = 1.5
    factor: float = 2.0

    def __post_init__(self) -> None:
        for name in ("margin", "factor"):
            value = finite_number("Threshold", name, getattr(self, name))
            if value <= 1:
                raise ValueError(f"Threshold: {name} is {value}; it must be above 1")
            object.__setattr__(self, name, value)

    def __call__(self, excess: float, samples: int) -> float:
        """The pressure at ``excess`` = measured / target."""
        if excess > self.margin:
            return self.factor
        return 1.0 / self.factor if 0.0 < excess < 1.0 / self.margin else 1.0


@dataclass(frozen=True)
class Proportional:
    """Pressure ``1 + clip(measured / target - 1, -limit, limit) * samples / horizon``.

    Ziegler et al. 2019, section 2.2, with ``samples`` counting what the measurement averages over: responses there
    (horizon 10000, limit 0.2), actions here. An error at the limit moves the value by ``exp(limit)`` per horizon.
    """

    horizon: float = 10_000
    limit: float = 0.2

    def __post_init__(self) -> None:
        for name in ("horizon", "limit"):
            value = finite_number("Proportional", name, getattr(self, name))
            if value <= 0:
                raise ValueError(f"Proportional: {name} is {value}; it must be above 0")
            object.__setattr__(self, name, value)
        if self.limit >= 1:
            raise ValueError(f"Proportional: limit is {self.limit}; it must be below 1")

    def __call__(self, excess: float, samples: int) -> float:
        """The pressure at ``excess`` = measured / target, averaged over ``samples``."""
        error = min(max(excess - 1.0, -self.limit), self.limit)
        # A rollout longer than the horizon would overshoot, down to a negative pressure at limit * samples > horizon.
        return 1.0 + error * min(samples / self.horizon, 1.0)
