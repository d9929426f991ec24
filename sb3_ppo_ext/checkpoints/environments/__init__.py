"""Environments in a checkpoint: saved as exactly as they can be, compared when they are restored, else begun anew."""

from sb3_ppo_ext.checkpoints.environments.dividing import Piece, rows_of_all
from sb3_ppo_ext.checkpoints.environments.generators import fresh_seed
from sb3_ppo_ext.checkpoints.environments.ladder import (
    Restored,
    layers_in_this_process,
    prepare_environments,
    restore_divided,
    restore_environments,
    save_environments,
)

__all__ = [
    "Piece",
    "Restored",
    "fresh_seed",
    "layers_in_this_process",
    "prepare_environments",
    "restore_divided",
    "restore_environments",
    "rows_of_all",
    "save_environments",
]
