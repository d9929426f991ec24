"""What one call of ``PPOX.train`` leaves in the logger, as plain floats under Stable-Baselines3's keys and our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.policies.popart import PopArtLinear
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Measured

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX


def record_update(model: PPOX, rollout: Rollout, epochs: list[Measured], exact_kl: float) -> dict[str, float]:
    """Leaves the records of an update in the model's logger, and returns them."""
    records = training_records(model, rollout, epochs, exact_kl)
    for name, value in records.items():
        model.logger.record(name, value)
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    return records


def training_records(model: PPOX, rollout: Rollout, epochs: list[Measured], exact_kl: float) -> dict[str, float]:
    """Key -> value. Means are over all minibatches, but the KL's over the last epoch and "loss" is the last one's."""
    last = epochs[-1]

    def column(name: str) -> np.ndarray:
        return np.concatenate([epoch.column(name) for epoch in epochs])

    low, high = column("clip_fraction_low").mean(), column("clip_fraction_high").mean()
    norms = column("grad_norm")
    norms = norms[~np.isnan(norms)]  # the minibatch that stopped the epoch took no step
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
    if model.target_kl is not None:  # n_epochs where nothing stopped it
        records["early_stop_epoch"] = len(epochs) - last.stopped
    records.update(model.knobs.numbers())
    records.update(_policy_records(model))
    if (target := kl_target(model)) is not None:
        records["kl_target"] = target
    return {f"train/{name}": float(value) for name, value in records.items()} | rollout.records()


def _policy_records(model: PPOX) -> dict[str, float]:
    policy = unwrapped(model.policy)
    records = {}
    if hasattr(policy, "log_std"):
        records["std"] = policy.log_std.detach().exp().mean().item()
    head = getattr(policy, "value_net", None)
    if isinstance(head, PopArtLinear):
        records["value_mean"], records["value_scale"] = head.mean.item(), head.std.item()
    return records


def kl_target(model: PPOX) -> float | None:
    """The KL that is aimed at: a controller's target, or else ``target_kl``."""
    targets = [knob.target for knob in model.knobs.controllers.values() if knob.measures == "kl"]
    return targets[0] if targets else model.target_kl
