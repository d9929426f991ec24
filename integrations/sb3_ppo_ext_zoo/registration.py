"""Puts PPOX into the tables in which rl_zoo3 looks up an algorithm, and its environments into gymnasium's."""

from __future__ import annotations

import gymnasium as gym

NAME = "ppox"  # rl_zoo3 also derives it from the class name, lower-cased

# Id -> where it is made. Language models are an extra: nothing there is imported until one is.
ENVIRONMENTS = {
    "PromptCopy-v0": "sb3_ppo_ext_zoo.language.copying:PromptCopyEnv",
    "RandomWalks-v0": "sb3_ppo_ext_zoo.language.walks:RandomWalksEnv",
    "TextGrid-v0": "sb3_ppo_ext_zoo.language.grid:text_grid",
}


def register() -> None:
    """Makes ``--algo ppox`` and ``ENVIRONMENTS`` known to every rl_zoo3 script of this process; once is enough.

    The tables are changed in place, because the scripts hold them by reference (``from rl_zoo3.utils import ALGOS``).
    Only ``rl_zoo3.utils`` and ``rl_zoo3.hyperparams_opt`` are imported: anything further would be a circular import
    when this is called from a ``custom_envs.py``, which rl_zoo3 reads while it is being imported itself.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from sb3_ppo_ext import PPOX
    from sb3_ppo_ext_zoo.search import convert_ppox_params, sample_ppox_params

    for env_id, entry_point in ENVIRONMENTS.items():
        if env_id not in gym.registry:  # gymnasium warns of a second time
            gym.register(env_id, entry_point)
    ALGOS[NAME] = PPOX
    HYPERPARAMS_SAMPLER[NAME] = sample_ppox_params
    HYPERPARAMS_CONVERTER[NAME] = convert_ppox_params
