"""The settings that are compared. An arm is plain data: what is written here is what a record of a run repeats.

``environment`` holds the keywords of ``runs.environments``, ``arguments`` those of the algorithm. Where an arm differs
from task to task, ``tasks`` holds what replaces either. The source of each arm stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SUITE = tuple(
    f"{name}-v5"
    for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer", "Reacher", "InvertedDoublePendulum")
)


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    algorithm: str = "PPOX"
    environment: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: int = 1_000_000

    def settings(self, task: str) -> dict[str, Any]:
        """Everything that a run of this arm on the task depends on, but the seed."""
        changed = self.tasks.get(task, {})
        return {
            "algorithm": self.algorithm,
            "environment": {**self.environment, **changed.get("environment", {})},
            "arguments": {**self.arguments, **changed.get("arguments", {})},
            "steps": changed.get("steps", self.steps),
        }


BOTH = {"norm_obs": True, "norm_reward": True}
OBSERVATIONS = {"norm_obs": True, "norm_reward": False}
ONE = {"n_envs": 1, "normalize": BOTH}
EIGHT = {"n_envs": 8, "normalize": BOTH}
WIDE_RELU = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": "ReLU",
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}

# CleanRL, ppo_continuous_action.py. It halves the squared error of the value, hence 0.25. It takes a time limit for the
# end of the episode, which is not repeated here: PPOX bootstraps.
CLEANRL = {
    **{"learning_rate": "linear:3e-4:0", "clip_range_vf": 0.2, "value_clip": "max", "vf_coef": 0.25},
    "policy_kwargs": {"optimizer_kwargs": {"eps": 1e-5}},
}

# Tianshou, examples/mujoco/mujoco_ppo.py at 6426a397 (2021), which made its published table. The rate falls to 0 over
# 3M steps; a run of 1M is their first third.
TIANSHOU = {
    **{"n_steps": 32, "learning_rate": "linear:3e-4:0:horizon=3e6", "vf_coef": 0.25, "normalize_advantage": False},
    **{"recompute_advantage": True, "normalize_value": True},
    "policy_kwargs": {"log_std_init": -0.5, "optimizer_kwargs": {"eps": 1e-8}},
}


def zoo(**arguments: Any) -> dict[str, Any]:
    """One task's entry of rl_zoo3's ppo.yml."""
    return {"arguments": arguments}


# rl_zoo3 2.9, hyperparams/ppo.yml, tuned for -v2 to -v4; its entries for Reacher and InvertedDoublePendulum included.
ZOO = {
    "HalfCheetah-v5": zoo(
        **{"n_steps": 512, "gamma": 0.98, "learning_rate": 2.0633e-5, "ent_coef": 0.000401762, "clip_range": 0.1},
        **{"n_epochs": 20, "gae_lambda": 0.92, "max_grad_norm": 0.8, "vf_coef": 0.58096, "policy_kwargs": WIDE_RELU},
    ),
    "Hopper-v5": zoo(
        **{"n_steps": 512, "batch_size": 32, "gamma": 0.999, "learning_rate": 9.80828e-5, "ent_coef": 0.00229519},
        **{"n_epochs": 5, "gae_lambda": 0.99, "max_grad_norm": 0.7, "vf_coef": 0.835671, "policy_kwargs": WIDE_RELU},
    ),
    "Walker2d-v5": zoo(
        **{"n_steps": 512, "batch_size": 32, "learning_rate": 5.05041e-5, "ent_coef": 0.000585045, "clip_range": 0.1},
        **{"n_epochs": 20, "max_grad_norm": 1, "vf_coef": 0.871923},
    ),
    "Humanoid-v5": zoo(
        **{"n_steps": 512, "batch_size": 256, "gamma": 0.95, "learning_rate": 3.56987e-5, "ent_coef": 0.00238306},
        **{"clip_range": 0.3, "n_epochs": 5, "gae_lambda": 0.9, "max_grad_norm": 2, "vf_coef": 0.431892},
        policy_kwargs=WIDE_RELU,
    ),
    "Swimmer-v5": {
        "environment": {"n_envs": 4},
        **zoo(n_steps=1024, batch_size=256, gamma=0.9999, gae_lambda=0.98, learning_rate=6e-4),
    },
    "Reacher-v5": zoo(
        **{"n_steps": 512, "batch_size": 32, "gamma": 0.9, "learning_rate": 0.000104019, "ent_coef": 7.52585e-8},
        **{"clip_range": 0.3, "n_epochs": 5, "gae_lambda": 1.0, "max_grad_norm": 0.9, "vf_coef": 0.950368},
    ),
    "InvertedDoublePendulum-v5": zoo(
        **{"n_steps": 128, "batch_size": 128, "gamma": 0.98, "learning_rate": 0.000155454, "ent_coef": 1.05057e-6},
        **{"clip_range": 0.4, "n_epochs": 10, "gae_lambda": 0.8, "max_grad_norm": 0.5, "vf_coef": 0.695929},
    ),
}

# Two candidates: fresh advantages for every epoch, less noise at the start, a rate that falls or that the KL steers.
FALLING: dict[str, Any] = {
    **{"n_steps": 256, "learning_rate": "linear:3e-4:0", "vf_coef": 0.25, "recompute_advantage": True},
    "policy_kwargs": {"log_std_init": -0.5},
}
STEERED = {
    "adaptive_kl": {
        **{"start": 3e-4, "target": 0.015, "bounds": [5e-5, 1e-3], "every": "epoch"},
        "law": {"threshold": {"margin": 2.0, "factor": 1.5}},
    }
}

ARMS: dict[str, Arm] = {
    "sb3": Arm(environment=ONE),
    "sb3-native": Arm("PPO", environment=ONE),
    "cleanrl": Arm(environment=ONE, arguments=CLEANRL),
    "tianshou": Arm(environment={"n_envs": 64, "normalize": OBSERVATIONS}, arguments=TIANSHOU),
    "zoo": Arm(environment=ONE, tasks=ZOO),
    "sbx": Arm("SBX", environment=ONE),
    # rl_zoo3, hyperparams/trpo.yml: HalfCheetah and Swimmer differ.
    "trpo": Arm(
        "TRPO",
        environment={"n_envs": 2, "normalize": BOTH},
        arguments={"n_steps": 1024, "batch_size": 128, "n_critic_updates": 20, "cg_max_steps": 25, "cg_damping": 0.1},
        tasks={"HalfCheetah-v5": zoo(target_kl=0.04), "Swimmer-v5": zoo(gamma=0.9999)},
    ),
    "a2c": Arm("A2C", environment=ONE, tasks={"Swimmer-v5": zoo(gamma=0.9999)}),
    "falling": Arm(environment=EIGHT, arguments=FALLING),
    "steered": Arm(environment=EIGHT, arguments={**FALLING, "n_steps": 128, "learning_rate": STEERED}),
}


def changed(name: str, environment: Mapping[str, Any] | None = None, **arguments: Any) -> None:
    """Adds an arm that differs from "falling" in what is named; ``policy_kwargs`` add to those of "falling"."""
    policy = {**FALLING["policy_kwargs"], **arguments.pop("policy_kwargs", {})}
    ARMS[name] = Arm(
        environment={**EIGHT, **(environment or {})}, arguments={**FALLING, **arguments, "policy_kwargs": policy}
    )


# The screen: one change at a time from "falling".
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
changed("clip and penalty", kl_coef={"adaptive_kl": {"start": 1.0, "target": 0.01}})
changed("penalty alone", surrogate="none", kl_coef={"adaptive_kl": {"start": 1.0, "target": 0.01}})
changed("betas 0.9, 0.99", policy_kwargs={"optimizer_kwargs": {"betas": [0.9, 0.99]}})
changed("critic 128", policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [128, 128]}})
changed("gradient norm 1", max_grad_norm=1.0)
