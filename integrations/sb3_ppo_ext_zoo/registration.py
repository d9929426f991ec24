"""Puts PPOX into the tables in which rl_zoo3 looks up an algorithm, and into nothing else."""

from __future__ import annotations

NAME = "ppox"  # rl_zoo3 also derives it from the class name, lower-cased


def register() -> None:
    """Makes ``--algo ppox`` known to every rl_zoo3 script of this process; calling it again changes nothing.

    The tables are changed in place, because the scripts hold them by reference (``from rl_zoo3.utils import ALGOS``).
    Only ``rl_zoo3.utils`` and ``rl_zoo3.hyperparams_opt`` are imported: anything further would be a circular import
    when this is called from a ``custom_envs.py``, which rl_zoo3 reads while it is being imported itself.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    from sb3_ppo_ext import PPOX
    from sb3_ppo_ext_zoo.search import convert_ppox_params, sample_ppox_params

    ALGOS[NAME] = PPOX
    HYPERPARAMS_SAMPLER[NAME] = sample_ppox_params
    HYPERPARAMS_CONVERTER[NAME] = convert_ppox_params
