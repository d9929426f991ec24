"""What the minibatch update takes as tensors, collected from an eager update: the same for every way of running it."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_ppo_ext.engines.traced_adam import AdamState
from sb3_ppo_ext.engines.traced_update import Plan
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.objective.terms import KnobValues
from sb3_ppo_ext.policies.adapter import SB3Adapter
from sb3_ppo_ext.update.eager import Update

# What is added or clamped counts in the precision of Python's numbers; what is multiplied into a loss is rounded to the
# loss's own precision first: as torch does with a Python number in either place, so that eager and graph agree.
WIDE = frozenset({"clip_range", "clip_range_high", "clip_range_vf", "learning_rate"})


class UpdateInputs:
    """Plan and tensors of ``UpdateGraphs``, all but the rollout; on the device of the policy.

    Parameters and moments are the policy's and the optimizer's own; knobs and the limit of the KL are to be filled.
    ``ratios`` are those of the optimizer's learning rates.
    """

    def __init__(self, eager: Update, ratios: list[float]) -> None:
        assert isinstance(eager.adapter, SB3Adapter)
        policy = eager.adapter.policy
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        frozen = {name: p.detach() for name, p in policy.named_parameters() if not p.requires_grad}
        self.state = AdamState(eager.optimizer, list(trained.values()))
        self.plan = Plan(
            objective=eager.objective,
            clocks=self.state.clocks,
            clock_of=self.state.clock_of,
            ratios=tuple(ratios[group] for group in self.state.group_of_clock),
            max_grad_norm=eager.max_grad_norm,
            knobs=tuple(name for name, value in eager.knobs.values._asdict().items() if value is not None),
            value_scaled=eager.value_scale is not None,
        )
        first = next(iter(trained.values()))
        device = first.device
        self.inputs: Inputs = {
            "parameters": {name: parameter.detach() for name, parameter in trained.items()},
            "constants": {**frozen, **dict(policy.named_buffers())},
            "first": self.state.first,
            "second": self.state.second,
            "powers": self.state.powers,
            "knobs": {name: torch.zeros((), dtype=_dtype(name), device=device) for name in self.plan.knobs},
            "kl_limit": torch.tensor(eager.kl_limit, dtype=first.dtype, device=device),
        }


def knob_tensors(knobs: KnobValues, device: torch.device) -> dict[str, Tensor]:
    """Those that are set, as a graph takes them."""
    given = {name: value for name, value in knobs._asdict().items() if value is not None}
    return {name: torch.full((), float(value), dtype=_dtype(name), device=device) for name, value in given.items()}


def _dtype(knob: str) -> torch.dtype:
    return torch.float64 if knob in WIDE else torch.float32
