"""The settings that others publish, run through PPOX where PPOX can, and other algorithms of theirs."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.learning.arm import BOTH, EIGHT, OBSERVATIONS, ONE, Arm
from tests.benchmarks.learning.controllers import penalty

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
TIANSHOU: dict[str, Any] = {
    **{"n_steps": 32, "learning_rate": "linear:3e-4:0:horizon=3e6", "vf_coef": 0.25, "normalize_advantage": False},
    **{"recompute_advantage": True, "normalize_value": True},
    "policy_kwargs": {"log_std_init": -0.5, "optimizer_kwargs": {"eps": 1e-8}},
}


def zoo(**arguments: Any) -> dict[str, Any]:
    """One task's entry of rl_zoo3's ppo.yml."""
    return {"arguments": arguments}


# rl_zoo3 2.9, hyperparams/ppo.yml, tuned for -v2 to -v4; its entries for Reacher and both pendulums included.
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
    "InvertedPendulum-v5": zoo(
        **{"n_steps": 32, "batch_size": 32, "gamma": 0.999, "learning_rate": 0.000222425, "ent_coef": 1.37976e-07},
        **{"clip_range": 0.4, "n_epochs": 5, "gae_lambda": 0.9, "max_grad_norm": 0.3, "vf_coef": 0.19816},
    ),
    "InvertedDoublePendulum-v5": zoo(
        **{"n_steps": 128, "batch_size": 128, "gamma": 0.98, "learning_rate": 0.000155454, "ent_coef": 1.05057e-6},
        **{"clip_range": 0.4, "n_epochs": 10, "gae_lambda": 0.8, "max_grad_norm": 0.5, "vf_coef": 0.695929},
    ),
    "MountainCarContinuous-v0": {
        **zoo(  # of its batch of 256 there are 8 steps
            **{"n_steps": 8, "batch_size": 8, "gamma": 0.9999, "gae_lambda": 0.9, "n_epochs": 10, "use_sde": True},
            **{"learning_rate": 7.77e-5, "ent_coef": 0.00429, "clip_range": 0.1, "max_grad_norm": 5, "vf_coef": 0.19},
            policy_kwargs={"log_std_init": -3.29, "ortho_init": False},
        ),
        "steps": 20_000,
    },
}

BASELINES: dict[str, Arm] = {
    "sb3": Arm(environment=ONE),
    "sb3, eight environments": Arm(environment=EIGHT, arguments={"n_steps": 256}),
    "sb3, eight environments, penalty": Arm(  # in the place of the clip; rewards as they are
        environment={"n_envs": 8, "normalize": OBSERVATIONS, "staggered": True},
        arguments={"n_steps": 256, "surrogate": "none", "kl_coef": penalty(0.003)},
    ),
    "random": Arm("random", steps=0),  # actions drawn from the space: the 0 of normalised scores
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
}
