"""PPOX: Stable-Baselines3's PPO with schedules, adaptive KL and a choice of objectives."""

from sb3_ppo_ext.knobs.controllers import AdaptiveClipFraction, AdaptiveKL
from sb3_ppo_ext.knobs.laws import Proportional, Threshold
from sb3_ppo_ext.knobs.schedules import Cosine, Exponential, Linear, Piecewise, Warmup
from sb3_ppo_ext.ppox import PPOX

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
