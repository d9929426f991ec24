"""Runs that are saved after every update, stopped and resumed, and the comparison with those that never stopped."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_ppo_ext import PPOX, Checkpoints
from tests.environments import ACTIONS, OBSERVATIONS
from tests.event_files import events

SETTINGS: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "device": "cpu", "compile": False}


class Stopped(Exception):
    """What stands for the end of the process."""


class StopAt(BaseCallback):
    """Ends the process, as far as the run can tell, at a timestep; it has no state."""

    def __init__(self, timestep: int) -> None:
        super().__init__()
        self.timestep = timestep

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.timestep:
            raise Stopped
        return True


class Steps(BaseCallback):
    """Notes what each step of the training was given."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[list[float]] = []

    def _on_step(self) -> bool:
        self.rewards.append(np.asarray(self.locals["rewards"]).tolist())
        return True


class Noisy(gym.Env[Any, Any]):
    """Observations of any kind from a generator of its own; the reward depends on the action; episodes of a length."""

    def __init__(self, observation: str = "vector", action: str = "discrete", length: int = 10) -> None:
        self.observation_space = copy.deepcopy(OBSERVATIONS[observation])
        self.action_space = copy.deepcopy(ACTIONS[action])
        self.length, self.steps = length, 0

    def _observation(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(np.asarray(action, dtype=np.float64).sum()) + self.np_random.normal()
        over = self.np_random.random() < 0.05
        return self._observation(), reward, over, self.steps >= self.length, {"is_success": over}


NEVER = 10**9


def every_update(folder: Path, **options: Any) -> Checkpoints:
    return Checkpoints(folder, **{"every": 0, **options})


def trained(
    make: Callable[[], PPOX],
    env: Callable[[], Any],
    folder: Path,
    *,
    total: int,
    stops: list[int],
    callbacks: Callable[[], list[BaseCallback]] = list,
    **options: Any,
) -> tuple[PPOX, CallbackList]:
    """Trained to the end, with a new process, as it were, after each stop."""
    model, begun = make(), False
    for stop in [*stops, NEVER]:
        callback = CallbackList([*callbacks(), StopAt(stop)])
        try:
            if begun:
                model = PPOX.resume(folder, env(), callback=callback, device="cpu")
                model.learn()
            else:
                model.learn(total, callback, checkpoint=every_update(folder), **options)
        except Stopped:
            begun = True
            model.logger.close()
            assert model.env is not None
            model.env.close()
    return model, callback


def parameters(model: PPOX) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in model.policy.state_dict().values()])


def assert_same(resumed: PPOX, unbroken: PPOX) -> None:
    """Parameters, optimizer, controllers and counters, bit for bit."""
    assert torch.equal(parameters(resumed), parameters(unbroken))
    for mine, theirs in zip(
        resumed.policy.optimizer.state_dict()["state"].values(),
        unbroken.policy.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        for name, value in mine.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name
    assert resumed.knobs.state_dict() == unbroken.knobs.state_dict()
    for name in ("num_timesteps", "_n_updates", "_total_timesteps", "_current_progress_remaining"):
        assert getattr(resumed, name) == getattr(unbroken, name), name


TIMES = {"time/fps", "time/time_elapsed"}  # what no two runs have in common


def points(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of all scalars, as TensorBoard reads them."""
    runs = sorted((folder / "tb").iterdir())
    assert len(runs) == 1
    accumulator = events(runs[0])
    tags = accumulator.Tags()["scalars"]
    found = [(tag, event.step, event.value) for tag in tags for event in accumulator.Scalars(tag)]
    return sorted(point for point in found if point[0] not in TIMES)


def episodes(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    with (folder / "0.monitor.csv").open() as file:
        header = file.readline()
        return header, [(row["r"], row["l"]) for row in csv.DictReader(file)]
