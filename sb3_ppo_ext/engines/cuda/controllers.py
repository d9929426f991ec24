"""Controllers that answer to what is measured on a device, their numbers kept there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.knobs.controllers import AdaptiveClipFraction, AdaptiveKL
from sb3_ppo_ext.knobs.knob_set import KnobSet
from sb3_ppo_ext.knobs.laws import Proportional, Threshold

MOMENTS = ("minibatch", "epoch")  # after a rollout's update the host knows what was measured


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
        for name, controller in self.controllers.items():
            if controller.every == moment:
                number = measured[controller.measures].double()
                moved = controller.moved(self.values[name], number, samples)
                self.values[name].copy_(torch.where(go & number.isfinite(), moved, self.values[name]))

    def hand_back(self, knobs: KnobSet) -> None:
        """The numbers as they stand now to the host's controllers and their knobs; waits for the device."""
        if not self.values:
            return
        numbers = dict(zip(self.values, torch.stack(list(self.values.values())).tolist(), strict=True))
        for name, controller in self.controllers.items():
            controller.value = numbers[name]
        knobs.values = knobs.values._replace(**numbers)
