"""Short tasks: one change at a time from rl_zoo3's settings, where a run takes seconds and many seeds can be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.benchmarks.learning import baselines
from tests.benchmarks.learning.arm import ONE, Arm
from tests.benchmarks.learning.controllers import penalty, steered

# rl_zoo3 2.9, hyperparams/ppo.yml
ZOO: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {
        "environment": {"n_envs": 4},
        "arguments": {
            **{"n_steps": 1024, "gamma": 0.9, "gae_lambda": 0.95, "n_epochs": 10, "learning_rate": 1e-3},
            **{"ent_coef": 0.0, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4},
        },
        "steps": 100_000,
    },
    "MountainCarContinuous-v0": {"environment": ONE, **baselines.ZOO["MountainCarContinuous-v0"]},
}
BASE, LONGER = "short: rl_zoo3", "short: 2.5 times as long"


def changed(environment: dict[str, Any] | None = None, times: float = 1.0, **arguments: Any) -> Arm:
    """rl_zoo3's settings but for what is named, for so many times its steps.

    A function of the task's arguments is called with them.
    """
    tasks = {}
    for task, settings in ZOO.items():
        own = {name: value(settings["arguments"]) if callable(value) else value for name, value in arguments.items()}
        tasks[task] = {
            **settings,
            "environment": {**settings["environment"], **(environment or {})},
            "arguments": {**settings["arguments"], **own},
            "steps": int(times * settings["steps"]),
        }
    return Arm(tasks=tasks, everywhere=False)


PENALTY = penalty(0.01)


def rate_by_kl(own: dict[str, Any]) -> dict[str, Any]:
    """The task's own rate, or up to ten times less and three times more."""
    rate = own["learning_rate"]
    return steered(start=rate, bounds=[rate / 10, 3 * rate])


def falling(name: str) -> Callable[[dict[str, Any]], str]:
    """The task's own coefficient of that name, falling to 0."""
    return lambda own: f"linear:{own[name]}:0"


SHORT = {
    BASE: changed(),
    "short: rate falls": changed(learning_rate=falling("learning_rate")),
    "short: rate by KL": changed(learning_rate=rate_by_kl),
    "short: clip falls": changed(clip_range=falling("clip_range")),
    "short: clip by KL": changed(
        clip_range=lambda own: steered(start=own["clip_range"], bounds=[own["clip_range"] / 4, 2 * own["clip_range"]])
    ),
    "short: rate and clip fall": changed(learning_rate=falling("learning_rate"), clip_range=falling("clip_range")),
    "short: clip and penalty": changed(kl_coef=PENALTY),
    "short: fresh advantages": changed(recompute_advantage=True),
    "short: values normalised": changed(normalize_value=True),
    "short: staggered": changed({"staggered": True}),
    # Of those that were ahead on MountainCarContinuous, together.
    "short: penalty, fresh": changed(kl_coef=PENALTY, recompute_advantage=True),
    "short: penalty, fresh, staggered": changed({"staggered": True}, kl_coef=PENALTY, recompute_advantage=True),
    "short: rate by KL, fresh": changed(learning_rate=rate_by_kl, recompute_advantage=True),
    "short: rate by KL, penalty, fresh": changed(learning_rate=rate_by_kl, kl_coef=PENALTY, recompute_advantage=True),
    # Is it the number of steps?
    LONGER: changed(times=2.5),
    f"{LONGER}, fresh advantages": changed(times=2.5, recompute_advantage=True),
    f"{LONGER}, clip and penalty": changed(times=2.5, kl_coef=PENALTY),
}


def base_of(arm: str) -> str:
    """The arm from which another is changed."""
    return LONGER if arm.startswith(f"{LONGER}, ") else BASE
