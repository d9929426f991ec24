"""A policy's computation as one graph of tensor operations, with nothing of the policy baked into it.

Parameters and buffers are inputs, and so is the noise of sampled actions. The graph writes to the buffers that the
policy writes to or assigns. Anything else its code changes is refused (``policies/side_effects.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sb3_ppo_ext.engines.errors import CompileError, first_line
from sb3_ppo_ext.engines.noise import refuse_draws
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.graphs import Varying, aten, aten_graph
from sb3_ppo_ext.host.pytorch.modules import hook_tables, shared_hook_tables
from sb3_ppo_ext.policies.attribute_values import holds_tensor
from sb3_ppo_ext.policies.side_effects import Change, Snapshot, plain_tensors

Inputs = dict[str, Any]

# Tracing and compiling replace methods of torch's classes until they end, for the whole process.
COMPILER_LOCK = threading.RLock()


def refuse_hooks(policy: nn.Module) -> None:
    """Raises ``CompileError`` where a module has a hook: a graph would never call it."""
    for name, module in policy.named_modules():
        if any(hook_tables(module)):
            raise CompileError(f"the policy's {name or type(policy).__name__} has a hook, which a graph does not call")
    if any(shared_hook_tables()):
        raise CompileError("there are hooks on all modules, which a graph does not call")


def trace(
    function: Callable[[Inputs], tuple[Tensor, ...]],
    inputs: Inputs,
    policy: nn.Module,
    *,
    draws: bool = False,
    varying: Varying = (),
) -> fx.GraphModule:
    """The graph of ``function`` for the tensors among ``inputs``, in the order of ``tensors_of``.

    It is for their sizes, but for those that are ``varying``.

    Tracing takes no step and draws no number, and ``policy`` is afterwards as it was. ``CompileError`` where the
    function cannot be traced, where the policy's code changes what a graph would not, or, without ``draws``, where it
    draws random numbers.
    """
    refuse_hooks(policy)
    with COMPILER_LOCK:
        before = Snapshot(policy)
        try:
            traced = _traced(function, inputs, varying)
            if changes := before.changes():
                traced = _traced_again(function, inputs, policy, changes, varying)
        except CompileError as error:
            if "FakeTensor" in str(error) and (names := plain_tensors(policy)):
                raise CompileError(f"{error}; {names[0]} is a tensor and no buffer: register_buffer it") from error
            raise
        finally:
            before.restore()
    if not draws:
        refuse_draws(traced)
    return traced


def _traced_again(
    function: Callable[[Inputs], tuple[Tensor, ...]],
    inputs: Inputs,
    policy: nn.Module,
    changes: list[Change],
    varying: Varying,
) -> fx.GraphModule:
    """The graph of a function that changed something when it was first traced.

    Attributes that the first call sets for good are set now, and a distribution's tensors are set before they are read.
    ``CompileError`` where there is any other change.
    """
    lasting = [change for change in changes if holds_tensor(change.now) and not change.scratch]
    settled = Snapshot(policy)
    traced = None if lasting else _traced(function, inputs, varying)
    lasting += [change for change in settled.changes() if not change.scratch]
    if traced is None or lasting:
        raise CompileError(
            f"the policy's forward pass {lasting[0].what}, and a graph runs no Python; what is remembered from call to "
            f"call belongs in a buffer, and what is drawn comes from torch's generator"
        )
    return traced


def _traced(function: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs, varying: Varying) -> fx.GraphModule:
    leaves, structure = trees.tree_flatten(inputs)
    indices = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(leaves)
        for index, tensor in zip(indices, tensors, strict=True):
            filled[index] = tensor
        return function(trees.tree_unflatten(filled, structure))

    try:
        return aten_graph(flat, [leaves[index] for index in indices], REWRITTEN, varying)
    except CompileError:
        raise
    except Exception as error:  # a policy's own code may raise anything where its numbers are not known
        raise CompileError(f"the policy cannot be traced ({type(error).__name__}: {first_line(error)})") from error


def _product(a: Tensor, b: Tensor) -> Any:
    """A matrix product that is no work for a matrix library: heads of one or two outputs, inputs of a few numbers.

    As elementwise operations it becomes a loop among the others; a call of MKL takes longer than to compute it.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if min(rows, inner, columns) > 4 or rows * inner * columns > 2**16:
        return NotImplemented
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


def _product_and_bias(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """A matrix product to which the bias is added by the operations that follow.

    The matrix library would copy the bias to every row first. The product is indexed before the addition, for the
    compiler would make one call of the two again.
    """
    if not beta == alpha == 1:
        return NotImplemented
    product = _product(a, b)
    return (torch.mm(a, b)[None] + bias)[0] if product is NotImplemented else product + bias


REWRITTEN: dict[Any, Callable[..., Any]] = {aten.mm.default: _product, aten.addmm.default: _product_and_bias}


def tensors_of(inputs: Any) -> list[Tensor]:
    """The tensors among the inputs, in the order a graph takes them."""
    return [leaf for leaf in trees.tree_leaves(inputs) if isinstance(leaf, Tensor)]
