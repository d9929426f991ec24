"""A recipe among the settings: ``recipe: NAME`` in YAML, or ``ppox train --recipe NAME`` in the place of an entry."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_ppo_ext.recipes import RECIPES, recipe_named

EMPTY = Path(__file__).with_name("recipe.yml")


def recipe_option(command: str, arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments that are rl_zoo3's, and the recipe, where one is named."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", choices=tuple(RECIPES))
    parser.add_argument("-conf", "--conf-file")
    found, rest = parser.parse_known_args(arguments)
    if found.recipe is None:
        return list(arguments), None
    if found.conf_file is not None:
        parser.error("argument --recipe: not allowed with -conf/--conf-file; both name all the settings")
    return rest, found.recipe


def expanded(settings: Mapping[str, Any], env_id: str) -> dict[str, Any]:
    """Settings with the recipe that they name in the place of its name; the others come before the recipe's own.

    Environments without a limit of steps, and those of EnvPool, cannot be staggered.
    """
    others = dict(settings)
    name = others.pop("recipe", None)
    if name is None:
        return others
    found = recipe_named(name)
    n_envs = int(others.get("n_envs", found.n_envs))
    its_own: dict[str, Any] = {"policy": "MlpPolicy", "n_envs": n_envs, "n_timesteps": found.timesteps}
    if found.normalize:
        its_own["normalize"] = repr(dict(found.normalize))
    limited = gym.spec(env_id).max_episode_steps is not None
    if found.staggered and limited and "envpool" not in str(others.get("vec_env")):
        its_own["staggered_start"] = True
    return {**its_own, **found.arguments_for(n_envs), **others}
