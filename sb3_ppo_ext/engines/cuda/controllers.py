"""Controllers that answer to what is measured on the device, where it is measured: the laws of ``kl`` as tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sb3_ppo_ext.engines.cpu.libraries import CompileError
from sb3_ppo_ext.knobs.controllers import AdaptiveClipFraction, AdaptiveKL, Controller
from sb3_ppo_ext.knobs.knob_set import KnobSet
from sb3_ppo_ext.knobs.laws import Law, Proportional, Threshold
from sb3_ppo_ext.objective.statistics import STATISTICS
from sb3_ppo_ext.update.eager import KL_RESOLUTION

MOMENTS = ("minibatch", "epoch")  # after a rollout's update the host knows what was measured


def pressure(law: Law, excess: Tensor, samples: int) -> Tensor:
    """``law(excess, samples)`` of a 0-d tensor, float64 as the host's numbers are."""
    if isinstance(law, Threshold):
        up, down = (torch.full_like(excess, number) for number in (law.factor, 1 / law.factor))
        below = (excess > 0) & (excess < 1 / law.margin)
        return torch.where(excess > law.margin, up, torch.where(below, down, torch.ones_like(excess)))
    assert isinstance(law, Proportional)
    return 1 + (excess - 1).clamp(-law.limit, law.limit) * min(samples / law.horizon, 1.0)


def steering(row: Tensor) -> dict[str, Tensor]:
    """What controllers answer to, of a row of statistics: as ``update.steering``."""
    named = dict(zip(STATISTICS, row.unbind(), strict=False))  # what comes after them is not looked at
    kl = torch.where(named["kl"].abs() < KL_RESOLUTION, 0.0, named["kl"])
    return {"kl": kl, "clip_fraction": named["clip_fraction_low"] + named["clip_fraction_high"]}


class DeviceControllers:
    """The controllers of a ``KnobSet`` that move during an update, their numbers in ``values`` (float64, 0-d).

    To be filled before the first step.

    ``CompileError`` for a law or a class of the user's own, which only the host can ask.
    """

    def __init__(self, knobs: KnobSet, device: torch.device) -> None:
        self.controllers = {name: one for name, one in knobs.controllers.items() if one.every in MOMENTS}
        for name, one in self.controllers.items():
            if type(one) not in (AdaptiveKL, AdaptiveClipFraction) or type(one.law) not in (Threshold, Proportional):
                raise CompileError(f"{name} has a controller or a law of its own, which the device cannot compute")
        if any(one.measures == "ref_kl" for one in self.controllers.values()):
            raise CompileError("ref_kl_coef answers to a KL that is not measured in the minibatches")
        self.values = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self.controllers}

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """What is fixed about them, for telling two sets apart."""
        return tuple((name, one.settings()) for name, one in self.controllers.items())

    def fill(self) -> None:
        """The numbers as the host remembers them."""
        for name, one in self.controllers.items():
            self.values[name].fill_(one.value)

    def step(self, moment: str, measured: Mapping[str, Tensor], samples: int, go: Tensor) -> None:
        """As ``KnobSet.step``, where ``go`` (0-d bool); a measurement that is not finite moves nothing."""
        for name, one in self.controllers.items():
            if one.every == moment:
                finite = measured[one.measures].isfinite()
                value = self._moved(one, self.values[name], measured[one.measures].double(), samples)
                self.values[name].copy_(torch.where(go & finite, value, self.values[name]))

    @staticmethod
    def _moved(controller: Controller, value: Tensor, measured: Tensor, samples: int) -> Tensor:
        assert controller.bounds is not None and controller.knob is not None
        # Of a clip fraction of 0 see AdaptiveClipFraction.excess.
        least = 1e-9 if isinstance(controller, AdaptiveClipFraction) and controller.every != "minibatch" else 0.0
        push = pressure(controller.law, measured.clamp(min=least) / controller.target, samples)
        moved = value * push if controller.grows(controller.knob) else value / push
        return moved.clamp(*controller.bounds)

    def hand_back(self, knobs: KnobSet) -> None:
        """The numbers as they stand now to the host's controllers and their knobs; waits for the device."""
        if not self.values:
            return
        numbers = dict(zip(self.values, torch.stack(list(self.values.values())).tolist(), strict=True))
        for name, controller in self.controllers.items():
            controller.value = numbers[name]
        knobs.values = knobs.values._replace(**numbers)
