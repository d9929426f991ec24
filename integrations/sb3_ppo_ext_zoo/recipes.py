"""``ppox train --recipe NAME``: the settings of a recipe in the place of the environment's entry in ``ppox.yml``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def settings_of(name: str, others: Mapping[str, Any], max_episode_steps: int | None = None) -> dict[str, Any]:
    """A recipe in rl_zoo3's words, for the number of environments among the ``others``, the user's own settings.

    Environments without a limit of ``max_episode_steps``, and those of EnvPool, cannot be staggered.
    """
    found = recipe_named(name)
    n_envs = int(others.get("n_envs", found.n_envs))
    settings = {"policy": "MlpPolicy", "n_envs": n_envs, "n_timesteps": found.timesteps}
    if found.normalize:
        settings["normalize"] = repr(dict(found.normalize))
    if found.staggered and max_episode_steps is not None and "envpool" not in str(others.get("vec_env")):
        settings["staggered_start"] = True
    return {**settings, **found.arguments_for(n_envs), **others}
