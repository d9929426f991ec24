"""The file of the last good model where training had to stop, and the statistics of its normalisation."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ppo_ext.saving import save_atomically


def checkpoint_path(callback: BaseCallback, num_timesteps: int, kind: str = "", extension: str = "zip") -> str | None:
    """The file beside the run's checkpoints, or else beside its best model; None where neither is configured."""
    callbacks = list(with_children(callback))
    name = f"last_good_{kind}{num_timesteps}_steps.{extension}"
    for child in callbacks:
        if isinstance(child, CheckpointCallback):
            return os.path.join(child.save_path, f"{child.name_prefix}_{name}")
    for child in callbacks:
        if isinstance(child, EvalCallback) and child.best_model_save_path is not None:
            return os.path.join(child.best_model_save_path, f"model_{name}")
    return None


class Normalization:
    """The statistics of a ``VecNormalize`` as they are now: what it sees later may not be finite, and stays in them."""

    def __init__(self, env: VecNormalize) -> None:
        self.env = env
        self.statistics: dict[str, Any] = {
            name: copy.deepcopy(getattr(env, name)) for name in ("obs_rms", "ret_rms") if name in vars(env)
        }

    def is_finite(self) -> bool:
        """True where every mean and variance is finite."""
        of_keys = [
            rms
            for value in self.statistics.values()
            for rms in (value.values() if isinstance(value, dict) else [value])
        ]
        return all(np.isfinite(rms.mean).all() and np.isfinite(rms.var).all() for rms in of_keys)

    def save(self, path: str) -> None:
        """A file for ``VecNormalize.load``."""
        current: dict[str, Any] = {name: getattr(self.env, name) for name in self.statistics}
        vars(self.env).update(self.statistics)
        try:
            save_atomically(path, lambda file: pickle.dump(self.env, file))
        finally:
            vars(self.env).update(current)


def with_children(callback: BaseCallback) -> Iterator[BaseCallback]:
    """The callback and all below it: SB3's containers keep their children in attributes or in lists of them."""
    return _with_children(callback, set())


def _with_children(callback: BaseCallback, seen: set[int]) -> Iterator[BaseCallback]:
    if id(callback) in seen:  # each child has its parent as an attribute
        return
    seen.add(id(callback))
    yield callback
    for value in vars(callback).values():
        for child in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(child, BaseCallback):
                yield from _with_children(child, seen)
