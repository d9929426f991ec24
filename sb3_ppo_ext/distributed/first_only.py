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

WRITING = (CheckpointCallback, EvalCallback, ProgressBarCallback)


class Skipped(BaseCallback):
    """Stands for a callback that runs on rank 0 alone."""

    def _on_step(self) -> bool:
        return True


def without_writers(callback: BaseCallback) -> BaseCallback:
    """The callback of the other ranks: without those of Stable-Baselines3 that write or evaluate.

    A user's callback runs on every rank, unless its class has the attribute ``rank_zero_only = True``. ``callback``
    has been initialised.
    """
    if isinstance(callback, WRITING) or getattr(callback, "rank_zero_only", False):
        skipped = Skipped()
        skipped.init_callback(callback.model)
        return skipped
    if isinstance(callback, CallbackList):
        callback.callbacks = [without_writers(child) for child in callback.callbacks]
    elif isinstance(callback, EventCallback) and callback.callback is not None:
        callback.callback = without_writers(callback.callback)
    return callback
