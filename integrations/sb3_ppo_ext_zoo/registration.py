"""Registers PPOX in the tables from which rl_zoo3 takes an algorithm."""

from __future__ import annotations

import gymnasium as gym

NAME = "ppox"  # the lower-cased class name, which rl_zoo3 derives too
REASONING = "Reasoning-v0"


def register() -> None:
    """Makes ``--algo ppox`` valid in every rl_zoo3 script of this process; one call is enough.

    The tables are changed in place, because the scripts hold them by reference (``from rl_zoo3.utils import ALGOS``).
    Only ``rl_zoo3.utils`` and ``rl_zoo3.hyperparams_opt`` are imported: another module would be a circular import
    where a ``custom_envs.py`` calls this, which rl_zoo3 imports during its own import.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from sb3_ppo_ext import PPOX
    from sb3_ppo_ext_zoo.search import convert_ppox_params, sample_ppox_params

    if REASONING not in gym.registry:
        gym.register(REASONING, "sb3_ppo_ext_zoo.reasoning:ReasoningEnv")  # imported when one is made
    ALGOS[NAME] = PPOX
    HYPERPARAMS_SAMPLER[NAME] = sample_ppox_params
    HYPERPARAMS_CONVERTER[NAME] = convert_ppox_params
