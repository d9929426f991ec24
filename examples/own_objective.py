"""An objective of one's own, registered by name: CISPO beside PPO's clipped ratio on CartPole-v1.

It works under its name wherever PPOX's own do: in YAML, compiled, on tokens and in PPOXLoss.
"""

import argparse
from typing import Any

import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

from sb3_ppo_ext import PPOX, surrogate


@surrogate("cispo")
def cispo(log_ratio: Tensor, advantage: Tensor, *, low: Any, high: Any, mask: Any, reduce: Any) -> Tensor:
    """-E[w A log pi], w = clip(r, 1 - low, 1 + high) without gradient: no sample is dropped, but none weighs much.

    MiniMax-M1 (2025), eq. 4. log_ratio has the gradient of log pi.
    """
    weight = log_ratio.exp().clamp(1 - low, 1 + high).detach()
    loss: Tensor = -reduce(weight * advantage * log_ratio, mask)
    return loss


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=50_000)
options = parser.parse_args()
torch.set_num_threads(1)  # faster for a network this small

for name in ("clip", "cispo"):
    env = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = PPOX("MlpPolicy", env, surrogate=name, n_steps=128, clip_range_high=0.28, seed=1, device="cpu")
    model.learn(options.timesteps)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=20)
    print(f"{name:<6} mean return {mean:.0f}")
