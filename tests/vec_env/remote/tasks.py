"""Environments that die, fail, or remember more than they should, when a file or an attribute has them do so."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Drunkard(gym.Env[Any, Any]):
    """A walk with steps by chance; episodes are of 3 to 9 steps, by chance too.

    Under ``memory`` the observations count the episodes of this object, which a new one does not repeat.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, memory: bool = False) -> None:
        self.memory = memory
        self.episodes = 0
        self.stride = 1.0
        self.failing: type[Exception] | None = None  # raised by the next steps
        self.options: Any = None

    def _observation(self) -> np.ndarray[Any, Any]:
        return np.array([*self.place, self.episodes if self.memory else 0], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.options = options
        self.episodes += 1
        self.place = self.np_random.normal(size=2)
        self.left = int(self.np_random.integers(3, 10))
        return self._observation(), {"first": self.place.copy()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.failing is not None:
            raise self.failing("on purpose")
        action *= self.stride  # in place: the array is the environment's own
        self.place = self.place + action + self.np_random.normal(size=2)
        self.left -= 1
        info = {"place": self.place.copy(), "left": self.left}
        return self._observation(), float(self.place[0]), self.left == 0, False, info

    def render(self) -> Any:
        return np.full((2, 2, 3), self.left, np.uint8)

    def set_stride(self, stride: float) -> float:
        self.stride = stride
        return 2 * stride


class Mortal(gym.Wrapper[Any, Any, Any, Any]):
    """Ends its process, once, where a file says so: at "construction", "reset" or "step"."""

    def __init__(self, env: gym.Env[Any, Any], folder: Path) -> None:
        super().__init__(env)
        self.folder = folder
        self._die("construction")

    def reset(self, **arguments: Any) -> Any:
        self._die("reset")
        return super().reset(**arguments)

    def step(self, action: Any) -> Any:
        self._die("step")
        return super().step(action)

    def _die(self, moment: str) -> None:
        try:
            (self.folder / moment).unlink()
        except FileNotFoundError:  # or another process was faster
            return
        os.kill(os.getpid(), signal.SIGKILL)


def process_of(env: Any) -> int:
    """The process that an environment lives in."""
    return os.getpid()
