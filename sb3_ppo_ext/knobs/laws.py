"""Laws of controllers: pure functions from measured / target to a pressure, above 1 when too much was measured.

A number is a float, or a 0-d tensor where a controller is moved on the device that measures: one law serves both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sb3_ppo_ext.knobs.schedules import finite_number

Number = TypeVar("Number", float, Tensor)


def select(condition: bool | Tensor, yes: Number | float, no: Number | float, *, like: Number) -> Number:
    """``yes`` where ``condition`` holds, else ``no``; numbers of the type of ``like``."""
    if not isinstance(like, Tensor):
        return yes if condition else no
    assert isinstance(condition, Tensor)
    yes, no = (number if isinstance(number, Tensor) else torch.full_like(like, number) for number in (yes, no))
    return torch.where(condition, yes, no)


def bounded(number: Number, low: float, high: float) -> Number:
    """``number``, but at least ``low`` and at most ``high``."""
    return number.clamp(low, high) if isinstance(number, Tensor) else min(max(number, low), high)


class Law(Protocol):
    """Maps measured / target to a pressure: above 1 when too much was measured, 1 when nothing should move.

    Those of this file take floats and 0-d tensors; a user's may take floats alone, and is then called on the host.
    """

    def __call__(self, excess: Any, samples: int) -> Any:
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

    def __call__(self, excess: Number, samples: int) -> Number:
        """The pressure at ``excess`` = measured / target."""
        too_little = (excess > 0.0) & (excess < 1.0 / self.margin)
        otherwise = select(too_little, 1.0 / self.factor, 1.0, like=excess)
        return select(excess > self.margin, self.factor, otherwise, like=excess)


@dataclass(frozen=True)
class Lagrangian:
    """Pressure ``exp(rate * clip(measured / target - 1, -limit, limit))``: for a penalty, dual ascent on log(penalty).

    The weight of the penalty becomes the multiplier of the constraint KL <= target: it grows while the bound is broken,
    falls while there is room, and comes to rest where the KL is at the bound. Seed RL keeps such a coefficient,
    exp(speed * p) (agents/policy_gradient/modules/constraints.py). A rate of 0.05 to 0.2 suits ``every="minibatch"``.

    The law cuts off what is beyond (1 + limit) times the bound, so that an outlier moves the value by a factor of
    exp(rate * limit) at most. The KL of minibatches is skewed, and its mean comes to rest the further above the bound
    the more is cut off: for a lognormal KL of sigma 1 by 5 % with a limit of 4, by 37 % with one of 1.
    """

    rate: float = 0.1
    limit: float = 4.0

    def __post_init__(self) -> None:
        for name in ("rate", "limit"):
            value = finite_number("Lagrangian", name, getattr(self, name))
            if value <= 0:
                raise ValueError(f"Lagrangian: {name} is {value}; it must be above 0")
            object.__setattr__(self, name, value)

    def __call__(self, excess: Number, samples: int) -> Number:
        """The pressure at ``excess`` = measured / target."""
        exponent = self.rate * bounded(excess - 1.0, -self.limit, self.limit)
        return exponent.exp() if isinstance(exponent, Tensor) else math.exp(exponent)


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

    def __call__(self, excess: Number, samples: int) -> Number:
        """The pressure at ``excess`` = measured / target, averaged over ``samples``."""
        error = bounded(excess - 1.0, -self.limit, self.limit)
        # A rollout longer than the horizon would overshoot, down to a negative pressure at limit * samples > horizon.
        return 1.0 + error * min(samples / self.horizon, 1.0)
