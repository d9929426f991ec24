"""The blocks of a language model: which are alike, what they are called with, and other functions in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.fingerprints import plain_attributes
from sb3_ppo_ext.language.engines.traced_block import Arguments
from sb3_ppo_ext.language.model.causal_lm import BLOCKS, CausalLM

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

BLOCKS_AT_ONCE = 6  # a model of so many blocks is one graph, which takes 7.5 s for each of them to compile
NUMBER = "layer_idx"  # the attribute with the number of a block, by which its modules find their layer of a cache
TOLERANCE = 1e-3  # of what a block adds to the states, as a fraction of the largest of it
TOLERANCE_OF_HALF = 0.05
ROUNDING = 1e-5  # of the states, as a fraction of the largest


def by_blocks(policy: LanguageModelPolicy) -> bool:
    """True where the blocks of the model are to be compiled, and not the model as a whole: on a CPU, deep models."""
    if policy.device.type != "cpu":
        return False
    layers = policy.lm.plain.config.get_text_config().num_hidden_layers
    return bool(layers > BLOCKS_AT_ONCE) or policy.lm.compute_dtype is not None


def likeness(block: nn.Module) -> Any:
    """What is equal of blocks with the same code: modules, their plain attributes but the number, shapes of tensors."""
    modules = [
        (path, type(module), tuple(pair for pair in plain_attributes(module) if pair[0] != NUMBER))
        for path, module in block.named_modules()
    ]
    tensors = [*block.named_parameters(), *block.named_buffers()]
    shapes = [(name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in tensors]
    return tuple(modules), tuple(shapes)


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The blocks of a model, none of which has a ``forward`` of its own; else ``CompileError``."""
    for name in BLOCKS:
        if isinstance(blocks := getattr(trunk, name, None), nn.ModuleList):
            if any("forward" in vars(block) for block in blocks):
                raise CompileError(f"a block of {type(trunk).__name__} has had its forward method replaced")
            return list(blocks)
    raise CompileError(f"{type(trunk).__name__} has no list of blocks named {' or '.join(BLOCKS)}")


class _Called(Exception):
    """Ends a pass when a block is called."""


@torch.no_grad()
def recorded(lm: CausalLM, block: nn.Module, run: Callable[[], object]) -> Arguments:
    """The arguments with which a pass, which ends there, calls the block."""
    found: list[Arguments] = []

    def record(*args: Any, **kwargs: Any) -> None:
        found.append(Arguments.of(args, kwargs))
        raise _Called

    try:
        with installed(lm, [(block, record)]):
            run()
    except _Called:
        return found[0]
    raise CompileError(f"a pass of {type(lm.trunk).__name__} does not call its blocks")


@contextmanager
def installed(lm: CausalLM, calls: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Blocks with another ``forward`` each, and a mask that they can take, until the end of the block."""
    lm.prepares_mask = True
    try:
        for block, call in calls:
            vars(block)["forward"] = call
        yield
    finally:
        lm.prepares_mask = False
        for block, _ in calls:
            vars(block).pop("forward", None)


def require_equal(lm: CausalLM, before: Tensor, expected: Tensor, found: Tensor) -> None:
    """``CompileError`` where a graph has other states than a block, which was called with the states ``before``."""
    tolerance = TOLERANCE if lm.compute_dtype is None else TOLERANCE_OF_HALF
    expected, found, before = expected.float(), found.float(), before.float()
    limit = tolerance * float((expected - before).abs().max()) + ROUNDING * float(expected.abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=limit, equal_nan=True):
        raise CompileError(f"the blocks of {type(lm.trunk).__name__} look alike and compute differently")
