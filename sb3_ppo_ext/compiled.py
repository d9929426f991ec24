"""The minibatch update as one compiled graph: gather, forward, terms, gradient, norm clip, Adam, statistics.

Traced with ``make_fx`` over the policy itself and compiled by inductor, without dynamo: no guards, no graph break at
the backward pass. Knobs enter as 0-d tensors, so that no schedule or controller recompiles;
parameters and optimizer state are the policy's and the optimizer's own tensors, updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sb3_ppo_ext.adam import AdamGroup, adam_step
from sb3_ppo_ext.minibatches import gathered_rows
from sb3_ppo_ext.policies import PolicyAdapter
from sb3_ppo_ext.terms import STATISTICS, KnobValues, Objective, ppo_terms, statistics

Inputs = dict[str, Any]
_APPROX_KL = STATISTICS.index("approx_kl")


@dataclass(frozen=True)
class Plan:
    """What is fixed in a graph: another plan, or inputs of another shape, make another graph."""

    objective: Objective
    groups: tuple[AdamGroup, ...]
    group_of: tuple[int, ...]
    ratios: tuple[float, ...]
    max_grad_norm: float
    knobs: tuple[str, ...]  # those that are set
    value_scaled: bool


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """``module`` with other tensors for its parameters and buffers, by name, until the end of the block.

    Not ``torch.func.functional_call``: a feature extractor that actor and critic share is registered under three names,
    and that function then leaves the other tensors in the module.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    other = {id(own[name]): tensor for name, tensor in tensors.items()}
    places = [
        (table, name, tensor)
        for part in module.modules()
        for table in (part._parameters, part._buffers)
        for name, tensor in table.items()
        if id(tensor) in other
    ]
    try:
        for table, name, tensor in places:
            table[name] = other[id(tensor)]  # type: ignore[assignment]  # a plain tensor where a Parameter stood
        yield
    finally:
        for table, name, tensor in places:
            table[name] = tensor  # type: ignore[assignment]  # its own


class UpdateGraphs:
    """The update as functions of ``inputs``, for ``Graph`` to trace; they change parameters and state in place."""

    def __init__(self, policy: nn.Module, adapter: PolicyAdapter, plan: Plan) -> None:
        self.policy = policy
        self.adapter = adapter
        self.plan = plan

    def whole(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Gradient and step in one; returns the statistics, with the gradient's norm as the last entry."""
        row, *gradients = self.gradient(inputs)
        self.step({**inputs, "row": row, "gradients": gradients})
        return (row,)

    def gradient(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The statistics, and the gradient clipped to ``max_grad_norm``, parameter by parameter."""
        plan = self.plan
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs["parameters"].items()}
        minibatch = gathered_rows(inputs["rollout"], inputs["rows"])
        knobs = KnobValues(**{name: inputs["knobs"][name] for name in plan.knobs})
        scale = inputs["constants"]["value_net.std"] if plan.value_scaled else None
        with substituted(self.policy, {**leaves, **inputs["constants"]}):
            new = self.adapter.evaluate(minibatch)
        terms = ppo_terms(new, minibatch, plan.objective, knobs, value_scale=scale)
        loss = terms.weigh(knobs)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        row = statistics(new, minibatch, terms, loss, plan.objective, knobs)
        with torch.no_grad():
            norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
            clip = (plan.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
            return (torch.cat((row, norm.reshape(1))), *(gradient * clip for gradient in gradients))

    @torch.no_grad()
    def step(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """One step of Adam, but none where the sampled KL exceeds ``kl_limit`` or the gradient is not finite.

        So whoever looks at the statistics later finds good parameters.
        """
        plan, row = self.plan, inputs["row"]
        go = row[-1].isfinite() & (row[_APPROX_KL] <= inputs["kl_limit"])
        step = inputs["step"] + 1
        for index, parameter in enumerate(inputs["parameters"].values()):
            group = plan.group_of[index]
            before = (parameter, inputs["first"][index], inputs["second"][index])
            after = adam_step(
                *before,
                gradient=inputs["gradients"][index],
                step=step,
                rate=inputs["knobs"]["learning_rate"] * plan.ratios[group],
                group=plan.groups[group],
            )
            for tensor, new in zip(before, after, strict=True):
                tensor.copy_(torch.where(go, new, tensor))
        inputs["step"].copy_(torch.where(go, step, inputs["step"]))
        return (go,)


class Graph:
    """A compiled function of nested inputs; called with the tensors among them in one flat list."""

    def __init__(self, function: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs) -> None:
        leaves, structure = pytree.tree_flatten(inputs)
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            return function(pytree.tree_unflatten(filled, structure))

        from torch.fx.experimental.proxy_tensor import make_fx  # slow to import, for who compiles

        # On fake tensors, so that tracing takes no step.
        traced = make_fx(flat, tracing_mode="fake")(*(leaves[place] for place in places))
        with torch.no_grad():
            self.call: Callable[..., tuple[Tensor, ...]] = torch._inductor.compile(traced, [*tensors_of(inputs)])


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """The tensors among the inputs, in the order a ``Graph`` takes them."""
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def signature(inputs: Inputs) -> Any:
    """What a graph was made for: structure, shapes and types of its inputs, and the plain values among them."""
    leaves, structure = pytree.tree_flatten(inputs)
    shapes = (
        (leaf.shape, leaf.dtype, leaf.stride(), leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    )
    return (structure, *shapes)
