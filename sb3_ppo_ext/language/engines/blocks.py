"""The blocks of a language model by two graphs: they are the same code with other weights.

One graph has the states after a block, the other the gradient. Both are for batches of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from sb3_ppo_ext.engines.cpu.libraries import Call
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.language.engines.block_kinds import blocks_of, installed, likeness, recorded, require_equal
from sb3_ppo_ext.language.engines.traced_block import (
    EXAMPLES,
    Arguments,
    BlockGradient,
    named_tensors,
    states_of,
    varying_sizes,
    wrong_form,
)
from sb3_ppo_ext.language.model.critics import BranchCritic, SeparateCritic

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class Compiled(NamedTuple):
    """The two graphs of blocks that are alike, and what they hold fixed."""

    result: Call
    gradient: Call
    form: tuple[Any, ...]  # of the arguments
    returned: Any  # the structure of what a block returns


class BlockFunction(torch.autograd.Function):
    """A block by its graphs, as a function with a gradient."""

    @staticmethod
    def forward(ctx: Any, compiled: Compiled, trained: int, *tensors: Tensor) -> Tensor:
        """The states after the block; the first ``trained`` of the tensors have gradients."""
        states, *kept = compiled.result([tensor.detach() for tensor in tensors])
        ctx.compiled, ctx.trained = compiled, trained
        ctx.save_for_backward(*tensors, *kept)
        ctx.untrained = len(tensors) - trained
        return states

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:
        """The gradients in the order of the tensors."""
        saved = [tensor.detach() for tensor in ctx.saved_tensors]
        gradients = ctx.compiled.gradient([*saved, directions[0].contiguous()])
        return None, None, *gradients, *[None] * ctx.untrained


class BlockCall:
    """Stands for the ``forward`` of one block."""

    def __init__(self, block: nn.Module, compiled: Compiled) -> None:
        self.compiled = compiled
        trained, constants = named_tensors(block)
        self.trained = 1 + len(trained)  # the states too
        self.own = [*trained.values(), *constants.values()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns."""
        arguments = Arguments.of(args, kwargs)
        if arguments.form != self.compiled.form:
            raise wrong_form(arguments, self.compiled.form)
        states, *others = arguments.tensors
        after = BlockFunction.apply(  # type: ignore[no-untyped-call]  # torch's
            self.compiled, self.trained, states, *self.own, *others
        )
        return trees.tree_unflatten([after], self.compiled.returned)


class CompiledBlocks:
    """All blocks of a policy by graphs; ``CompileError`` where no two are alike, or a graph cannot stand for them.

    A block that is like no other is left to PyTorch, as may be the branch of a critic.
    """

    def __init__(self, policy: LanguageModelPolicy, graphs: Graphs) -> None:
        self.policy, self.graphs = policy, graphs
        self.calls: list[tuple[nn.Module, BlockCall]] = []
        kinds: dict[Any, list[tuple[nn.Module, list[Arguments]]]] = {}
        for block, examples in _blocks_with_examples(policy):
            kinds.setdefault((likeness(block), examples[0].form), []).append((block, examples))
        for blocks in kinds.values():
            if len(blocks) > 1:
                self._compile(blocks)
        if not self.calls:
            raise CompileError(f"no two blocks of {type(policy.lm.trunk).__name__} are alike")

    def _compile(self, blocks: list[tuple[nn.Module, list[Arguments]]]) -> None:
        block, (first, second) = blocks[0]
        function, other = (BlockGradient(block, each, self.policy.lm.computing) for each in (first, second))
        inputs = function.inputs()
        varying = varying_sizes(inputs, other.inputs())
        dtype = self.policy.lm.compute_dtype
        kind = "a block" if dtype is None else f"a block in {dtype}"
        result, gradient = self.graphs.get_with_gradient(kind, function, inputs, block, varying)
        with torch.no_grad():
            _, returned = states_of(first.passed_to(block, first.tensors))
        compiled = Compiled(result.call, gradient.call, first.form, returned)
        for block, (_, example) in blocks:
            call = BlockCall(block, compiled)
            self._require_equal(block, call, example)
            self.calls.append((block, call))

    @torch.no_grad()
    def _require_equal(self, block: nn.Module, call: BlockCall, example: Arguments) -> None:
        states, *others = example.tensors
        drawn = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states.dtype)
        with self.policy.lm.computing():
            expected, found = (
                states_of(example.passed_to(each, [drawn, *others]))[0] for each in (block.forward, call)
            )
        require_equal(self.policy.lm, drawn, expected, found)

    def installed(self) -> AbstractContextManager[None]:
        """Lets the policy compute its blocks by graphs until the end of the block."""
        return installed(self.policy.lm, self.calls)


def _blocks_with_examples(policy: LanguageModelPolicy) -> Iterator[tuple[nn.Module, list[Arguments]]]:
    """The blocks of the model and of its critic, with the arguments of two calls."""
    lm, critic = policy.lm, policy.critic
    blocks = blocks_of(lm.trunk)
    examples = [_arguments(policy, lm.hidden, blocks[0], *sizes) for sizes in EXAMPLES]
    if isinstance(critic, BranchCritic):
        blocks.append(critic.block)
    yield from ((block, examples) for block in blocks)
    if isinstance(critic, SeparateCritic):
        trunk = critic.trunk.get_base_model() if isinstance(critic.trunk, PeftModel) else critic.trunk
        blocks = blocks_of(trunk)

        def values(ids: Tensor, mask: Tensor) -> Tensor:
            return critic.values(lm, ids, mask)

        examples = [_arguments(policy, values, blocks[0], *sizes) for sizes in EXAMPLES]
        yield from ((block, examples) for block in blocks)


def _arguments(policy: LanguageModelPolicy, forward: Any, block: nn.Module, rows: int, length: int) -> Arguments:
    """Those with which a pass over ``rows`` sequences calls the block."""
    ids = torch.zeros(rows, length, dtype=torch.long, device=policy.device)
    return recorded(policy.lm, block, partial(forward, ids, torch.ones_like(ids, dtype=torch.bool)))
