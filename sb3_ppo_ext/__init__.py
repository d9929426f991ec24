"""PPOX: Stable-Baselines3's PPO with schedules, adaptive KL and a choice of objectives."""

from sb3_ppo_ext.checkpoints.reading import CheckpointWarning
from sb3_ppo_ext.checkpoints.settings import Checkpoints
from sb3_ppo_ext.knobs.controllers import AdaptiveClipFraction, AdaptiveKL
from sb3_ppo_ext.knobs.laws import Lagrangian, Proportional, Threshold
from sb3_ppo_ext.knobs.schedules import Cosine, Exponential, Linear, Piecewise, Warmup
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.objective.registration import kl_estimator, surrogate, value_clip, value_error
from sb3_ppo_ext.ppox import PPOX
from sb3_ppo_ext.recipes import recipe

__all__ = [
    "PPOX",
    "AdaptiveClipFraction",
    "AdaptiveKL",
    "CheckpointWarning",
    "Checkpoints",
    "Cosine",
    "DivergedError",
    "Exponential",
    "Lagrangian",
    "Linear",
    "Piecewise",
    "Proportional",
    "Threshold",
    "TrainingWarning",
    "Warmup",
    "kl_estimator",
    "recipe",
    "surrogate",
    "value_clip",
    "value_error",
]

# Saved models name classes by this path, so that they load wherever the code of a class lies later.
for _public in (
    *(Checkpoints, CheckpointWarning),
    *(PPOX, AdaptiveClipFraction, AdaptiveKL, Lagrangian, Proportional, Threshold, DivergedError, TrainingWarning),
    *(Cosine, Exponential, Linear, Piecewise, Warmup),
):
    _public.__module__ = __name__
