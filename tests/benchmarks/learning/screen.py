"""The screen: candidates for a recipe, and one change at a time from the first of them and from Tianshou's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.benchmarks.learning.arm import EIGHT, OBSERVATIONS, Arm
from tests.benchmarks.learning.baselines import BASELINES, TIANSHOU
from tests.benchmarks.learning.controllers import STEERED, penalty, steered

# Two candidates: fresh advantages for every epoch, less noise at the start, a rate that falls or that the KL steers.
FALLING: dict[str, Any] = {
    **{"n_steps": 256, "learning_rate": "linear:3e-4:0", "vf_coef": 0.25, "recompute_advantage": True},
    "policy_kwargs": {"log_std_init": -0.5},
}

SCREEN: dict[str, Arm] = {
    "falling": Arm(environment=EIGHT, arguments=FALLING),
    "steered": Arm(environment=EIGHT, arguments={**FALLING, "n_steps": 128, "learning_rate": STEERED}),
}


def changed(name: str, environment: Mapping[str, Any] | None = None, **arguments: Any) -> None:
    """Adds an arm that differs from "falling" in what is named; ``policy_kwargs`` add to those of "falling"."""
    policy = {**FALLING["policy_kwargs"], **arguments.pop("policy_kwargs", {})}
    SCREEN[name] = Arm(
        environment={**EIGHT, **(environment or {})}, arguments={**FALLING, **arguments, "policy_kwargs": policy}
    )


changed("rollout of 512", n_steps=64)
changed("rollout of 1024", n_steps=128)
changed("rollout of 4096", n_steps=512)
changed("64 environments", environment={"n_envs": 64}, n_steps=32)
changed("log_std 0", policy_kwargs={"log_std_init": 0.0})
changed("log_std -1", policy_kwargs={"log_std_init": -1.0})
changed("targets kept", recompute_advantage=False)
changed("values normalised", environment={"normalize": OBSERVATIONS}, normalize_value=True)
changed("advantages as they are", normalize_advantage=False)
changed("advantages by rollout", advantage_scope="rollout")
changed("lambda 0.9", gae_lambda=0.9)
changed("lambda 0.98", gae_lambda=0.98)
changed("batch 128", batch_size=128)
changed("rate constant", learning_rate=3e-4)
changed("rate to a tenth", learning_rate="linear:3e-4:3e-5")
changed("rate by cosine", learning_rate="cosine:3e-4:0")
changed("rate by KL", learning_rate=STEERED)
changed("spo", surrogate="spo")
changed("clip 0.1", clip_range=0.1)
changed("clip 0.3", clip_range=0.3)
changed("clip falls", clip_range="linear:0.3:0.1")
changed("clip by KL", clip_range={"adaptive_kl": {"start": 0.2, "target": 0.015, "bounds": [0.05, 0.4]}})
changed("clip and penalty", kl_coef=penalty(0.01))
changed("penalty alone", surrogate="none", kl_coef=penalty(0.01))
changed("betas 0.9, 0.99", policy_kwargs={"optimizer_kwargs": {"betas": [0.9, 0.99]}})
changed("critic 128", policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [128, 128]}})
changed("gradient norm 1", max_grad_norm=1.0)
# Levers of this library: a lambda of the value targets' own, the deviation held apart from the mean, a KL bound.
changed("value lambda 1", value_lambda=1.0)
MULTIPLIER = {"start": 1.0, "law": "lagrangian", "every": "minibatch"}
changed("deviation held", kl_coef_std={"adaptive_kl": {**MULTIPLIER, "target": 0.001}})
changed("dppo", surrogate="dppo_kl")
changed("kl bound", surrogate="kl_bound", kl_coef={"adaptive_kl": {**MULTIPLIER, "target": 0.03}})


def of_steered(name: str, environment: Mapping[str, Any] | None = None, **arguments: Any) -> None:
    """Adds an arm that differs from "rate by KL" in what is named."""
    changed(f"rate by KL, {name}", environment, **{"learning_rate": STEERED, **arguments})


of_steered("log_std -1", policy_kwargs={"log_std_init": -1.0})
# Towards the defaults of Stable-Baselines3, which are ahead of the recipe on tasks without legs.
of_steered("log_std 0", policy_kwargs={"log_std_init": 0.0})
of_steered("targets kept", recompute_advantage=False)
of_steered("staggered", environment={"staggered": True})
of_steered("one environment", environment={"n_envs": 1}, n_steps=2048)
# Larger networks: rl_zoo3's settings for HalfCheetah have them.
WIDE = [256, 256]
of_steered("critic 256", policy_kwargs={"net_arch": {"pi": [64, 64], "vf": WIDE}})
of_steered("networks 256", policy_kwargs={"net_arch": {"pi": WIDE, "vf": WIDE}})


STAGGERED = "rate by KL, staggered"


def of_staggered(name: str, environment: Mapping[str, Any] | None = None, **arguments: Any) -> None:
    """Adds an arm that differs from "rate by KL, staggered" in what is named."""
    of_steered(f"staggered, {name}", {"staggered": True, **(environment or {})}, **arguments)


LOW = {"bounds": [1e-5, 1e-3]}
of_staggered("rate to 1e-5", learning_rate=steered(**LOW))
# Epochs see the KL grow from 0, so that the rate rises in the first and falls in the last; this one holds it.
NARROW = {"threshold": {"margin": 1.25, "factor": 1.2}}
of_staggered("by rollout", learning_rate=steered(**LOW, every="rollout", target=0.02, law=NARROW))
of_staggered("two environments", {"n_envs": 2}, n_steps=1024)
# Where a policy balances, the statistics become those of balancing, and a start is many deviations off.
of_staggered("observations as they are", {"normalize": {"norm_obs": False, "norm_reward": True}})
# On Reacher the rows of Table 1 with a penalty, where rewards are as they are, were ahead of all arms before these.
REWARDS = {"normalize": OBSERVATIONS}
of_staggered("rewards as they are", REWARDS)
of_staggered("rewards as they are, penalty", REWARDS, surrogate="none", kl_coef=penalty(0.003))
ON_REACHER = tuple(arm for arm in SCREEN if f"{STAGGERED}, rewards as they are" in arm)

LOWER = f"{STAGGERED}, rate to 1e-5"


def of_lower(name: str, environment: Mapping[str, Any] | None = None, **arguments: Any) -> None:
    """Adds an arm that differs from "rate by KL, staggered, rate to 1e-5" in what is named."""
    of_staggered(f"rate to 1e-5, {name}", environment, **{"learning_rate": steered(**LOW), **arguments})


# Where a minibatch of 64 moves the policy far, as on Ant and Humanoid; half the target is the recipe.
HALF, QUARTER = ({"learning_rate": steered(**LOW, target=target)} for target in (0.0075, 0.00375))
of_lower("half the target", **HALF)
of_lower("a quarter of the target", **QUARTER)
LESS_NOISE = {"log_std_init": -1.0}
of_lower("log_std -1", policy_kwargs=LESS_NOISE)
of_lower("log_std -1, half the target, too", **HALF, policy_kwargs=LESS_NOISE)
of_lower("values normalised", REWARDS, normalize_value=True)
HALF_THE_TARGET = f"{LOWER}, half the target"
ON_ANT = tuple(arm for arm in SCREEN if arm.startswith(f"{LOWER}, ") and arm != HALF_THE_TARGET)


def base_of(arm: str) -> str:
    """The arm from which another is changed."""
    if arm.startswith("tianshou"):
        return "tianshou"
    before = [other for other in SCREEN if arm.startswith(f"{other}, ")]
    return max(before, key=len, default="falling")


def of_tianshou(name: str, **arguments: Any) -> None:
    """Adds an arm that differs from Tianshou's settings in what is named; ``policy_kwargs`` add to theirs."""
    policy = {**TIANSHOU["policy_kwargs"], **arguments.pop("policy_kwargs", {})}
    SCREEN[name] = replace(BASELINES["tianshou"], arguments={**TIANSHOU, **arguments, "policy_kwargs": policy})


of_tianshou("tianshou to 1M", learning_rate="linear:3e-4:0")
of_tianshou("tianshou, rate by KL", learning_rate=STEERED)
of_tianshou("tianshou, normalised", normalize_advantage=True)
of_tianshou("tianshou, log_std -1", policy_kwargs={"log_std_init": -1.0})
of_tianshou("tianshou, critic 128", policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [128, 128]}})
of_tianshou("tianshou, lambda 0.9", gae_lambda=0.9)
