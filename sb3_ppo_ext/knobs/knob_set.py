"""All knobs of one model together: their values now, and the controllers among them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.utils import FloatSchedule

from sb3_ppo_ext.knobs.controllers import Controller
from sb3_ppo_ext.knobs.parsing import Knob, parse_knob
from sb3_ppo_ext.knobs.schedules import ProgressSchedule
from sb3_ppo_ext.knobs.table import KNOBS, is_on
from sb3_ppo_ext.objective.terms import KnobValues

SavedControllers = dict[str, dict[str, dict[str, float] | str]]


class KnobSet:
    """Reads every knob at one moment of training and steps its controllers at the moments they name."""

    def __init__(self, knobs: Mapping[str, Knob | None]) -> None:
        self.knobs = dict(knobs)
        self.controllers = {name: knob for name, knob in knobs.items() if isinstance(knob, Controller)}
        self.values = self.at(1.0, 0)

    def at(self, progress_remaining: float, timesteps: int) -> KnobValues:
        """The values after ``timesteps`` over all ``learn()`` calls; they are also kept in ``values``."""
        read = {name: _read(knob, progress_remaining, timesteps) for name, knob in self.knobs.items()}
        self.values = KnobValues(**read)  # type: ignore[arg-type]  # only the optional ones are None
        return self.values

    def step(self, moment: str, measured: Mapping[str, float], samples: int) -> KnobValues:
        """Lets the controllers that move at ``moment`` move against what was measured over ``samples`` actions."""
        moved = {
            name: controller.update(measured[controller.measures], samples)
            for name, controller in self.controllers.items()
            if controller.every == moment
        }
        if moved:
            self.values = self.values._replace(**moved)
        return self.values

    def is_on(self, name: str) -> bool:
        """True where the coefficient ``name`` is or may become another number than 0."""
        return is_on(self.knobs[name])

    def any_at(self, moment: str) -> bool:
        """True where some controller moves at ``moment``."""
        return any(controller.every == moment for controller in self.controllers.values())

    def state_dict(self) -> SavedControllers:
        """Plain values, readable in the saved file."""
        return {
            name: {"settings": controller.settings(), "state": controller.state_dict()}
            for name, controller in self.controllers.items()
        }

    def load_state_dict(self, saved: SavedControllers) -> None:
        """Continues every controller that has the settings it was saved with; others start afresh."""
        for name, controller in self.controllers.items():
            entry = saved.get(name)
            if entry is not None and entry["settings"] == controller.settings():
                assert isinstance(entry["state"], dict)
                controller.load_state_dict(entry["state"])
        self.values = self.values._replace(**{name: knob.value for name, knob in self.controllers.items()})

    def numbers(self) -> dict[str, float]:
        """Name and value of every knob that is set."""
        return {name: float(value) for name, value in self.values._asdict().items() if value is not None}


def parse_knobs(model: Any) -> None:
    """Replaces the arguments that describe knobs by the numbers, schedules and controllers they describe."""
    for name in KNOBS:
        knob = parse_knob(name, getattr(model, name))
        # A copy: what a controller remembers belongs to one model.
        setattr(model, name, copy.copy(knob) if isinstance(knob, Controller) else knob)


def knobs_of(model: Any) -> KnobSet:
    """Knobs as the attributes of an algorithm stand now: callbacks assign to them, as they do on PPO."""
    read: dict[str, Knob | None] = {}
    for name in KNOBS:
        attribute = "lr_schedule" if name == "learning_rate" else name
        current = getattr(model, attribute)
        read[name] = knob = parse_knob(name, current)
        inner = current.value_schedule if isinstance(current, FloatSchedule) else current
        if isinstance(knob, Controller) and knob is not inner:  # assigned since: keep what it will remember
            setattr(model, attribute, knob)
    return KnobSet(read)


def _read(knob: Knob | None, progress_remaining: float, timesteps: int) -> float | None:
    if knob is None or not callable(knob):
        return knob
    if isinstance(knob, ProgressSchedule):
        progress_remaining = knob.progress_remaining_at(timesteps, progress_remaining)
    return float(knob(progress_remaining))
