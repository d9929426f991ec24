"""The diagnostics that ``PPOXLoss`` returns beside its losses: scalars, under the mask, without gradient."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import is_tensor_collection
from torch import Tensor

from sb3_ppo_ext.objective.losses import effective_sample_size, fill_masked, masked_mean
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.objective.terms import KnobValues, reference_kl
from sb3_ppo_ext_torchrl import host
from sb3_ppo_ext_torchrl.loss_data import Read


@torch.no_grad()
def diagnostics(loss: Any, read: Read, found: Statistics, knobs: KnobValues) -> dict[str, Any]:
    """Everything but the losses; no name begins with "loss", for trainers sum and minimise what does."""
    new, rows, mask = read.new, read.minibatch, read.new.mask
    ratio = fill_masked(read.behaviour, mask).exp()
    measured = mask is None and read.behaviour is new.log_prob  # in the statistics, where masked slots count as 1
    result: dict[str, Any] = {
        "clip_fraction": found.clip_fraction_low + found.clip_fraction_high,
        "kl_approx": found.approx_kl,
        "ESS": effective_sample_size(read.behaviour, mask),
        "max_ratio": found.ratio_max if measured else fill_masked(ratio, mask).max(),
        "mean_ratio": masked_mean(ratio, mask),
    }
    if read.entropy is not None:
        assert new.entropy is not None
        result["entropy"] = masked_mean(new.entropy, mask)
        if is_tensor_collection(read.entropy):
            result["composite_entropy"] = read.entropy.detach()
    if loss.objective.penalized:
        result["kl"] = found.kl
    if loss.objective.splits_kl:
        result["kl_std"] = found.kl_std
    if new.ref_log_prob is not None:
        result["ref_kl"] = reference_kl(new, loss.objective)
    if host.has_critic(loss) and knobs.clip_range_vf is not None:
        result["value_clip_fraction"] = value_clip_fraction(new.value, rows.state_value, knobs.clip_range_vf, mask)
    if host.has_critic(loss) and loss.log_explained_variance:
        result["explained_variance"] = explained_variance(new.value, rows.value_target, mask)
    return result


@torch.no_grad()
def value_clip_fraction(value: Tensor, old_value: Tensor, clip: Any, mask: Tensor | None = None) -> Tensor:
    """The fraction of values that moved by more than ``clip``."""
    return masked_mean(((value - old_value).abs() > clip).to(value.dtype), mask)


@torch.no_grad()
def explained_variance(value: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """``1 - Var[target - V] / Var[target]``."""
    total = _variance(target, mask) + torch.finfo(target.dtype).eps
    return 1 - _variance(target - value, mask) / total


def _variance(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return masked_mean((tensor - masked_mean(tensor, mask)) ** 2, mask)
