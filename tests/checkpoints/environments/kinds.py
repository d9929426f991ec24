"""Environments that keep their state in different places; at the top of a module, so that workers can make them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnvWrapper

Result = tuple[np.ndarray, float, bool, bool, dict[str, Any]]

hidden = {"steps": 0}  # state that no attribute has


class Counting(gym.Env[Any, Any]):
    """Observes one number; its episodes end at random, after 20 steps or so."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        return self.observation(), {}

    def observation(self) -> np.ndarray:
        return np.array([self.total])

    def draw(self) -> float:
        return float(self.np_random.normal())

    def step(self, action: int) -> Result:
        self.total += self.draw() * (1 + action)
        return self.observation(), self.total, bool(self.np_random.random() < 0.05), False, {"total": self.total}


class Hidden(Counting):
    """Depends on a number that belongs to the module."""

    def draw(self) -> float:
        hidden["steps"] += 1
        return float(hidden["steps"])


class DrawsFromTheProcess(Counting):
    """Has no generator of its own."""

    def draw(self) -> float:
        return float(np.random.normal()) + random.random()


class SavesItself(Counting):
    """Its state lies in something that cannot be read, and it says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = numbers_from(0)
        self.count = 0

    def draw(self) -> float:
        self.count += 1
        return float(next(self.numbers))

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "count": self.count, "generator": self.np_random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.count = state["total"], state["count"]
        self.numbers = numbers_from(self.count)
        self.np_random.bit_generator.state = state["generator"]


class MadeAnewInReset(Counting):
    """What cannot be read begins anew with every episode."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = numbers_from(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        result = super().reset(seed=seed, options=options)
        self.numbers = numbers_from(int(self.np_random.integers(100)))
        return result

    def draw(self) -> float:
        return float(next(self.numbers))


class GoesOnOverResets(Counting):
    """What cannot be read remembers all episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = numbers_from(0)

    def draw(self) -> float:
        return float(next(self.numbers))


class Curriculum:
    """An object that several environments have in common."""

    def __init__(self) -> None:
        self.level = 0


class Shares(Counting):
    """Every step of one environment raises the level of all."""

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        self.curriculum = curriculum

    def draw(self) -> float:
        self.curriculum.level += 1
        return float(self.curriculum.level)


class Draws(VecEnvWrapper):
    """Draws from the generator of the process before every step."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        np.random.normal()
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        return self.venv.step_wait()


class HoldsSomething(VecEnvWrapper):
    """A wrapper with one attribute that can be saved and one that cannot."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv)
        self.seen = 0
        self.numbers = numbers_from(0)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.seen += 1
        return self.venv.step_wait()


def numbers_from(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1
