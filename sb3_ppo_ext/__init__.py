"""PPOX: Stable-Baselines3's PPO with schedules, adaptive KL and a choice of objectives."""

from sb3_ppo_ext.kl import AdaptiveClipFraction, AdaptiveKL, Proportional, Threshold
from sb3_ppo_ext.ppox import PPOX
from sb3_ppo_ext.schedules import Cosine, Exponential, Linear, Piecewise, Warmup

__all__ = [
    "PPOX",
    "AdaptiveClipFraction",
    "AdaptiveKL",
    "Cosine",
    "Exponential",
    "Linear",
    "Piecewise",
    "Proportional",
    "Threshold",
    "Warmup",
]
