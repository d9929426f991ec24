"""The minibatch update as a pure function of tensors, to be traced and compiled.

It is one graph: gather, forward, terms, gradient, norm clip, Adam, statistics. Knobs enter as 0-d tensors, so
that no schedule or controller recompiles; parameters and optimizer state are the policy's and the optimizer's own
tensors, updated in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sb3_ppo_ext.engines.channels_last import channels_last
from sb3_ppo_ext.engines.substitution import substituted, write_assigned
from sb3_ppo_ext.engines.traced_adam import AdamGroup, adam_step, step_size
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.objective.statistics import Statistics, mean_weights
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from sb3_ppo_ext.policies.adapter import PolicyAdapter
from sb3_ppo_ext.rollout.rows import gathered_rows
from sb3_ppo_ext.update.step import decided, loss_and_statistics, row_of


@dataclass(frozen=True)
class Plan:
    """The settings that a graph holds fixed: another plan, or inputs of another shape, make another graph."""

    objective: Objective
    step_groups: tuple[AdamGroup, ...]  # of ``AdamState``
    step_group_of: tuple[int | None, ...]  # for each parameter; None: the optimizer does not hold it
    ratios: tuple[float, ...]  # of the learning rates, for each step group
    max_grad_norm: float
    knobs: tuple[str, ...]  # those that are set
    value_scaled: bool


class UpdateFunctions:
    """The update as functions of ``inputs``, to be traced; they change parameters and optimizer state in place."""

    def __init__(self, policy: nn.Module, adapter: PolicyAdapter, plan: Plan) -> None:
        self.policy = policy
        self.adapter = adapter
        self.plan = plan

    def named(self, name: str) -> Callable[[Inputs], tuple[Tensor, ...]]:
        """The function "whole", "gradient" or "step"."""
        return {"whole": self.whole, "gradient": self.gradient, "step": self.step}[name]

    def whole(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Takes the gradient and the step; returns the row of the minibatch (see ``update.step.COLUMNS``)."""
        return self._step(inputs, *self._gradient(inputs))

    def gradient(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The gradient of each parameter and the statistics, end to end, weighted by the ``share`` of all rows (0-d).

        Maxima have no weight. Zeros stand for the gradient of a parameter that the loss does not depend on.
        """
        found, gradients = self._gradient(inputs)
        filled = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(inputs["parameters"].values(), gradients, strict=True)
        ]
        with torch.no_grad():
            weighted = [gradient.contiguous().reshape(-1) * inputs["share"] for gradient in filled]
            return (torch.cat([*weighted, found.row() * mean_weights(inputs["share"])]),)

    @torch.no_grad()
    def step(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Takes one step against what ``gradient`` returned, summed over the processes; returns the row."""
        parameters = list(inputs["parameters"].values())
        *gradients, row = torch.split(inputs["flat"], [*(p.numel() for p in parameters), len(Statistics._fields)])
        shaped: list[Tensor | None] = [
            gradient.view(parameter.shape) for gradient, parameter in zip(gradients, parameters, strict=True)
        ]
        return self._step(inputs, Statistics.of_row(row), shaped)

    def _gradient(self, inputs: Inputs) -> tuple[Statistics, list[Tensor | None]]:
        plan = self.plan
        leaves = {
            name: channels_last(tensor).detach().requires_grad_() for name, tensor in inputs["parameters"].items()
        }
        minibatch = gathered_rows(inputs["rollout"], inputs["rows"])
        knobs = KnobValues(**{name: inputs["knobs"][name] for name in plan.knobs})
        scale = inputs["constants"]["value_net.std"] if plan.value_scaled else None
        with substituted(self.policy, {**leaves, **inputs["constants"]}) as assigned:
            evaluated, found = loss_and_statistics(self.adapter, minibatch, plan.objective, knobs, value_scale=scale)
        gradients = torch.autograd.grad(evaluated.loss, list(leaves.values()), allow_unused=True)
        write_assigned(assigned)  # not before: the gradient needs the old values
        return found, list(gradients)

    @torch.no_grad()
    def _step(self, inputs: Inputs, found: Statistics, gradients: list[Tensor | None]) -> tuple[Tensor, ...]:
        """Clips the gradient and takes one step of Adam where ``decided`` allows it; the row with that decision."""
        plan = self.plan
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
        norm = torch.stack(norms).norm()
        clip = (plan.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        clipped = [None if gradient is None else gradient * clip for gradient in gradients]
        go, row = decided(row_of(found, norm, torch.zeros_like(norm)), inputs["kl_limit"])
        powers = [
            (power1 * group.beta1, power2 * group.beta2)
            for (power1, power2), group in zip(inputs["powers"], plan.step_groups, strict=True)
        ]
        rate = inputs["knobs"]["learning_rate"]
        sizes = [step_size(rate * ratio, power) for ratio, power in zip(plan.ratios, powers, strict=True)]
        for index, parameter in enumerate(inputs["parameters"].values()):
            of, gradient = plan.step_group_of[index], clipped[index]
            if of is None or gradient is None:
                continue
            before = (parameter, inputs["first"][index], inputs["second"][index])
            after = adam_step(*before, gradient=gradient, size=sizes[of], group=plan.step_groups[of])
            for tensor, new in zip(before, after, strict=True):
                tensor.copy_(torch.where(go, new, tensor))
        for old_powers, new_powers in zip(inputs["powers"], powers, strict=True):
            for old, new in zip(old_powers, new_powers, strict=True):
                old.copy_(torch.where(go, new, old))
        return (row,)
