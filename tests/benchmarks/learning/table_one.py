"""Table 1 of the PPO paper (Schulman et al. 2017) again, and what this library adds to its rows.

The paper's tasks in their v5: 1M steps, Adam at 3e-4, 10 epochs of batches of 64, 2,048 steps a rollout. As in the
authors' code (openai/baselines, ppo1) observations alone are normalised, and clipped at 5, advantages over the rollout,
and the gradient is not clipped. The rollout is of 8 environments here and of one there, which costs half the time;
their first episodes are cut at random lengths, without which they would be in step and a rollout a part of an episode.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.learning.arm import Arm
from tests.benchmarks.learning.controllers import STEERED, penalty

TABLE_ONE_TASKS = tuple(
    f"{name}-v5"
    for name in (
        *("HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d"),
    )
)
PAPER: dict[str, float] = {  # its row "avg. normalized score": random policy 0, best result of all settings 1
    "no clip, no penalty": -0.39,
    **{"clip 0.1": 0.76, "clip 0.2": 0.82, "clip 0.3": 0.70},
    **{"KL adaptive 0.003": 0.68, "KL adaptive 0.01": 0.74, "KL adaptive 0.03": 0.71},
    **{"KL fixed 0.3": 0.62, "KL fixed 1": 0.71, "KL fixed 3": 0.72, "KL fixed 10": 0.69},
}

NORMALIZE = {"norm_obs": True, "norm_reward": False, "clip_obs": 5.0}
ENVIRONMENT = {"n_envs": 8, "normalize": NORMALIZE, "staggered": True}
ARGUMENTS = {"n_steps": 256, "advantage_scope": "rollout", "vf_coef": 1.0, "max_grad_norm": 1e9}
UNCLIPPED = {"surrogate": "none"}
MULTIPLIER = {"start": 1.0, "target": 0.03, "law": "lagrangian", "every": "minibatch"}


def row(**arguments: Any) -> Arm:
    """One row of the table."""
    return Arm(environment=ENVIRONMENT, arguments={**ARGUMENTS, **arguments})


_ROWS = {
    "no clip, no penalty": row(**UNCLIPPED),
    **{f"clip {clip}": row(clip_range=clip) for clip in (0.1, 0.2, 0.3)},
    **{f"KL adaptive {target}": row(**UNCLIPPED, kl_coef=penalty(target)) for target in (0.003, 0.01, 0.03)},
    **{f"KL fixed {coef:g}": row(**UNCLIPPED, kl_coef=coef) for coef in (0.3, 1.0, 3.0, 10.0)},
    "clip linear": row(clip_range="linear:0.3:0.1"),
    "clip cosine": row(clip_range="cosine:0.3:0.1"),
    "clip adaptive": row(clip_range={"adaptive_kl": {"start": 0.2, "target": 0.015, "bounds": [0.05, 0.4]}}),
    "rate adaptive": row(learning_rate=STEERED),
    "clip and KL adaptive 0.01": row(kl_coef=penalty(0.01)),
    "SPO": row(surrogate="spo"),
    "DPPO": row(surrogate="dppo_kl"),
    "KL bound 0.03": row(surrogate="kl_bound", kl_coef={"adaptive_kl": MULTIPLIER}),
}
NAMES = {name: f"table 1: {name}" for name in _ROWS}  # a row's name -> its arm's
TABLE_ONE = {NAMES[name]: arm for name, arm in _ROWS.items()}
