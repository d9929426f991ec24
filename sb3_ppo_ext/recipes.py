"""Settings for a kind of task, by name, each with what was measured with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_ppo_ext.unknown_arguments import require_choice


@dataclass(frozen=True)
class Recipe:
    """Arguments of PPOX, and what they assume of the environments and of the length of the training.

    ``rollout`` steps of all environments together make a rollout. ``normalize`` are keywords of VecNormalize, and
    ``staggered`` environments are in ``vec_env.StaggeredStart``.
    """

    rollout: int
    n_envs: int
    timesteps: int
    arguments: Mapping[str, Any]
    normalize: Mapping[str, Any] = field(default_factory=dict)
    staggered: bool = False

    def arguments_for(self, n_envs: int) -> dict[str, Any]:
        """The arguments of PPOX for so many environments, in plain values, ``n_steps`` among them."""
        if not 1 <= n_envs <= self.rollout or self.rollout % n_envs:
            raise ValueError(
                f"n_envs={n_envs}: it does not divide the {self.rollout} steps of this recipe's rollout; a number that "
                f"does is needed, {self.n_envs} for example"
            )
        return {"n_steps": self.rollout // n_envs, **copy.deepcopy(dict(self.arguments))}


# The rate answers to the KL of each epoch, by rsl_rl's rule. The target and the lower bound decide on Ant and Humanoid,
# where a minibatch of 64 moves the policy further than elsewhere: with twice the target they get less.
RATE_BY_KL = {
    "adaptive_kl": {
        **{"start": 3e-4, "target": 0.0075, "bounds": [1e-5, 1e-3], "every": "epoch"},
        "law": {"threshold": {"margin": 2.0, "factor": 1.5}},
    }
}

RECIPES = {
    # Gymnasium's MuJoCo suite, 1M steps. What it reached on fresh seeds stands in docs/benchmarks.md.
    "mujoco": Recipe(
        rollout=2048,
        n_envs=8,
        timesteps=1_000_000,
        normalize={"norm_obs": True, "norm_reward": True},
        staggered=True,
        arguments={
            "learning_rate": RATE_BY_KL,
            "vf_coef": 0.25,
            "recompute_advantage": True,
            "policy_kwargs": {"log_std_init": -0.5},
        },
    ),
}


def recipe(name: str, n_envs: int | None = None) -> dict[str, Any]:
    """The arguments of PPOX in a recipe: ``PPOX("MlpPolicy", env, **recipe("mujoco"))``.

    The recipe counts on its number of environments (8), or on the ``n_envs`` that are given: the rollout has as many
    steps either way. "mujoco" is for environments in StaggeredStart and VecNormalize. ``ValueError`` for an unknown
    name, with the known ones.
    """
    found = recipe_named(name)
    return found.arguments_for(found.n_envs if n_envs is None else n_envs)


def recipe_named(name: str) -> Recipe:
    """The recipe of that name; ``ValueError`` with the known names where there is none."""
    require_choice("recipe", name, tuple(RECIPES))
    return RECIPES[name]
