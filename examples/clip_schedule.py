"""The same task under five clip ranges: how much each lets the policy move, early and late, and what it earns."""

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_ppo_ext import PPOX, Cosine, Piecewise

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=40_000)
parser.add_argument("--episodes", type=int, default=50, help="how many episodes each policy is judged by")
options = parser.parse_args()
torch.set_num_threads(1)  # faster for a network this small

# A clip range is a number, a schedule, or the text of one: "cosine:0.3:0.05" is Cosine(0.3, 0.05).
CLIP_RANGES = {
    "constant 0.2": 0.2,
    "linear to 0": "linear:0.2:0",
    "cosine": Cosine(0.3, 0.05),
    "wide, then narrow": Piecewise(((0.0, 0.4), (0.5, 0.4), (0.5, 0.1))),
    "warm-up, then linear": "warmup:0.1:linear:0.3:0.05:start=0.05",
}


class Updates(BaseCallback):
    """Keeps the KL of every update; train() has just recorded it when the next rollout starts."""

    def __init__(self) -> None:
        super().__init__()
        self.kl: list[float] = []

    def _on_rollout_start(self) -> None:
        if "train/approx_kl" in self.logger.name_to_value:  # not before the first update
            self.kl.append(self.logger.name_to_value["train/approx_kl"])

    def _on_step(self) -> bool:
        return True


table = Table("clip range", "return", "KL, first half", "KL, second half", title="PPOX on CartPole-v1")
for name, clip_range in CLIP_RANGES.items():
    model = PPOX(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=1),
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=1e-3,
        clip_range=clip_range,
        seed=1,
        device="cpu",
    )
    updates = Updates()
    model.learn(options.timesteps, callback=updates)
    returns, _ = evaluate_policy(
        model, make_vec_env("CartPole-v1", 8, seed=100), options.episodes, return_episode_rewards=True
    )
    early, late = np.array_split(updates.kl, 2)
    table.add_row(name, f"{np.mean(returns):.0f} +- {np.std(returns):.0f}", f"{early.mean():.4f}", f"{late.mean():.4f}")

Console().print(table)
