"""What TRL measures of a minibatch of tokens and Stable-Baselines3 does not. Tensors are [B, L] under a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.losses import fill_masked, kl_k2, masked_mean
from sb3_ppo_ext.objective.terms import KnobValues

MINIBATCH_STATISTICS = ("ratio_mean", "k2", "policy_clipped", "value_clipped")


@torch.no_grad()
def minibatch_statistics(new: Evaluation, minibatch: Minibatch, knobs: KnobValues) -> Tensor:
    """In the order of ``MINIBATCH_STATISTICS``: means of r and of (log r)^2 / 2, and the fractions of tokens whose
    policy loss and whose value loss are the clipped ones, which are larger (``clip_fraction`` counts ratios outside
    the range, on the harmless side too).
    """
    mask = new.mask
    log_ratio = fill_masked(new.log_prob - minibatch.action_log_prob, mask)
    ratio, advantage = log_ratio.exp(), fill_masked(minibatch.advantage, mask)
    clipped = torch.clamp(ratio, 1 - knobs.low, 1 + knobs.high)  # type: ignore[arg-type]  # numbers here
    worse = (-advantage * clipped > -advantage * ratio).to(ratio.dtype)
    parts = (
        masked_mean(ratio, mask),
        kl_k2(log_ratio, mask),
        masked_mean(worse, mask),
        value_clipped(new.value, mask, minibatch, knobs),
    )
    return torch.stack([part.to(ratio.dtype) for part in parts])


def value_clipped(value: Tensor, mask: Tensor | None, minibatch: Minibatch, knobs: KnobValues) -> Tensor:
    """The fraction of the tokens under ``mask`` whose value loss is the clipped one."""
    clip = knobs.clip_range_vf
    if clip is None:
        return value.new_zeros(())
    value, old, target = (fill_masked(one, mask) for one in (value, minibatch.state_value, minibatch.value_target))
    clipped = old + torch.clamp(value - old, -clip, clip)  # type: ignore[arg-type]  # a number here
    return masked_mean(((clipped - target).square() > (value - target).square()).to(value.dtype), mask)
