"""One call of ``PPOX.train``: the epochs over a collected rollout, and their statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Runner
from sb3_ppo_ext.update.step import EpochStatistics, with_maxima


class Trained(NamedTuple):
    """The statistics of an update."""

    epochs: list[EpochStatistics]
    exact_kl: float  # KL(before || after) in nats per action; NaN if it is not known
    summary: object = None  # see ``Rollout.summary``


def train_on(run: Run, rollout: Rollout, runner: Runner, after_epoch: Callable[[], None]) -> Trained:
    """Runs all epochs, or fewer where ``target_kl`` stops them, and calls ``after_epoch`` after each."""
    epochs = []
    for index, found in enumerate(runner.epochs()):
        after_epoch()
        epochs.append(found)
        if found.stopped and run.settings.verbose >= 1:
            kl = found.column("approx_kl")[-1]
            print(f"Early stopping at step {index} due to reaching max kl: {kl:.2f}")
    exact_kl = run.average(torch.tensor(runner.exact_kl(epochs), dtype=torch.float64)).item()
    return Trained(with_maxima(epochs, run.processes), exact_kl, rollout.summary())
