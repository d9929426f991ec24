"""Small environments for the tests: every kind of space, episodes of known length, nothing to download."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

# EnvPool's wheels begin at Python 3.11.
needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None,
    reason='EnvPool is not installed: pip install "sb3_ppo_ext[envpool]"',
)

ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
}
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-2, 2, (4,), np.float32),
    "double": spaces.Box(-2, 2, (4,), np.float64),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "dict": spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float32), "b": spaces.Discrete(4)}),
}


class Toy(gym.Env[Any, Any]):
    """Observations drawn from the space; the reward depends on both; cut by a time limit every ``length`` steps."""

    def __init__(self, observation: str = "vector", action: str = "discrete", length: int = 10) -> None:
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = ACTIONS[action]
        self.length = length
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self.steps == 0:
            self.observation_space.seed(seed or 0)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(np.asarray(action, dtype=np.float64).sum()) + 0.1 * self.steps
        return self.observation_space.sample(), reward, False, self.steps >= self.length, {}


class Periodic(gym.Env[Any, Any]):
    """The same four-step episode for ever, so that a reset at the end of one changes nothing."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.steps = 0

    def _observation(self) -> np.ndarray[Any, Any]:
        return np.array([np.sin(self.steps), np.cos(self.steps)], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = 1.0 - float((action[0] - self._observation()[0]) ** 2)
        return self._observation(), reward, self.steps >= 4, False, {}


class PaidAtTheEnd(gym.Env[Any, Any]):
    """Four steps to the left or to the right; the last place alone is paid, -1 to 1, and 0 on average by chance."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    LENGTH = 4

    def __init__(self) -> None:
        self.place = self.steps = 0

    def _observation(self) -> np.ndarray[Any, Any]:
        return np.array([self.place / self.LENGTH, self.steps / self.LENGTH], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 2 * int(action) - 1
        self.steps += 1
        over = self.steps == self.LENGTH
        return self._observation(), self.place / self.LENGTH if over else 0.0, over, False, {}


class Walk(gym.Env[Any, Any]):
    """A random walk that ends when it leaves the strip; its noise comes from its own generator, as seeds expect.

    With ``kind="reused"`` it returns its own buffer, which it overwrites, as careless environments do.
    """

    action_space = spaces.Discrete(3)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, kind: str = "double", render_mode: str | None = None) -> None:
        self.kind = kind
        self.render_mode = render_mode
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64 if kind == "double" else np.float32)
        dictionary = spaces.Dict({"place": box, "side": spaces.Discrete(2)})
        self.observation_space: spaces.Space[Any] = dictionary if kind == "dict" else box
        self.place = np.zeros(2, box.dtype)
        self.pull = 0.0

    def _observation(self) -> Any:
        if self.kind == "dict":
            return {"place": self.place.copy(), "side": int(self.place[0] > 0)}
        return self.place if self.kind == "reused" else self.place.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place[:] = self.np_random.normal(size=2)
        return self._observation(), {"start": float(self.place[0])}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += self.np_random.normal(size=2) + (int(action) - 1) + self.pull
        out = bool(np.abs(self.place[0]) > 4)
        return self._observation(), float(self.place.sum()) / 3, out, False, {"is_success": out, "place": self.place[0]}

    def render(self) -> Any:
        return np.full((4, 4, 3), 10 * round(float(abs(self.place[0]))), np.uint8)

    def doubled(self, number: int) -> int:
        return 2 * number


def walk(kind: str = "double") -> gym.Env[Any, Any]:
    return TimeLimit(Walk(kind), 9)


def sync(
    count: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, kind: str = "double", **options: Any
) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: walk(kind)] * count, autoreset_mode=mode, **options)
