"""The tensors that the minibatch update takes, the same for every engine that compiles it."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_ppo_ext.engines.traced_adam import AdamState
from sb3_ppo_ext.engines.traced_update import Plan
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.knobs.table import entry_of
from sb3_ppo_ext.objective.terms import KnobValues
from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update


class UpdateInputs:
    """Plan and tensors of ``UpdateFunctions``, all but the rollout, on the device of the policy.

    Parameters and moments are the policy's and the optimizer's own tensors; ``fill_knobs`` fills those of the knobs.
    """

    def __init__(self, run: Run, update: Update) -> None:
        policy = unwrapped(run.policy)
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        frozen = {name: p.detach() for name, p in policy.named_parameters() if not p.requires_grad}
        self.state = AdamState(update.optimizer, list(trained.values()))
        self.plan = Plan(
            objective=update.objective,
            step_groups=self.state.step_groups,
            step_group_of=self.state.step_group_of,
            ratios=tuple(run.rate_ratios[group] for group in self.state.param_group_of),
            max_grad_norm=run.settings.max_grad_norm,
            knobs=tuple(name for name, value in run.knobs.values._asdict().items() if value is not None),
            value_scaled=update.value_scale is not None,
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
            "share": torch.tensor(run.share, dtype=first.dtype, device=device),
            "kl_limit": torch.tensor(run.settings.kl_limit, dtype=first.dtype, device=device),
        }

    def fill_knobs(self, knobs: KnobValues) -> None:
        """Writes the knobs' numbers in force into their tensors."""
        for name, tensor in self.inputs["knobs"].items():
            tensor.fill_(getattr(knobs, name))


def knob_tensors(knobs: KnobValues, device: torch.device) -> dict[str, Tensor]:
    """The knobs that are set, as 0-d tensors."""
    numbers = {name: value for name, value in knobs._asdict().items() if value is not None}
    return {name: torch.full((), float(value), dtype=_dtype(name), device=device) for name, value in numbers.items()}


def _dtype(knob: str) -> torch.dtype:
    return torch.float64 if entry_of(knob).double else torch.float32
