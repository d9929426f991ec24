"""Three knobs, one target: AdaptiveKL drives the KL penalty, the learning rate or the clip range on Pendulum-v1.

Draws the measured KL beside its target, the knob's value and the return; writes adaptive_kl.png.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_ext import PPOX, AdaptiveKL, Threshold

matplotlib.use("Agg")  # writes files, needs no screen
from matplotlib import pyplot as plt

TARGET = 0.01  # nats per action

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=100_000)
parser.add_argument("--output", type=Path, default=Path("adaptive_kl.png"))
options = parser.parse_args()
torch.set_num_threads(1)  # faster for a network this small

USES: dict[str, dict[str, Any]] = {
    # The PPO paper's second variant: no clipping, a penalty whose weight adapts (Schulman et al. 2017, section 4).
    "kl_coef": {"kl_coef": AdaptiveKL(1.0, TARGET), "surrogate": "none"},
    # The idea of rsl_rl, in smaller steps and once a rollout. Its own rule is Threshold(2.0, 1.5), every="minibatch".
    "learning_rate": {"learning_rate": AdaptiveKL(1e-3, TARGET, Threshold(1.25, 1.2))},
    # The same law on the clip range.
    "clip_range": {"clip_range": AdaptiveKL(0.2, TARGET, Threshold(1.25, 1.2))},
}


class Curves(BaseCallback):
    """Keeps three figures of every update; train() has just recorded them when the next rollout starts."""

    def __init__(self, knob: str) -> None:
        super().__init__()
        self.knob = knob
        self.curves: defaultdict[str, list[float]] = defaultdict(list)

    def _on_rollout_start(self) -> None:
        recorded = self.logger.name_to_value
        if "train/kl_exact" not in recorded:  # before the first update
            return
        self.curves["steps"].append(self.num_timesteps)
        self.curves["KL (nats per action)"].append(recorded["train/kl_exact"])
        self.curves[self.knob].append(recorded[f"train/{self.knob}"])
        self.curves["mean return"].append(float(np.mean([episode["r"] for episode in self.model.ep_info_buffer or []])))

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return True


figure, rows = plt.subplots(3, len(USES), figsize=(12, 8), sharex=True, squeeze=False, layout="constrained")
for column, (knob, arguments) in enumerate(USES.items()):
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=1)
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "gamma": 0.9,
        "n_steps": 512,
        "seed": 1,
        "device": "cpu",
        **arguments,
    }
    curves = Curves(knob)
    PPOX("MlpPolicy", env, **settings).learn(options.timesteps, callback=curves)
    steps = curves.curves.pop("steps")
    for row, (quantity, values) in enumerate(curves.curves.items()):
        rows[row, column].plot(steps, values)
        rows[row, column].set_ylabel(quantity)
    rows[1, column].set_yscale("log")  # a law multiplies, so equal steps look equal
    rows[0, column].axhspan(TARGET / 1.5, TARGET * 1.5, alpha=0.2, color="gray")
    rows[0, column].axhline(TARGET, linestyle="--", color="black", label="target, and the band of factor 1.5")
    rows[0, column].set_title(f"AdaptiveKL drives {knob}")
    rows[-1, column].set_xlabel("timesteps")
    late = curves.curves["KL (nats per action)"][len(steps) // 2 :]
    print(
        f"{knob:<14} mean KL of the second half {np.mean(late):.4f} (target {TARGET}), "
        f"last value {curves.curves[knob][-1]:.3g}, last return {curves.curves['mean return'][-1]:.0f}"
    )

rows[0, 0].legend()
figure.savefig(options.output, dpi=120)
print(f"wrote {options.output.resolve()}")
