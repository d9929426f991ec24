"""A block of a language model and its gradient as a function of tensors, to be traced and compiled.

B and S, the sizes of the states [B, S, D], may be any in the graph. Letters: see ``causal_lm``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.substitution import substituted, write_assigned
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.graphs import Varying
from sb3_ppo_ext.language.engines.traced_tokens import gradients_of


class Arguments(NamedTuple):
    """The arguments of a call of a block as the leaves of their structure; the first tensor is the states."""

    structure: Any
    leaves: list[Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Takes the arguments apart."""
        leaves, structure = trees.tree_flatten((args, kwargs))
        return cls(structure, [leaf.contiguous() if isinstance(leaf, Tensor) else leaf for leaf in leaves])

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def form(self) -> tuple[Any, ...]:
        """What a graph holds fixed: structure, plain values, and types of tensors."""
        kinds = ((leaf.dtype, leaf.dim()) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves)
        return (self.structure, *kinds)

    def passed_to(self, block: Callable[..., Any], tensors: list[Tensor]) -> Any:
        """What the block returns of these arguments with other tensors in them."""
        left = iter(tensors)
        leaves = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = trees.tree_unflatten(leaves, self.structure)
        return block(*args, **kwargs)


def states_of(returned: Any) -> tuple[Tensor, Any]:
    """The states among what a block returns, and the structure of that; ``CompileError`` for other tensors beside."""
    leaves, structure = trees.tree_flatten(returned)
    if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
        raise CompileError(f"a block returns {len(leaves)} values, and not the states alone")
    return leaves[0], structure


def named_tensors(block: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The block's trainable parameters, and its other tensors, by name."""
    named = dict(block.named_parameters())
    trained: dict[str, Tensor] = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
    frozen = {name: tensor for name, tensor in named.items() if not tensor.requires_grad}
    return trained, {name: tensor.detach() for name, tensor in {**frozen, **dict(block.named_buffers())}.items()}


class BlockGradient:
    """The states after a block, and the gradients of the states before it and of its parameters along ``direction``."""

    def __init__(
        self, block: nn.Module, arguments: Arguments, computing: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.block, self.arguments, self.computing = block, arguments, computing

    def inputs(self) -> Inputs:
        """The block's own tensors and those of the arguments."""
        trained, constants = named_tensors(self.block)
        states, *others = self.arguments.tensors
        parameters = {name: tensor.detach() for name, tensor in trained.items()}
        fixed = {"states": states, "parameters": parameters, "constants": constants, "others": others}
        return {**fixed, "direction": torch.zeros_like(states)}

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The states [B, S, D], and the gradients in the order of the first inputs."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs["parameters"].items()}
        before = inputs["states"].detach().requires_grad_()
        with torch.enable_grad(), substituted(self.block, {**leaves, **inputs["constants"]}) as assigned:
            with self.computing():
                after, _ = states_of(self.arguments.passed_to(self.block, [before, *inputs["others"]]))
            gradients = gradients_of(after, {"states": before, **leaves}, inputs["direction"])
        write_assigned(assigned)
        return (after.detach(), *gradients)


def varying_sizes(inputs: Inputs, first: Arguments, second: Arguments) -> Varying:
    """The sizes of the inputs, those of ``first``, that differ between two calls of the block."""
    differing = [
        [dimension for dimension in range(one.dim()) if one.shape[dimension] != other.shape[dimension]]
        for one, other in zip(first.tensors, second.tensors, strict=True)
    ]
    others = 1 + len(inputs["parameters"]) + len(inputs["constants"])
    places = [0, *range(others, others + len(inputs["others"])), others + len(inputs["others"])]
    return tuple(
        (place, dimension)
        for place, dimensions in zip(places, [*differing, differing[0]], strict=True)
        for dimension in dimensions
    )
