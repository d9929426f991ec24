"""The records of a ``PPOX.train`` in the logger: plain floats under Stable-Baselines3's keys and a few more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from stable_baselines3.common.logger import Logger

from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.policies.popart import PopArtLinear
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.training import Trained

Records = dict[str, float]  # key -> value


def record_update(run: Run, rollout: Rollout, trained: Trained, more: Mapping[str, float], logger: Logger) -> Records:
    """Leaves the records of an update and ``more`` in the logger, and returns them."""
    records = {**training_records(run, rollout, trained), **more}
    for name, value in records.items():
        logger.record(name, value)
    logger.record("train/n_updates", run.n_updates + len(trained.epochs), exclude="tensorboard")
    return records


def training_records(run: Run, rollout: Rollout, trained: Trained) -> dict[str, float]:
    """Key -> value. Means are over all minibatches, but the KL's over the last epoch and "loss" is the last one's."""
    epochs, exact_kl, _ = trained
    last = epochs[-1]

    def column(name: str) -> np.ndarray:
        return np.concatenate([epoch.column(name) for epoch in epochs])

    low, high = column("clip_fraction_low").mean(), column("clip_fraction_high").mean()
    norms = np.concatenate([epoch.grad_norms() for epoch in epochs])
    records = {
        "entropy_loss": column("entropy_loss").mean(),
        "policy_gradient_loss": column("policy_gradient_loss").mean(),
        "value_loss": column("value_loss").mean(),
        "approx_kl": last.mean("approx_kl"),
        "clip_fraction": low + high,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "loss": last.column("loss")[-1],
        "ratio_max": column("ratio_max").max(),
        "explained_variance": rollout.explained_variance(),
    }
    if norms.size:
        records["grad_norm"] = norms.mean()
    if not np.isnan(exact_kl):
        records["kl_exact"] = exact_kl
    if run.splits_kl:
        records["kl_std"] = last.mean("kl_std")
    if run.settings.target_kl is not None:  # n_epochs where nothing stopped it
        records["early_stop_epoch"] = len(epochs) - last.stopped
    records.update(run.knobs.numbers())
    records.update(_policy_records(run))
    if (target := kl_target(run)) is not None:
        records["kl_target"] = target
    return {f"train/{name}": float(value) for name, value in records.items()}


def _policy_records(run: Run) -> dict[str, float]:
    policy = unwrapped(run.policy)
    records = {}
    if hasattr(policy, "log_std"):
        records["std"] = policy.log_std.detach().exp().mean().item()
    head = getattr(policy, "value_net", None)
    if isinstance(head, PopArtLinear):
        records["value_mean"], records["value_scale"] = head.mean.item(), head.std.item()
    return records


def kl_target(run: Run) -> float | None:
    """The KL that is aimed at: a controller's target, or else ``target_kl``."""
    targets = [knob.target for knob in run.knobs.controllers.values() if knob.measures == "kl"]
    return targets[0] if targets else run.settings.target_kl
