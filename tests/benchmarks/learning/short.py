"""Short tasks: one change at a time from rl_zoo3's settings, where a run takes seconds and many seeds can be had."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.learning.arm import BOTH, Arm

# rl_zoo3 2.9, hyperparams/ppo.yml; of MountainCarContinuous's batch of 256 there are 8 steps.
ZOO: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {
        "environment": {"n_envs": 4},
        "arguments": {
            **{"n_steps": 1024, "gamma": 0.9, "gae_lambda": 0.95, "n_epochs": 10, "learning_rate": 1e-3},
            **{"ent_coef": 0.0, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4},
        },
        "steps": 100_000,
    },
    "MountainCarContinuous-v0": {
        "environment": {"n_envs": 1, "normalize": BOTH},
        "arguments": {
            **{"n_steps": 8, "batch_size": 8, "gamma": 0.9999, "gae_lambda": 0.9, "n_epochs": 10},
            **{"learning_rate": 7.77e-5, "ent_coef": 0.00429, "clip_range": 0.1, "max_grad_norm": 5, "vf_coef": 0.19},
            **{"use_sde": True, "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False}},
        },
        "steps": 20_000,
    },
}
BASE = "short: rl_zoo3"


def by_kl(start: float, low: float, high: float) -> dict[str, Any]:
    """A coefficient that answers to the KL of every epoch, as the rate of the recipe does."""
    law = {"threshold": {"margin": 2.0, "factor": 1.5}}
    return {"adaptive_kl": {"start": start, "target": 0.015, "bounds": [low, high], "every": "epoch", "law": law}}


def changed(environment: dict[str, Any] | None = None, **arguments: Any) -> Arm:
    """rl_zoo3's settings but for what is named; a function of the task's arguments is called with them."""
    tasks = {}
    for task, settings in ZOO.items():
        own = {name: value(settings["arguments"]) if callable(value) else value for name, value in arguments.items()}
        tasks[task] = {
            **settings,
            "environment": {**settings["environment"], **(environment or {})},
            "arguments": {**settings["arguments"], **own},
        }
    return Arm(tasks=tasks, everywhere=False)


SHORT = {
    BASE: changed(),
    "short: rate falls": changed(learning_rate=lambda own: f"linear:{own['learning_rate']}:0"),
    "short: rate by KL": changed(
        learning_rate=lambda own: by_kl(own["learning_rate"], own["learning_rate"] / 10, 3 * own["learning_rate"])
    ),
    "short: clip falls": changed(clip_range=lambda own: f"linear:{own['clip_range']}:0"),
    "short: clip by KL": changed(
        clip_range=lambda own: by_kl(own["clip_range"], own["clip_range"] / 4, 2 * own["clip_range"])
    ),
    "short: rate and clip fall": changed(
        learning_rate=lambda own: f"linear:{own['learning_rate']}:0",
        clip_range=lambda own: f"linear:{own['clip_range']}:0",
    ),
    "short: clip and penalty": changed(kl_coef={"adaptive_kl": {"start": 1.0, "target": 0.01}}),
    "short: fresh advantages": changed(recompute_advantage=True),
    "short: values normalised": changed(normalize_value=True),
    "short: staggered": changed({"staggered": True}),
}
