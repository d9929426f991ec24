"""Training that takes a second: the control loops reach their targets, and every objective learns.

Processors round differently, so a run takes another path on each of them. What is asserted holds on every path: limits
stand far outside of what other seeds and other rounding gave. Longer runs are measured by
``python -m tests.benchmarks.learning_checks``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext import PPOX, AdaptiveKL, Threshold
from tests.environments import PaidAtTheEnd, Periodic

TARGET = 0.01


class Record(BaseCallback):
    """What train() recorded after each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_rollout_start(self) -> None:
        if "train/kl_exact" in self.logger.name_to_value:
            self.rows.append(dict(self.logger.name_to_value))


def trained(env: Callable[[], gym.Env[Any, Any]], rollouts: int, seed: int, **arguments: Any) -> tuple[PPOX, Record]:
    record = Record()
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 4, "gamma": 0.9, "learning_rate": 4e-3}
    model = PPOX("MlpPolicy", DummyVecEnv([env] * 4), seed=seed, device="cpu", **{**settings, **arguments})
    return model.learn(128 * rollouts, callback=record, log_interval=None), record


# Each begins so far off that the first rollouts' KL is 11 times too large, or 180 times too small, or farther off.
USES: dict[str, tuple[str, dict[str, Any]]] = {
    "penalty": ("kl_coef", {"surrogate": "none", "kl_coef": AdaptiveKL(0.01, TARGET)}),
    "learning rate": ("learning_rate", {"learning_rate": AdaptiveKL(1e-4, TARGET, Threshold(1.5, 1.5))}),
    "clip range": ("clip_range", {"clip_range": AdaptiveKL(0.5, TARGET, Threshold(1.2, 1.2))}),
}


@pytest.mark.parametrize("use", USES)
def test_each_use_of_adaptive_kl_reaches_its_target_from_far_off(use: str) -> None:
    knob, arguments = USES[use]
    runs = [trained(Periodic, 24, seed, **arguments) for seed in range(3)]
    kl = np.array([[row["train/kl_exact"] for row in record.rows] for _, record in runs])
    assert abs(np.log(np.median(kl[:, :3]) / TARGET)) > np.log(5)
    # Single rollouts scatter, up to 13 times the target, and draw the mean along: it is the median that a law holds.
    # Of 24 single runs, 8 seeds of each use, one median was off by a factor of 2.0, all others by less than 1.9.
    assert TARGET / 3 < np.median(kl[:, 12:]) < 3 * TARGET
    for model, _ in runs:  # it is the loop that holds it, not a bound
        controller = model.knobs.controllers[knob]
        assert controller.bounds is not None and controller.bounds[0] < controller.value < controller.bounds[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"surrogate": "spo"},
        {"surrogate": "none", "kl_coef": 1.0},
        {"kl_coef": AdaptiveKL(1.0, 0.01), "clip_range": "cosine:0.3:0.1", "advantage_scope": "rollout"},
        {"normalize_value": True, "recompute_advantage": True, "clip_range_high": 0.28, "dual_clip": 3.0},
    ],
    ids=["default", "spo", "penalty", "clip, penalty", "normalised values, recomputed advantages"],
)
@pytest.mark.parametrize("env", [PaidAtTheEnd, Periodic])
def test_every_objective_learns(env: Callable[[], gym.Env[Any, Any]], arguments: dict[str, Any]) -> None:
    model, _ = trained(env, 20, 0, **arguments)
    rewards = model.rollout_buffer.rewards
    # By chance about 0, at best 1. Of 80 runs, 8 seeds of each case, the worst reached 0.81 of Periodic and 0.98 of the
    # other one.
    reached = rewards.mean() if env is Periodic else rewards.sum() / model.rollout_buffer.episode_starts.sum()
    assert reached > 0.5
