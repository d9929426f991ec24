"""Where a model is saved that was still good when training had to stop."""

from __future__ import annotations

import os
from collections.abc import Iterator

from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback


def checkpoint_path(callback: BaseCallback, num_timesteps: int) -> str | None:
    """The zip beside the run's checkpoints, or else beside its best model; None where neither is configured."""
    callbacks = list(with_children(callback))
    for one in callbacks:
        if isinstance(one, CheckpointCallback):
            return os.path.join(one.save_path, f"{one.name_prefix}_last_good_{num_timesteps}_steps.zip")
    for one in callbacks:
        if isinstance(one, EvalCallback) and one.best_model_save_path is not None:
            return os.path.join(one.best_model_save_path, f"model_last_good_{num_timesteps}_steps.zip")
    return None


def with_children(callback: BaseCallback) -> Iterator[BaseCallback]:
    """The callback and all below it: SB3's containers keep their children in attributes or in lists of them."""
    return _with_children(callback, set())


def _with_children(callback: BaseCallback, seen: set[int]) -> Iterator[BaseCallback]:
    if id(callback) in seen:  # each child knows its parent
        return
    seen.add(id(callback))
    yield callback
    for value in vars(callback).values():
        for child in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(child, BaseCallback):
                yield from _with_children(child, seen)
