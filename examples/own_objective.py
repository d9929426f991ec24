"""An objective of one's own, registered by name: PPO with rollback beside the plain clip on CartPole-v1.

It works under its name wherever PPOX's own do: in YAML, compiled, on tokens and in PPOXLoss.
"""

import argparse
from typing import Any

import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

from sb3_ppo_ext import PPOX, surrogate


@surrogate("rollback")
def rollback(
    log_ratio: Tensor, advantage: Tensor, *, low: Any, high: Any, mask: Any, reduce: Any, slope: float = 0.3
) -> Tensor:
    """-E[min(r A, f(r) A)], where f is r within the clip range and falls back with a slope outside of it.

    Wang et al. 2019, "Truly Proximal Policy Optimization" (PPO-RB, with alpha = ``slope``).
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    pulled_back = clipped - slope * (ratio - clipped)
    loss: Tensor = -reduce(torch.min(ratio * advantage, pulled_back * advantage), mask)
    return loss


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=50_000)
options = parser.parse_args()
torch.set_num_threads(1)  # faster for a network this small

for name in ("clip", "rollback"):
    env = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = PPOX("MlpPolicy", env, surrogate=name, n_steps=128, seed=1, device="cpu")
    model.learn(options.timesteps)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=20)
    print(f"{name:<8} mean return {mean:.0f}")
