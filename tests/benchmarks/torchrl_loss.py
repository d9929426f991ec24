"""PPOXLoss beside ClipPPOLoss: time of forward + backward on one minibatch, eager and compiled; copies of a rollout.

    python tests/benchmarks/torchrl_loss.py [--repeats 200] [--json figures.json]

One thread, a 64x64 MlpPolicy of Stable-Baselines3 on HalfCheetah's sizes (17 observations, 6 actions), 64 samples, both
losses over the same modules with the same settings, in turn in one process; figures are medians in microseconds. It is
run by hand, on a quiet machine; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from tensordict import TensorDict
from torchrl.objectives import ClipPPOLoss

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.tensordicts import rollout_to_tensordict

OBSERVATIONS, ACTIONS, ROWS = 17, 6, 64
LOSSES = ("loss_objective", "loss_entropy", "loss_critic")


class Sizes(gym.Env[Any, Any]):
    """Nothing but spaces."""

    observation_space = spaces.Box(-1, 1, (OBSERVATIONS,), np.float32)
    action_space = spaces.Box(-1, 1, (ACTIONS,), np.float32)


def minibatch(actor: Any) -> TensorDict:
    """64 rows with everything a PPO loss reads."""
    rows = TensorDict({"observation": torch.randn(ROWS, OBSERVATIONS)}, [ROWS])
    with torch.no_grad():
        actor(rows)
    rows["action_log_prob"] += 0.1 * torch.randn(ROWS)
    rows["advantage"], rows["value_target"], rows["state_value"] = torch.randn(3, ROWS, 1)
    return rows


def step_of(loss: Any, rows: TensorDict) -> Callable[[], None]:
    """Forward and backward, as a training loop does them."""
    parameters = list(loss.parameters())

    def step() -> None:
        losses = loss(rows)
        (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
        for parameter in parameters:
            parameter.grad = None

    return step


def in_turn(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The median of each side's microseconds, the sides taking turns, there and back."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(20):
        for step in steps.values():
            step()
    for turn in range(repeats):
        for name in steps if turn % 2 == 0 else reversed(steps):
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(column) for name, column in seconds.items()}


def losses(repeats: int) -> dict[str, float]:
    """Both losses, functional and not, and PPOXLoss compiled."""
    policy = PPOX("MlpPolicy", DummyVecEnv([Sizes]), device="cpu", seed=0).policy
    actor, critic = actor_module(policy), critic_module(policy)
    rows = minibatch(actor)
    sides: dict[str, Any] = {}
    for functional in (True, False):
        for cls in (ClipPPOLoss, PPOXLoss):
            loss = cls(actor, critic, functional=functional, normalize_advantage=True, loss_critic_type="l2")
            sides[f"{cls.__name__}, functional={functional}"] = loss
            sides[f"{cls.__name__}, functional={functional}, compiled"] = torch.compile(loss, fullgraph=True)
    return in_turn({name: step_of(loss, rows) for name, loss in sides.items()}, repeats)


def copies(repeats: int) -> dict[str, float]:
    """Converting a rollout of 64 x 8 images, 14 MB, beside one plain copy of its arrays."""
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    buffer = RolloutBuffer(64, space, spaces.Discrete(4), "cpu", n_envs=8)
    buffer.full = True
    arrays = [array for array in vars(buffer).values() if isinstance(array, np.ndarray)]
    for array in arrays:
        array[:] = 1  # zeros that were never written take no memory, and no time to copy

    def plain() -> None:
        for array in arrays:
            array.copy()

    sides: dict[str, Callable[[], object]] = {
        "one copy of its arrays": plain,
        "rollout_to_tensordict": lambda: rollout_to_tensordict(buffer),
    }
    return in_turn(sides, max(repeats // 10, 5))  # type: ignore[arg-type]  # the result is dropped


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figures = {"forward + backward (us)": losses(options.repeats), "rollout (us)": copies(options.repeats)}
    for title, rows in figures.items():
        print(title)
        first = next(iter(rows.values()))
        for name, figure in rows.items():
            print(f"  {name:44} {figure:9.0f}   {figure / first:5.2f} of the first")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
