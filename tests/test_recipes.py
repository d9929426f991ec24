"""Recipes are arguments of PPOX in plain values, for any number of environments that their rollout divides by."""

from __future__ import annotations

import json

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_ext import PPOX, AdaptiveKL, recipe
from sb3_ppo_ext.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_model_s_arguments(name: str) -> None:
    assert json.loads(json.dumps(recipe(name))) == recipe(name)
    model = PPOX("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 4)), **recipe(name, n_envs=4), device="cpu")
    assert model.n_steps * 4 == RECIPES[name].rollout
    assert isinstance(model.learning_rate, AdaptiveKL)


def test_recipes_are_not_changed_by_their_users() -> None:
    mine = recipe("mujoco")
    mine["policy_kwargs"]["log_std_init"] = 7.0
    assert recipe("mujoco")["policy_kwargs"]["log_std_init"] == -0.5


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="recipe='atari': one of 'mujoco' is needed"):
        recipe("atari")
    with pytest.raises(ValueError, match="n_envs=3: it does not divide the 2048 steps of this recipe's rollout"):
        recipe("mujoco", n_envs=3)
