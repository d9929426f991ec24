"""A block of a language model and its gradient as a function of tensors, to be traced and compiled.

B and S, the sizes of the states [B, S, D], may be any in the graph. Letters: see ``causal_lm``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.substitution import substituted, write_assigned
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.graphs import Varying
from sb3_ppo_ext.language.engines.traced_tokens import IndexedCacheLayer, gradients_of

EXAMPLES = ((2, 3), (3, 5))  # [B, S] of two calls: sizes that differ between them may be any


class Arguments(NamedTuple):
    """The arguments of a call of a block as the leaves of their structure; the first tensor is the states."""

    structure: Any
    leaves: list[Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Takes the arguments apart."""
        leaves, structure = trees.tree_flatten((args, kwargs), is_leaf=lambda value: isinstance(value, Cache))
        return cls(structure, [leaf.contiguous() if isinstance(leaf, Tensor) else leaf for leaf in leaves])

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def form(self) -> tuple[Any, ...]:
        """What a graph holds fixed: structure, plain values, and types of tensors."""
        return (self.structure, *map(_form, self.leaves))

    def passed_to(self, block: Callable[..., Any], tensors: list[Tensor], cache: Cache | None = None) -> Any:
        """What the block returns of these arguments with other tensors, and perhaps another cache, in them."""
        left = iter(tensors)
        leaves = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        if cache is not None:
            leaves = [cache if isinstance(leaf, Cache) else leaf for leaf in leaves]
        args, kwargs = trees.tree_unflatten(leaves, self.structure)
        return block(*args, **kwargs)


def wrong_form(arguments: Arguments, compiled: tuple[Any, ...]) -> RuntimeError:
    """The error of a call with arguments that a graph does not hold for."""
    form = arguments.form[1:]
    return RuntimeError(f"a block is called with arguments of the form {form}, and was compiled for {compiled[1:]}")


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.dtype, leaf.dim()
    return type(leaf).__name__ if isinstance(leaf, Cache) else leaf


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


class BlockToken:
    """The states after a block for one more token of each sequence, whose keys and values go into a cache."""

    def __init__(self, block: nn.Module, arguments: Arguments, layers: int) -> None:
        self.block, self.arguments, self.layers = block, arguments, layers

    def inputs(self, keys: Tensor, values: Tensor, slot: Tensor) -> Inputs:
        """The block's own tensors, those of the arguments, and the cache [B, heads, S, D / heads] with the slot."""
        trained, constants = named_tensors(self.block)
        states, *others = self.arguments.tensors
        named = {**{name: tensor.detach() for name, tensor in trained.items()}, **constants}
        return {"states": states, "constants": named, "others": others, "keys": keys, "values": values, "slot": slot}

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The states [B, 1, D]; writes one token at ``slot`` of the cache."""
        cache = DynamicCache()
        cache.layers = [IndexedCacheLayer(inputs["keys"], inputs["values"], inputs["slot"])] * self.layers
        with substituted(self.block, inputs["constants"]) as assigned:
            returned = self.arguments.passed_to(self.block, [inputs["states"], *inputs["others"]], cache)
        write_assigned(assigned)
        return (states_of(returned)[0],)


def varying_sizes(first: Inputs, second: Inputs) -> Varying:
    """The sizes that differ between inputs of two calls."""
    pairs = enumerate(zip(tensors_of(first), tensors_of(second), strict=True))
    return tuple(
        (index, dimension)
        for index, (one, other) in pairs
        for dimension in range(one.dim())
        if one.shape[dimension] != other.shape[dimension]
    )
