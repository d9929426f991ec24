"""What rank 0 alone does: writing files and evaluating."""

from __future__ import annotations

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.type_aliases import MaybeCallback

WRITING = (CheckpointCallback, EvalCallback, ProgressBarCallback)


class Skipped(BaseCallback):
    """Stands for a callback that runs on rank 0 alone."""

    def _on_step(self) -> bool:
        return True


def without_writers(callback: MaybeCallback) -> MaybeCallback:
    """The callbacks of the other ranks, before they are initialised: without those that write or evaluate.

    These are Stable-Baselines3's, and those whose class has the attribute ``rank_zero_only = True``. A user's other
    callbacks run on every rank.
    """
    if isinstance(callback, list):
        return [replaced(child) for child in callback]
    return replaced(callback) if isinstance(callback, BaseCallback) else callback


def replaced(callback: BaseCallback) -> BaseCallback:
    """The callback, or what runs in its place."""
    if isinstance(callback, WRITING) or getattr(callback, "rank_zero_only", False):
        return Skipped()
    if isinstance(callback, CallbackList):
        callback.callbacks = [replaced(child) for child in callback.callbacks]
    elif isinstance(callback, EventCallback) and callback.callback is not None:
        callback.callback = replaced(callback.callback)
    return callback
