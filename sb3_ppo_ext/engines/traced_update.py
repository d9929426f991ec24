"""The minibatch update and the rollout's forward pass as pure functions of tensors, to be traced and compiled.

The update is one graph: gather, forward, terms, gradient, norm clip, Adam, statistics. Knobs enter as 0-d tensors, so
that no schedule or controller recompiles; parameters and optimizer state are the policy's and the optimizer's own
tensors, updated in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sb3_ppo_ext.engines.channels_last import channels_last
from sb3_ppo_ext.engines.substitution import carry, substituted
from sb3_ppo_ext.engines.traced_adam import AdamGroup, adam_step
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from sb3_ppo_ext.policies.adapter import PolicyAdapter
from sb3_ppo_ext.rollout.rows import gathered_rows
from sb3_ppo_ext.update.step import decided, loss_and_statistics, row_of


@dataclass(frozen=True)
class Plan:
    """What is fixed in a graph: another plan, or inputs of another shape, make another graph."""

    objective: Objective
    clocks: tuple[AdamGroup, ...]  # of ``AdamState``
    clock_of: tuple[int | None, ...]  # for each parameter; None: the optimizer does not hold it
    ratios: tuple[float, ...]  # of the learning rates, for each clock
    max_grad_norm: float
    knobs: tuple[str, ...]  # those that are set
    value_scaled: bool


class UpdateFunctions:
    """The update as functions of ``inputs``, to be traced; they change parameters and optimizer state in place."""

    def __init__(self, policy: nn.Module, adapter: PolicyAdapter, plan: Plan) -> None:
        self.policy = policy
        self.adapter = adapter
        self.plan = plan

    def whole(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Gradient and step in one; returns the row of the minibatch (see ``update.step.COLUMNS``)."""
        row, gradients = self._gradient(inputs)
        return self.step({**inputs, "row": row, "gradients": gradients})

    def gradient(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The row, in which no step is taken yet, and the gradient clipped to ``max_grad_norm``, one per parameter."""
        row, gradients = self._gradient(inputs)
        names = list(inputs["parameters"])
        # A parameter the loss does not depend on has none; zeros keep its place, and ``step`` leaves it out.
        whole = [
            torch.zeros_like(inputs["parameters"][name]) if gradient is None else gradient.contiguous()
            for name, gradient in zip(names, gradients, strict=True)
        ]
        return (row, *whole)

    def _gradient(self, inputs: Inputs) -> tuple[Tensor, list[Tensor | None]]:
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
        carry(assigned)  # not before: the gradient needs what stood there
        with torch.no_grad():
            norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
            norm = torch.stack(norms).norm()
            clip = (plan.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
            clipped = [None if gradient is None else gradient * clip for gradient in gradients]
            return row_of(found, norm, torch.zeros_like(norm)), clipped

    @torch.no_grad()
    def step(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """One step of Adam where ``takes_step`` says so; returns the row with that decision."""
        plan = self.plan
        go, row = decided(inputs["row"], inputs["kl_limit"])
        powers = [
            (power1 * group.beta1, power2 * group.beta2)
            for (power1, power2), group in zip(inputs["powers"], plan.clocks, strict=True)
        ]
        for index, parameter in enumerate(inputs["parameters"].values()):
            clock, gradient = plan.clock_of[index], inputs["gradients"][index]
            if clock is None or gradient is None:
                continue
            before = (parameter, inputs["first"][index], inputs["second"][index])
            rate = inputs["knobs"]["learning_rate"] * plan.ratios[clock]
            after = adam_step(*before, gradient=gradient, powers=powers[clock], rate=rate, group=plan.clocks[clock])
            for tensor, new in zip(before, after, strict=True):
                tensor.copy_(torch.where(go, new, tensor))
        for old_powers, new_powers in zip(inputs["powers"], powers, strict=True):
            for old, new in zip(old_powers, new_powers, strict=True):
                old.copy_(torch.where(go, new, old))
        return (row,)
