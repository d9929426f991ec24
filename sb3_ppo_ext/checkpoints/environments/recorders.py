"""The recording of some steps of all environments, once, and of the current episode of one, always."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from gymnasium.vector import VectorEnv

from sb3_ppo_ext.checkpoints.environments.attributes import LEAVES
from sb3_ppo_ext.checkpoints.environments.hooks import Recorder
from sb3_ppo_ext.checkpoints.environments.layers import env_layers
from sb3_ppo_ext.checkpoints.environments.recording import Recording, generators_as_bytes, new_recording
from sb3_ppo_ext.checkpoints.environments.snapshot import LeftOut

LONGEST = 100_000  # steps of an episode that is recorded
SKIPPED_STEPS, TRIAL_STEPS, TRIAL_SECONDS = 8, 32, 0.2


class TrialRecorder(Recorder):
    """Records some steps of all environments in the midst of their episodes, once, and removes itself.

    Of a vector environment, steps in which no episode ends: ``GymnasiumVecEnv`` may restart single rows by itself.
    """

    def __init__(self, envs: list[Any], done: Callable[[Recording], object]) -> None:
        super().__init__(envs)
        self._done = done  # called with the recording when it is complete
        self._count = self._first = 0  # steps of the first environment
        self._started = 0.0
        self._generators = b""  # states of the process after the last call

    def before(self, position: int, name: str) -> None:
        """Begins and ends with a step of the first environment."""
        if position == 0 and name == "step":
            self._count += 1
            if self.recording is None and self._count >= SKIPPED_STEPS:
                self.recording = new_recording([layer for env in self.envs for layer in env_layers(env)])
                self._first, self._started = self._count, time.perf_counter()
            elif self.recording is not None and len(self.recording["events"]) >= 2:
                enough = self._count >= self._first + TRIAL_STEPS
                if enough or time.perf_counter() - self._started > TRIAL_SECONDS:
                    self._finish(self.recording)
        if self.recording is not None and self.recording["events"]:
            states = generators_as_bytes()
            if states != self._generators:  # something else has drawn since
                self.recording["generators"][len(self.recording["events"])] = states

    def after(self, position: int, event: tuple[str, Any], result: Any) -> None:
        """Ends with an episode of a vector environment, or begins once more."""
        super().after(position, event, result)
        if self.recording is not None:
            self._generators = generators_as_bytes()
        ended = isinstance(self.envs[0], VectorEnv) and event[0] == "step" and (result[2] | result[3]).any()
        if ended and self.recording is not None:
            if len(self.recording["events"]) >= 2:
                self._finish(self.recording)
            else:
                self.recording = None

    def _finish(self, recording: Recording) -> None:
        self.recording = None
        self.remove()
        self._done(recording)


class EpisodeRecorder(Recorder):
    """Records the current episode, with what can be read of the environment before its reset.

    An object that cannot be read and is there before the reset and after it may remember earlier episodes: Box2D's
    world orders contacts by them, and such an episode cannot be repeated in another world. ``obstacle`` names it then.
    """

    def __init__(self, env: Any, left_out: LeftOut) -> None:
        super().__init__([env])
        self._left_out = left_out
        self._before: dict[str, dict[int, Any]] = {}
        self.obstacle: str | None = None

    def before(self, position: int, name: str) -> None:
        """Begins a new recording with each reset."""
        if name == "reset":
            self.recording = new_recording(env_layers(self.envs[0]), self._left_out)
            self._before = self._unread()

    def after(self, position: int, event: tuple[str, Any], result: Any) -> None:
        """Finds what has survived a reset."""
        super().after(position, event, result)
        if event[0] == "reset":
            after = self._unread()
            survivors = [name for name, objects in self._before.items() if objects.keys() & after.get(name, {}).keys()]
            self.obstacle = f"{survivors[0]} goes on over resets" if survivors else None
            self._before = {}
        elif self.recording is not None and len(self.recording["events"]) > LONGEST:
            self.recording = None

    def _unread(self) -> dict[str, dict[int, Any]]:
        """The objects in the attributes that cannot be read, by id; they are held, so that ids are not used again."""
        layers = env_layers(self.envs[0])
        return {
            f"{type(layers[index]).__name__}.{name}": dict(_objects_in(vars(layers[index]).get(name)))
            for index, names in self._left_out.items()
            for name in names
        }


def _objects_in(value: Any) -> Iterator[tuple[int, Any]]:
    """Yields the objects in containers that are neither containers nor plain values, by id."""
    if isinstance(value, (list, tuple, set, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _objects_in(entry)
    elif type(value) not in LEAVES:
        yield id(value), value
