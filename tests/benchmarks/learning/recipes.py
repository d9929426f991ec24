"""The recipes of ``sb3_ppo_ext.recipes`` as arms: what ``ppox train --recipe NAME`` trains with."""

from __future__ import annotations

from sb3_ppo_ext.recipes import RECIPES, Recipe
from tests.benchmarks.learning.arm import Arm


def arm_of(recipe: Recipe) -> Arm:
    """A recipe in the words of an ``Arm``."""
    environment = {"n_envs": recipe.n_envs, "normalize": dict(recipe.normalize)}
    if recipe.staggered:
        environment["staggered"] = True
    return Arm(environment=environment, arguments=recipe.arguments_for(recipe.n_envs), steps=recipe.timesteps)


RECIPE_ARMS = {"recipe": arm_of(RECIPES["mujoco"])}
