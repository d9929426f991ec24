"""Responses of a deep model: every token after the first goes through one compiled block, once for each of the model's.

The graph is for any number of rows and any length, so that rows that have ended are left out, as in eager decoding.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sb3_ppo_ext.engines.cpu.libraries import Call
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.language.engines.actors import EagerTokenActor
from sb3_ppo_ext.language.engines.block_kinds import blocks_of, installed, likeness, recorded, require_equal
from sb3_ppo_ext.language.engines.traced_block import (
    EXAMPLES,
    Arguments,
    BlockToken,
    named_tensors,
    states_of,
    varying_sizes,
    wrong_form,
)
from sb3_ppo_ext.language.engines.traced_tokens import require_one_precision, require_traceable
from sb3_ppo_ext.language.model.cache import PreallocatedLayer, preallocated_cache
from sb3_ppo_ext.language.model.generation import Decoder
from sb3_ppo_ext.run import Run

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

KINDS = 3  # of blocks, each of which has a graph: some may have an adapter, for example

Example = tuple[Arguments, DynamicCache]  # of a call of a block


class TokenCall:
    """Stands for the ``forward`` of one block, which takes its layer of the cache."""

    def __init__(self, block: nn.Module, call: Call, form: tuple[Any, ...], returned: Any) -> None:
        trained, constants = named_tensors(block)
        self.own = [*(tensor.detach() for tensor in trained.values()), *constants.values()]
        self.call, self.form, self.returned = call, form, returned
        self.layer: PreallocatedLayer | None = None
        self.slot = torch.zeros((), dtype=torch.long)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns; one token is written into the cache."""
        arguments = Arguments.of(args, kwargs)
        if arguments.form != self.form:
            raise wrong_form(arguments, self.form)
        assert self.layer is not None
        states, *others = arguments.tensors
        cached = [self.layer.all_keys, self.layer.all_values, self.slot]
        (after,) = self.call([states, *self.own, *others, *cached])
        return trees.tree_unflatten([after], self.returned)


class TokenBlocks:
    """All blocks of a model by the graph of one token; ``CompileError`` where a graph cannot stand for them."""

    def __init__(self, policy: LanguageModelPolicy, graphs: Graphs) -> None:
        require_traceable(policy)
        require_one_precision(policy)
        self.lm = policy.lm
        self.blocks = blocks_of(self.lm.trunk)
        first, second = (self._example(*sizes) for sizes in EXAMPLES)
        kinds = [likeness(block) for block in self.blocks]
        if len(set(kinds)) > KINDS:
            raise CompileError(f"the blocks of {type(self.lm.trunk).__name__} are of {len(set(kinds))} kinds")
        graph_of = {kind: self._graph(graphs, self.blocks[kinds.index(kind)], first, second) for kind in set(kinds)}
        returned = self._eagerly(self.blocks[0], *second, second[0].tensors[0])
        form, structure = second[0].form, states_of(returned)[1]
        self.calls = [
            TokenCall(block, graph_of[kind], form, structure) for block, kind in zip(self.blocks, kinds, strict=True)
        ]
        self._require_equal(*second)

    @torch.no_grad()
    def _example(self, rows: int, length: int) -> Example:
        """The arguments of the first block for the last token of ``rows`` sequences, and the cache of those before."""
        ids = torch.zeros(rows, length, dtype=torch.long)
        mask, cache = torch.ones_like(ids, dtype=torch.bool), preallocated_cache(self.lm, length)
        self.lm.hidden(ids[:, :-1], mask[:, :-1], cache=cache)
        return recorded(self.lm, self.blocks[0], partial(self.lm.hidden, ids[:, -1:], mask, cache=cache)), cache

    def _graph(self, graphs: Graphs, block: nn.Module, first: Example, second: Example) -> Call:
        function, inputs = self._traced(block, *first)
        _, others = self._traced(block, *second)
        varying = varying_sizes(inputs, others)
        return graphs.get("a block of a token", function, inputs, block, varying=varying).call

    def _traced(self, block: nn.Module, arguments: Arguments, cache: DynamicCache) -> tuple[BlockToken, Inputs]:
        function, layer = BlockToken(block, arguments, len(self.blocks)), layers_of(cache)[0]
        return function, function.inputs(layer.all_keys, layer.all_values, torch.tensor(layer.get_seq_length()))

    @torch.no_grad()
    def _eagerly(self, block: nn.Module, arguments: Arguments, cache: DynamicCache, states: Tensor) -> Any:
        return arguments.passed_to(block.forward, [states, *arguments.tensors[1:]], cache)

    @torch.no_grad()
    def _require_equal(self, arguments: Arguments, cache: DynamicCache) -> None:
        """``CompileError`` where the graph does not compute what every block does."""
        states, layers = arguments.tensors[0], layers_of(cache)
        slot = layers[-1].get_seq_length()
        layers[0].show(slot)  # the eager call before has written to it
        drawn = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states.dtype)
        self._at(cache, slot)
        for block, call, layer in zip(self.blocks, self.calls, layers, strict=True):
            found = states_of(arguments.passed_to(call, [drawn, *arguments.tensors[1:]], cache))[0]
            written = layer.all_keys[:, :, slot].clone(), layer.all_values[:, :, slot].clone()
            expected = states_of(self._eagerly(block, arguments, cache, drawn))[0]
            require_equal(self.lm, drawn, expected, found)
            for one, other in zip(written, (layer.all_keys, layer.all_values), strict=True):
                require_equal(self.lm, torch.zeros_like(one), other[:, :, slot], one)

    def _at(self, cache: DynamicCache, slot: int) -> None:
        for call, layer in zip(self.calls, layers_of(cache), strict=True):
            call.layer, call.slot = layer, torch.tensor(slot)

    @torch.no_grad()
    def hidden(self, ids: Tensor, seen: Tensor, cache: DynamicCache) -> Tensor:
        """The states [B, D] after one more token ``ids`` [B, 1]; ``seen`` [B, S] is the mask of all slots."""
        slot = cache.get_seq_length()
        self._at(cache, slot)
        mask = seen & (torch.arange(seen.shape[1]) <= slot)
        with installed(self.lm, list(zip(self.blocks, self.calls, strict=True))):
            hidden = self.lm.hidden(ids, mask, cache=cache)[:, -1]
        for layer in layers_of(cache):
            layer.show(slot + 1)
        return hidden


def layers_of(cache: DynamicCache) -> list[PreallocatedLayer]:
    """The layers of a cache of a model that ``require_traceable`` accepts."""
    return cast("list[PreallocatedLayer]", cache.layers)


class BlockDecoder(Decoder):
    """A decoder whose tokens after the prompts go through compiled blocks."""

    def __init__(self, *args: Any, blocks: TokenBlocks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compiled = blocks

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        if not self.cache.get_seq_length():
            return super()._hidden(ids, mask)
        return self.compiled.hidden(ids, self.seen, self.cache)


class BlockTokenActor(EagerTokenActor):
    """Responses by ``BlockDecoder``."""

    def __init__(self, policy: LanguageModelPolicy, run: Run, graphs: Graphs) -> None:
        """``CompileError`` where the blocks cannot be compiled."""
        super().__init__(policy, run)
        self.decoder_of = partial(BlockDecoder, blocks=TokenBlocks(policy, graphs))
