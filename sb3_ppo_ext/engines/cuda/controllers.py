"""Controllers that answer to what is measured on a device, their numbers held there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.knobs.controllers import AdaptiveClipFraction, AdaptiveKL
from sb3_ppo_ext.knobs.knob_set import KnobSet
from sb3_ppo_ext.knobs.parsing import LAWS

MOMENTS = ("minibatch", "epoch")  # at the third, after a rollout's update, the measurements are on the host


class DeviceControllers:
    """The controllers of a ``KnobSet`` that move during an update, their numbers in ``values`` (float64, 0-d).

    ``fill`` is called before the first step. A user's own controller or law, which only the host can compute, is a
    ``CompileError``.
    """

    def __init__(self, knobs: KnobSet, device: torch.device) -> None:
        self.controllers = {
            name: controller for name, controller in knobs.controllers.items() if controller.every in MOMENTS
        }
        for name, controller in self.controllers.items():
            known = type(controller) in (AdaptiveKL, AdaptiveClipFraction)
            if not known or type(controller.law) not in LAWS.values():
                raise CompileError(f"{name} has a controller or a law of its own, which the device cannot compute")
            if controller.measures == "ref_kl":
                raise CompileError("ref_kl_coef answers to a KL that is not measured in the minibatches")
        self.values = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self.controllers}

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """The controllers' settings, which a recording holds fixed."""
        return tuple((name, controller.settings()) for name, controller in self.controllers.items())

    def moves_at(self, moment: str) -> bool:
        """Whether any of them moves at that moment."""
        return any(controller.every == moment for controller in self.controllers.values())

    def fill(self) -> None:
        """Copies the numbers of the host's controllers to the device."""
        for name, controller in self.controllers.items():
            self.values[name].fill_(controller.value)

    def step(self, moment: str, measured: Mapping[str, Tensor], samples: int, go: Tensor) -> None:
        """``KnobSet.step`` where ``go`` (0-d bool) is True; a measurement that is not finite moves nothing."""
        for name, controller in self.controllers.items():
            if controller.every == moment:
                number = measured[controller.measures].double()
                moved = controller.moved(self.values[name], number, samples)
                self.values[name].copy_(torch.where(go & number.isfinite(), moved, self.values[name]))

    def hand_back(self, knobs: KnobSet) -> None:
        """Copies the numbers to the host's controllers and their knobs; waits for the device."""
        if not self.values:
            return
        numbers = dict(zip(self.values, torch.stack(list(self.values.values())).tolist(), strict=True))
        for name, controller in self.controllers.items():
            controller.value = numbers[name]
        knobs.values = knobs.values._replace(**numbers)
